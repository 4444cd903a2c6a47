"""What a table of super-resolution is read beside: unprocessed input, sinc, band replication, a codec's round trip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from segue.cli.evaluate_common import header_of, read, some
from segue.codecs import load_codec
from segue.data.manifest import Clip
from segue.data.progress import track
from segue.metrics.baselines import band_replication, sinc
from segue.types import UserError

Waves = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Pairs:
    """id -> (estimate [T], reference [T]), all at one rate."""

    rate_hz: int
    waves: Waves


def lows_by_protocol(pairs: Pairs, cutoff_hz: float, protocol: str) -> dict[str, np.ndarray]:
    """id -> the reference without its high band, as a published test takes it away.

    Raises:
        UserError: no such protocol, or one of several filters, of which one clip has only one.
    """
    from segue.tasks import degradation

    if protocol == "fft":
        filters = (degradation.Degradation(cutoff_hz, "fft"),)
    else:
        filters = degradation.protocol(protocol, cutoff_hz)
    if len(filters) > 1:
        raise UserError(
            f"--protocol {protocol}: has {len(filters)} filters, and a folder of estimates was made by one; mend: "
            "--input FOLDER, with what the estimates were made of"
        )
    return {
        i: degradation.degrade(torch.from_numpy(r)[None], pairs.rate_hz, filters)[0].numpy()
        for i, (_, r) in pairs.waves.items()
    }


def lows_of(pairs: Pairs, clips: dict[str, Clip]) -> dict[str, np.ndarray]:
    """id -> the input, brought to the pairs' rate and cut to their length.

    Raises:
        UserError: an input is missing or unusable.
    """
    lacking = sorted(set(pairs.waves) - set(clips))
    if lacking:
        raise UserError(f"--input: none for {len(lacking)} of {len(pairs.waves)} pairs ({some(lacking)})")
    lows = {}
    for i, (_, reference) in pairs.waves.items():
        rate_hz = header_of(clips[i].path).sample_rate_hz
        lows[i] = _fitted(sinc(read(clips[i].path, rate_hz), rate_hz, pairs.rate_hz), len(reference))
    return lows


def rows_beside(
    pairs: Pairs, lows: dict[str, np.ndarray], cutoff_hz: float, codec: str
) -> dict[str, tuple[Waves, str]]:
    """name -> (pairs whose estimates are the row's, what the row is)."""
    rate_hz = pairs.rate_hz
    coder = load_codec(codec, rate_hz)
    if coder.sample_rate_hz != rate_hz:
        raise UserError(f"--codec {codec}: is for {coder.sample_rate_hz:,} Hz, and the pairs are at {rate_hz:,} Hz")

    def through_codec(low: np.ndarray, reference: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return coder.decode(coder.encode(torch.from_numpy(reference)[None]), len(reference))[0].numpy()

    half_hz = round(2 * cutoff_hz)
    rows = {
        "unprocessed": (lambda low, reference: low, "the input, at the rate of the pairs"),
        "sinc": (
            lambda low, reference: _fitted(sinc(_decimated(low, half_hz / rate_hz), half_hz, rate_hz), len(low)),
            f"the input at {half_hz} Hz (exactly), resampled by soxr HQ",
        ),
        "band replication": (
            lambda low, reference: band_replication(torch.from_numpy(low), rate_hz, cutoff_hz).numpy(),
            "of the input, blind (segue.metrics.baselines)",
        ),
        "codec round trip": (
            through_codec,
            f"the reference through the codec {codec}",
        ),
    }
    made = {}
    for name, (make, words) in rows.items():
        items = track(lows.items(), len(lows), name, "clips")
        waves = {i: (make(low, pairs.waves[i][1]).astype(np.float32), pairs.waves[i][1]) for i, low in items}
        made[name] = (waves, words)
    return made


def _decimated(low: np.ndarray, share: float) -> np.ndarray:
    """[T] at `share` of its rate by cutting its spectrum: a filter here would be counted against the one under test."""
    samples = round(len(low) * share)
    return np.fft.irfft(np.fft.rfft(low)[: samples // 2 + 1], samples) * (samples / len(low))


def _fitted(wave: np.ndarray, samples: int) -> np.ndarray:
    return np.pad(wave[:samples], (0, max(0, samples - len(wave)))).astype(np.float32)
