"""Figures of a super-resolution model beside those of baselines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segue.codecs.base import Codec
from segue.evaluation.bootstrap import bootstrap_interval
from segue.evaluation.folders.baseline_rows import ways_beside
from segue.evaluation.spectral_distances import lsd, si_sdr_db
from segue.pipeline import SuperResolver
from segue.predictor import Predictor
from segue.progress import track
from segue.tasks.degradation import degrade, protocol
from segue.training.training_audio import clips_of, read_sounds
from segue.types import UserError

PRESET = "nuwave2"
Model = Callable[[Tensor, int], Tensor]
Resolver = SuperResolver | Predictor


def measure_super_resolution(
    models: Mapping[int, Resolver],
    source: Path,
    cutoff_hz: float,
    test: str,
    clips: int,
    seconds: float,
    unseen: bool = False,
) -> dict:
    """Rows by name: mean and 95 % bootstrap interval over clips of each measure; and what they were measured on.

    Args:
        models: number of steps -> what works with it, all at one rate; 0 is a predictor.
        unseen: the model was trained on nothing of the set, which is measured whole where it names no split "test".
            Else such a set is measured on the clips that any training of segue holds out of it.

    Raises:
        UserError: fewer than two sounds, or a cutoff that the model's rate does not hold.
    """
    rate_hz = next(iter(models.values())).sample_rate_hz
    split, waves = _waves(source, rate_hz, clips, round(seconds * rate_hz), unseen)
    ways = {
        f"model, {count} steps" if count else "predictor": by_model(model, cutoff_hz, count)
        for count, model in models.items()
    }
    codec = next((model.codec for model in models.values() if isinstance(model, SuperResolver)), None)
    rows = rows_of(ways, codec, waves, cutoff_hz, test, rate_hz=rate_hz)
    number = len(waves) * len(protocol(test, cutoff_hz))
    about = {
        "source": source.name,
        "split": split,
        "test": test,
        "cutoff_hz": cutoff_hz,
        "lsd": PRESET,
        "clips": number,
    }
    return about | {"seconds_at_most": seconds, "rows": rows}


def rows_of(
    models: Mapping[str, Model],
    codec: Codec | None,
    waves: Sequence[Tensor],
    cutoff_hz: float,
    test: str = "nuwave2",
    *,
    rate_hz: int,
) -> dict[str, dict]:
    """The baselines' rows and the models', name -> measure -> mean and 95 % bootstrap interval over clips.

    Args:
        models: name -> (low [1, T], number of the clip) -> estimate [1, T].
        codec: whose round trip is a row, where there is one.
        waves: [T] each, full-band.
        cutoff_hz, test: what they lose.
        rate_hz: of the waves.
    """
    pairs = [
        (wave[None], degrade(wave[None], rate_hz, [filter_])) for filter_ in protocol(test, cutoff_hz) for wave in waves
    ]
    baselines = ways_beside(codec, rate_hz, cutoff_hz)
    values: dict[str, dict[str, list[float]]] = {}
    for number, (wave, low) in enumerate(track(pairs, len(pairs), "measuring", "clips")):
        # Baselines are given the original as well, for the codec's round trip; models see the narrow clip alone.
        estimates = {name: make(low, wave) for name, (make, _) in baselines.items()}
        estimates |= {name: make(low, number) for name, make in models.items()}
        for name, estimate in estimates.items():
            for measure_name, value in _figures(estimate, wave, rate_hz, cutoff_hz).items():
                values.setdefault(name, {}).setdefault(measure_name, []).append(value)
    return {name: {m: _with_interval(v) for m, v in row.items()} for name, row in values.items()}


def by_model(resolver: Resolver, cutoff_hz: float, steps: int) -> Model:
    """What a row of `rows_of` is made by; the number of the clip is the seed. Mono, also by a stereo model."""

    # The number of the clip as seed: every model gets the same noise for it.
    def way(low: Tensor, number: int) -> Tensor:
        noise = resolver.noise(resolver.frames(low.shape[1]), number)[None]
        sides = low[:, None].expand(-1, resolver.audio_channels, -1)
        gain = resolver.level_gain(sides)
        return (resolver.resolve(sides * gain, torch.tensor([cutoff_hz]), noise, steps=steps) / gain).mean(dim=1)

    return way


def _figures(made: Tensor, wave: Tensor, rate_hz: int, cutoff_hz: float) -> dict[str, float]:
    bands = {
        f"lsd {band}": float(lsd(made, wave, rate_hz, PRESET, band=band, cutoff_hz=cutoff_hz))
        for band in ("full", "low", "high")
    }
    bands["lsd full, loudness matched"] = float(lsd(made, wave, rate_hz, PRESET, loudness_matched=True))
    return bands | {"si-sdr db": min(float(si_sdr_db(made, wave)), 200.0)}  # equal signals: infinite


def _waves(source: Path, rate_hz: int, clips: int, samples: int, unseen: bool) -> tuple[str, list[Tensor]]:
    """The split that is measured, and waves [T] of it."""
    members = clips_of(source)
    named = {clip.split for clip in members}
    split = "test" if "test" in named else "all" if unseen else "valid"
    if split == "valid":
        print(
            f"note: {source} has no split 'test': measured on its split 'valid', which training holds out; --unseen "
            "measures all of a set that was no part of the training",
            file=sys.stderr,
        )
    members = [clip for clip in members if split in ("all", clip.split)]
    # Evenly spaced, since lists are often sorted by kind.
    read = read_sounds(members[:: max(1, -(-len(members) // clips))], rate_hz)
    waves = [read.wave(index)[:samples] for index in range(len(read))]
    waves = [wave for wave in waves if len(wave) >= 2048 and bool(wave.any())]  # LSD's window; silence has no figures
    if len(waves) < 2:
        what = "sounds" if split == "all" else f"sounds in split '{split}'"
        more = ", or --unseen where none of it was trained on" if split == "valid" else ""
        raise UserError(
            f"{source}: fewer than 2 {what} of 2,048 samples that are not silent; hint: name another folder{more}"
        )
    return split, waves


def _with_interval(values: list[float]) -> dict:
    array = np.array(values)
    low, high = bootstrap_interval(lambda rows: float(array[rows].mean()), len(array))
    return {"mean": round(float(array.mean()), 4), "interval": [round(low, 4), round(high, 4)]}
