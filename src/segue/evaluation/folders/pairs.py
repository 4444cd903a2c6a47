"""Pairs of sounds by id: distances of estimates from references, each with interval, N and metric card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segue.evaluation.card import mean_over_clips
from segue.evaluation.folders.baseline_rows import Pairs, lows_by_protocol, lows_of, rows_beside
from segue.evaluation.folders.sound_sets import (
    ClipPair,
    Findings,
    described,
    ends,
    find_sounds,
    header_of,
    read,
    read_sides,
    some,
    usable_of,
)
from segue.evaluation.spectral_distances import (
    LSD_PRESETS,
    MULTI_RESOLUTION,
    log_mel_l1,
    lsd,
    lsd_card,
    multi_resolution_stft,
    si_sdr_db,
    snr_db,
    visqol_mos,
)
from segue.evaluation.stereo import VIEWS, view, width_error_db
from segue.progress import track
from segue.types import UserError, import_extra


def measure_super_resolution(
    est: Path,
    ref: Path,
    *,
    cutoff_hz: float | None,
    low: Path | None,
    protocol: str,
    codec: str,
    visqol: bool,
    trim: bool,
    draws: int,
    seed: int,
    skip_bad: bool = False,
) -> Findings:
    """Estimates against references: LSD by every preset and band, and distances of signals; options of the command.

    Args:
        cutoff_hz: where the input's band ends; None: full band alone, and no rows beside.
        low: what the estimates were made of; None: the references without their top, by `protocol`.
        codec: whose round trip is a row.
        skip_bad: leave out pairs of which one cannot be used, and list them in the warnings.

    Raises:
        UserError: the sets do not pair, a file is unusable, or an option does not fit.
    """
    if cutoff_hz is None and low is not None:
        raise UserError("--input needs --cutoff-hz: where its band ends")
    # Found before anything is measured, as all that can be refused is.
    inputs = None if low is None else (low, find_sounds(low))
    found, pairs = _read_pairs({"EST": est, "REF": ref}, trim, skip_bad)
    if cutoff_hz is not None and not 0.0 < cutoff_hz < pairs.rate_hz / 2:
        raise UserError(
            f"--cutoff-hz {cutoff_hz:g}: give one between 0 and {pairs.rate_hz / 2:g}, half the files' rate"
        )
    # The estimates themselves.
    bands = ("full",) if cutoff_hz is None else ("full", "low", "high")
    # Each LSD with and without matched loudness: a model may be right but for its level.
    measures = _lsd_measures(LSD_PRESETS, bands, cutoff_hz, (False, True)) + _signal_measures(visqol)
    about = {"preprocessing": _preprocessing(trim)}
    _measure_pairs(found, pairs, measures, draws, seed, about)
    _measure_sides(found, pairs, draws, seed, trim)
    if cutoff_hz is None:
        found.warnings.append("no --cutoff-hz: no low and high band, and no rows beside")
    else:
        # The baselines, measured in the same way on the same clips.
        if inputs is None:
            lows = lows_by_protocol(pairs, cutoff_hz, protocol)
            made_by = f"protocol {protocol}"
        else:
            lows = lows_of(pairs, inputs[1])
            made_by = f"as in {inputs[0]}"
            found.sets["input"] = described(*inputs)
        for name, (waves, words) in rows_beside(pairs, lows, cutoff_hz, codec).items():
            # Baselines have findings of their own, so that their clips do not enter the table by file.
            beside = Findings()
            row = {"row": f"{words}; input: {made_by}"}
            _measure_pairs(beside, Pairs(pairs.rate_hz, waves), measures, draws, seed, about | row)
            found.rows[name] = beside.measures
            found.warnings.append(f"{name}: {words}")
        found.warnings.append(f"input of the rows beside: {made_by}, cutoff {cutoff_hz:g} Hz")
    return _with_examples(found, pairs, "LSD nuwave2 full", ("estimate", "reference"))


def measure_files(
    a: Path, b: Path, *, visqol: bool, trim: bool, draws: int, seed: int, skip_bad: bool = False
) -> Findings:
    """LSD, log-mel L1, multi-resolution STFT, SI-SDR and SNR of the files of `a` against those of `b`.

    Raises:
        UserError: the sets do not pair, or a file is unusable.
    """
    found, pairs = _read_pairs({"A": a, "B": b}, trim, skip_bad)
    measures = _lsd_measures(("nuwave2",), ("full",), None, (False,)) + _signal_measures(visqol)
    _measure_pairs(found, pairs, measures, draws, seed, {"preprocessing": _preprocessing(trim)})
    _measure_sides(found, pairs, draws, seed, trim)
    return _with_examples(found, pairs, "LSD nuwave2 full", ("A", "B"))


@dataclass(frozen=True)
class _PairMeasure:
    """One number a pair: `make` maps [1, T], [1, T] and the rate to [1]; `about` maps the rate to its card."""

    name: str
    unit: str
    better: str
    make: Callable
    about: Callable[[int], dict]


def _lsd_measures(presets, bands, cutoff_hz, matched) -> list[_PairMeasure]:
    return [_lsd_measure(preset, band, cutoff_hz, match) for preset in presets for match in matched for band in bands]


def _lsd_measure(preset: str, band: str, cutoff_hz: float | None, match: bool) -> _PairMeasure:
    def make(estimate: torch.Tensor, reference: torch.Tensor, rate_hz: int) -> torch.Tensor:
        return lsd(estimate, reference, rate_hz, preset, band=band, cutoff_hz=cutoff_hz, loudness_matched=match)

    def about(rate_hz: int) -> dict:
        return lsd_card(preset, rate_hz, band, None if band == "full" else cutoff_hz, match)

    name = f"LSD {preset} {band}{', loudness-matched' if match else ''}"
    return _PairMeasure(name, "decades", "lower", make, about)


def _signal_measures(visqol: bool) -> list[_PairMeasure]:
    mel: dict[str, Any] = {"n_fft": 1024, "hop_samples": 256, "bands": 80, "floor": 1e-5}
    measures = [
        _PairMeasure("log-mel L1", "nepers", "lower", lambda e, r, hz: log_mel_l1(e, r, hz, **mel),
                     lambda hz: {**mel, "mel": "HTK over magnitudes", "sample_rate_hz": hz}),
        _PairMeasure("multi-resolution STFT", "", "lower", lambda e, r, hz: multi_resolution_stft(e, r),
                     lambda hz: {"resolutions (n_fft, hop, window)": MULTI_RESOLUTION, "floor": 1e-5,
                                 "definition": "spectral convergence + log-magnitude L1, mean over resolutions"}),
        _PairMeasure("SI-SDR", "dB", "higher", lambda e, r, hz: si_sdr_db(e, r),
                     lambda hz: {"definition": "Le Roux et al. 2019 eq. 3, no mean removal, float64"}),
        _PairMeasure("SNR", "dB", "higher", lambda e, r, hz: snr_db(e, r), lambda hz: {"definition": "float64"}),
    ]  # fmt: skip
    if visqol:
        import_extra("visqol", "visqol")  # before the long work
        about = {"implementation": "visqol-python", "mode": "audio", "rate": "resampled to 48 kHz (soxr HQ)"}
        measures.append(_PairMeasure("ViSQOL", "MOS", "higher", visqol_mos, lambda hz: about))
    return measures


def _preprocessing(trim: bool) -> str:
    return "mean of channels, at the files' own rate" + (", cut to the shorter of a pair" if trim else "")


def _read_pairs(sources: dict[str, Path], trim: bool, skip_bad: bool) -> tuple[Findings, Pairs]:
    """Read pairs by id, from two sets that the command line calls so.

    Raises:
        UserError: an id is in one set only, rates or lengths differ, or a file is unusable or silent.
    """
    sets = {name: find_sounds(source) for name, source in sources.items()}
    (a_name, first), (b_name, second) = sets.items()
    # Every sound needs its partner.
    # In one set only, counted for both directions: a wrong folder shows at once.
    lacking = [f"{i} only in {a_name if i in first else b_name}" for i in sorted(set(first) ^ set(second))]
    if lacking:
        raise UserError(
            f"{a_name} has {len(first)} sounds, {b_name} {len(second)}, and they do not pair by id: {some(lacking)}; "
            "hint: give both sets the same file names"
        )
    left_out: list[str] = []
    if skip_bad:
        sets, left_out = usable_of(sets, paired=True)
        (_, first), (_, second) = sets.items()
    # One rate for all, and equal lengths unless --trim: distances depend on both.
    headers = {i: (header_of(first[i].path), header_of(second[i].path)) for i in first}
    rate_hz = headers[next(iter(headers))][1].sample_rate_hz
    for i, (a, b) in headers.items():
        if a.sample_rate_hz != b.sample_rate_hz:
            rates = f"{a.sample_rate_hz:,} and {b.sample_rate_hz:,} Hz"
            raise UserError(f"{first[i].path}: a pair of {rates}; hint: resample one: figures depend on the rate")
        if a.sample_rate_hz != rate_hz:
            raise UserError(
                f"{first[i].path}: {a.sample_rate_hz:,} Hz, others {rate_hz:,} Hz; figures depend on the rate: measure "
                "each rate by itself"
            )
        if a.frames != b.frames and not trim:
            raise UserError(
                f"{first[i].path}: {a.frames:,} samples, its pair {b.frames:,}; hint: cut them alike, or add --trim"
            )
    # Only now decode.
    waves = {}
    sides = {}
    channels = {header.channels for pair in headers.values() for header in pair}
    for i, (a, b) in track(headers.items(), len(headers), "reading", "pairs"):
        samples = min(a.frames, b.frames)
        waves[i] = read(first[i].path, rate_hz)[:samples], read(second[i].path, rate_hz)[:samples]
        if channels == {2}:
            sides[i] = read_sides(first[i].path)[:, :samples], read_sides(second[i].path)[:, :samples]
    about = {name: described(sources[name], clips) for name, clips in sets.items()}
    if len(channels) > 1:
        left_out.append("sides are not compared: not all of the files are stereo")
    return Findings(about, warnings=left_out), Pairs(rate_hz, waves, sides)


def _measure_pairs(
    found: Findings, pairs: Pairs, measures: list[_PairMeasure], draws: int, seed: int, about: dict
) -> None:
    """Every measure of every pair; `about` goes into each card."""
    numbers: dict[str, list[float]] = {m.name: [] for m in measures}
    # Every measure of every pair.
    for name, waves in track(pairs.waves.items(), len(pairs.waves), "measuring", "pairs"):
        estimate, reference = (torch.from_numpy(np.ascontiguousarray(w))[None] for w in waves)
        row = found.by_file.setdefault(name, {})
        for m in measures:
            try:
                value = float(m.make(estimate, reference, pairs.rate_hz)[0])
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            numbers[m.name].append(value)
            # A file's cell stays empty where a distance is infinite; the mean is refused below.
            row[m.name] = value if np.isfinite(value) else ""
    for m in measures:
        parameters = {"sample_rate_hz": pairs.rate_hz, **m.about(pairs.rate_hz), **about}
        options = {"better": m.better, "unit": m.unit, "parameters": parameters, "draws": draws, "seed": seed}
        found.attempt(m.name, mean_over_clips, m.name, np.array(numbers[m.name]), **options)


def _measure_sides(found: Findings, pairs: Pairs, draws: int, seed: int, trim: bool) -> None:
    """LSD and log-mel L1 of left, right and side, and the error of the width, where all files are stereo.

    The mean of the channels, which all other figures are of, is the mid.
    """
    if not pairs.sides:
        return
    measures = [*_lsd_measures(("nuwave2",), ("full",), None, (False,)), *_signal_measures(False)[:1]]
    for name in VIEWS:
        waves = {i: (_view(estimate, name), _view(reference, name)) for i, (estimate, reference) in pairs.sides.items()}
        named = [replace(m, name=f"{m.name}, {name}") for m in measures]
        about = {"preprocessing": _preprocessing(trim).replace("mean of channels", name)}
        _measure_pairs(found, Pairs(pairs.rate_hz, waves), named, draws, seed, about)
    width = _PairMeasure(
        "width error", "dB", "lower", lambda e, r, hz: width_error_db(e, r),
        lambda hz: {"definition": "absolute difference of side over mid in dB, each from -60 to 60 (our definition)"},
    )  # fmt: skip
    _measure_pairs(found, Pairs(pairs.rate_hz, pairs.sides), [width], draws, seed, {})


def _view(wave: np.ndarray, name: str) -> np.ndarray:
    return view(torch.from_numpy(wave)[None], name)[0].numpy()


def _with_examples(found: Findings, pairs: Pairs, by: str, labels: tuple[str, str]) -> Findings:
    """The findings, with the clips at both ends by one measure."""
    ranked = sorted(pairs.waves, key=lambda i: -found.by_file[i][by])
    for end, i in ends(ranked):
        clips = list(zip((f"{i}, {labels[0]}", labels[1]), pairs.waves[i]))
        found.examples.append(ClipPair(f"{end}, {found.by_file[i][by]:.3g}", clips, pairs.rate_hz))
    found.warnings.append(f"clips are ranked by {by}")
    found.counts = {"pairs": len(pairs.waves)}
    return found
