"""Loudness by ITU-R BS.1770-4, and one gain to reach it (package pyloudnorm, extra `evaluate`)."""

from __future__ import annotations

import math

import numpy as np

from segue.types import import_extra

_BLOCK_SEC = 0.4  # of the standard's gating
QUIETEST_LUFS = -70.0  # the standard's absolute gate: what is softer has no loudness


def loudness_lufs(wave: np.ndarray, sample_rate_hz: int) -> float:
    """Integrated loudness of a wave [A, T]; -inf of silence.

    A sound shorter than the standard's block of 400 ms is measured in one block that silence fills (our definition).
    """
    meter = import_extra("pyloudnorm", "evaluate").Meter(sample_rate_hz, block_size=_BLOCK_SEC)
    # A sample more than a block: the library wants strictly more.
    missing = math.ceil(_BLOCK_SEC * sample_rate_hz) + 1 - wave.shape[1]
    padded = np.pad(wave.astype(np.float64), ((0, 0), (0, max(0, missing))))
    # Silence has a logarithm of zero in the library's own code.
    with np.errstate(divide="ignore"):
        found = float(meter.integrated_loudness(padded.T))
    return found if found >= QUIETEST_LUFS else -math.inf


def gain_to(wave: np.ndarray, sample_rate_hz: int, lufs: float) -> tuple[float, str]:
    """The gain that brings a wave [A, T] to a loudness, and what hinders it, in words; "" where nothing does.

    No gain lifts a peak above full scale: a limiter would change the sound. Silence is left as it is.
    """
    found = loudness_lufs(wave, sample_rate_hz)
    if not math.isfinite(found):
        return 1.0, "silent, so that it has no loudness to change"
    wanted = 10 ** ((lufs - found) / 20)
    most = 1.0 / float(np.abs(wave).max())
    if wanted <= most:
        return wanted, ""
    return most, f"{found + 20 * math.log10(most):.1f} LUFS, since its peak is at full scale then"
