"""Fine structure for an upper band, out of the low one: a harmonic source, and a copy shifted upwards."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF_TAPS = 24  # of the half-band filter, to either side
_THRESHOLD = 0.5  # of the local root mean square
_ENVELOPE_SEC = 0.02
_EDGE = 0.95  # of the cutoff: where the shifted copy begins, below the flank of the filter that made the input


def half_band_filter() -> Tensor:
    """[1, 1, 48]: the odd taps of a windowed sinc, which gives the samples between samples."""
    at = torch.arange(-_HALF_TAPS, _HALF_TAPS, dtype=torch.float64) + 0.5
    taps = torch.special.sinc(at) * torch.kaiser_window(2 * _HALF_TAPS, False, 8.0, dtype=torch.float64)
    return (taps / taps.sum()).float()[None, None]


def harmonic_source(low: Tensor, taps: Tensor, sample_rate_hz: int) -> Tensor:
    """[B, T] -> [B, T]: the peaks of a wave that rise above half of its local root mean square.

    The kinks of such a wave hold all multiples of its fundamental, in phase with it, wherever its own band ends
    (rectifiers as exciters of an upper band: Makhoul and Berouti 1979; the threshold is our definition: a plain
    rectifier gives a single sine its even multiples alone). It is computed at twice the rate, so that multiples beyond
    half the rate do not fold back.
    """
    power = _moving_mean(low.square(), round(sample_rate_hz * _ENVELOPE_SEC / 2))
    least = _THRESHOLD * (power + 1e-10).sqrt()
    between = _between(low, taps)
    # The threshold moves slowly: it may be the same for a sample and its neighbour.
    peaks, peaks_between = torch.maximum(low, least), torch.maximum(between, least)
    # Down again: a sample itself, and the samples between that lie around it.
    around = F.conv1d(F.pad(peaks_between[:, None], (_HALF_TAPS, _HALF_TAPS - 1)), taps)[:, 0]
    return 0.5 * (peaks + around)


def shift_index(cutoff_bins: Tensor, bins: int) -> Tensor:
    """[B] ends of bands, in bins -> [B, bins]: the bin of the low band that each bin above its end is copied from.

    The upper octave up to 95 % of the cutoff, copied side by side. Its length is a multiple of 4 bins, so that at a
    quarter hop phases run on from frame to frame.
    """
    top = (cutoff_bins * _EDGE).long()[:, None]
    patch = ((top - (cutoff_bins / 2).long()[:, None]) // 4 * 4).clamp(min=4)
    target = torch.arange(bins, device=cutoff_bins.device)[None]
    copies = torch.where(target > top, (target - top - 1) // patch + 1, 0)
    return (target - copies * patch).clamp(min=0)


def _moving_mean(values: Tensor, side: int) -> Tensor:
    """[B, T]: means over `side` samples to either side, zeros beyond the ends; by sums in float64."""
    sums = F.pad(values.double(), (side + 1, side)).cumsum(-1)
    return ((sums[:, 2 * side + 1 :] - sums[:, : -2 * side - 1]) / (2 * side + 1)).clamp(min=0.0).float()


def _between(wave: Tensor, taps: Tensor) -> Tensor:
    """[B, T]: the sample half a step after each sample."""
    return F.conv1d(F.pad(wave[:, None], (_HALF_TAPS - 1, _HALF_TAPS)), taps)[:, 0]
