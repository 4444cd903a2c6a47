"""Figures of a super-resolution model beside those of baselines."""

from __future__ import annotations

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
from segue.progress import track
from segue.tasks.degradation import degrade, protocol
from segue.training.training_audio import clips_of, read_sounds
from segue.types import UserError

PRESET = "nuwave2"
Model = Callable[[Tensor, int], Tensor]


def measure_super_resolution(
    resolver: SuperResolver,
    source: Path,
    cutoff_hz: float,
    test: str,
    steps: tuple[int, ...],
    clips: int,
    seconds: float,
    whole_set: bool = False,
) -> dict:
    """Rows by name: mean and 95 % bootstrap interval over clips of each measure; and what they were measured on.

    Args:
        whole_set: measure on all clips of a set without a split "test", and not on its held-out clips alone: for a set
            that the model was not trained on.

    Raises:
        UserError: fewer than two sounds, or a cutoff that the model's rate does not hold.
    """
    rate_hz = resolver.sample_rate_hz
    split, waves = _waves(source, rate_hz, clips, round(seconds * rate_hz), whole_set)
    models = {f"model, {count} steps": by_model(resolver, cutoff_hz, count) for count in steps}
    rows = rows_of(models, resolver.codec, waves, cutoff_hz, test)
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
    models: Mapping[str, Model], codec: Codec, waves: Sequence[Tensor], cutoff_hz: float, test: str = "nuwave2"
) -> dict[str, dict]:
    """The baselines' rows and the models', name -> measure -> mean and 95 % bootstrap interval over clips.

    Args:
        models: name -> (low [1, T], number of the clip) -> estimate [1, T].
        codec: whose round trip is a row.
        waves: [T] each, full-band.
        cutoff_hz, test: what they lose.
    """
    rate_hz = codec.sample_rate_hz
    pairs = [
        (wave[None], degrade(wave[None], rate_hz, [filter_])) for filter_ in protocol(test, cutoff_hz) for wave in waves
    ]
    baselines = ways_beside(codec, cutoff_hz)
    values: dict[str, dict[str, list[float]]] = {}
    for number, (wave, low) in enumerate(track(pairs, len(pairs), "measuring", "clips")):
        # Baselines are given the original as well, for the codec's round trip; models see the narrow clip alone.
        estimates = {name: make(low, wave) for name, (make, _) in baselines.items()}
        estimates |= {name: make(low, number) for name, make in models.items()}
        for name, estimate in estimates.items():
            for measure_name, value in _figures(estimate, wave, rate_hz, cutoff_hz).items():
                values.setdefault(name, {}).setdefault(measure_name, []).append(value)
    return {name: {m: _with_interval(v) for m, v in row.items()} for name, row in values.items()}


def by_model(resolver: SuperResolver, cutoff_hz: float, steps: int) -> Model:
    """What a row of `rows_of` is made by; the number of the clip is the seed. Mono, also by a stereo model."""

    # The number of the clip as seed: every model gets the same noise for it.
    def way(low: Tensor, number: int) -> Tensor:
        noise = resolver.noise(resolver.frames(low.shape[1]), number)[None]
        sides = low[:, None].expand(-1, resolver.audio_channels, -1)
        return resolver.resolve(sides, torch.tensor([cutoff_hz]), noise, steps=steps).mean(dim=1)

    return way


def _figures(made: Tensor, wave: Tensor, rate_hz: int, cutoff_hz: float) -> dict[str, float]:
    bands = {
        f"lsd {band}": float(lsd(made, wave, rate_hz, PRESET, band=band, cutoff_hz=cutoff_hz))
        for band in ("full", "low", "high")
    }
    bands["lsd full, loudness matched"] = float(lsd(made, wave, rate_hz, PRESET, loudness_matched=True))
    return bands | {"si-sdr db": min(float(si_sdr_db(made, wave)), 200.0)}  # equal signals: infinite


def _waves(source: Path, rate_hz: int, clips: int, samples: int, whole_set: bool) -> tuple[str, list[Tensor]]:
    """The split that is measured on, and waves [T] of it."""
    everything = clips_of(source)
    # Held out as `segue encode` splits: "test" where a list names it, else "valid", which is split by content.
    split = "test" if whole_set or any(clip.split == "test" for clip in everything) else "valid"
    members = [clip for clip in everything if clip.split == split]
    if whole_set and not members:
        split, members = "all", everything
    # Evenly spaced, since lists are often sorted by kind.
    read = read_sounds(members[:: max(1, -(-len(members) // clips))], rate_hz)
    waves = [read.wave(index)[:samples] for index in range(len(read))]
    waves = [wave for wave in waves if len(wave) >= 2048 and bool(wave.any())]  # LSD's window; silence has no figures
    if len(waves) < 2:
        raise UserError(
            f"{source}: fewer than 2 {'' if split == 'all' else 'held-out '}sounds of 2,048 samples that are not "
            "silent; hint: name another folder, or --all for sounds that the model was not trained on"
        )
    return split, waves


def _with_interval(values: list[float]) -> dict:
    array = np.array(values)
    low, high = bootstrap_interval(lambda rows: float(array[rows].mean()), len(array))
    return {"mean": round(float(array.mean()), 4), "interval": [round(low, 4), round(high, 4)]}
