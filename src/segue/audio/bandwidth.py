"""How far up a sound reaches: the band edge that a filter, a codec or a low sampling rate has left in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MIN_CUTOFF_HZ = 1800.0  # below it, a last partial and a band edge look alike
_RATE_SHARE = 0.94  # of half the rate: what ends above is taken to fill it
_LOUD_SHARE = 0.99  # quantile over frames: what sounds for 1 % of the time counts
_EDGE_DB = 15.0  # natural spectra fall by 4 to 8 dB over the same distance, if nothing is left above ...
_STEEP_DB = 28.0  # ... and between the partials of a note by up to 25 dB, if something is
_FLANK_DB = 12.0
_PASSED = (0.75, 0.88)  # of half the rate: below where any resampler or converter begins to fall
_LOBE_BINS = 2  # of the window: what reaches this near to half the rate reaches it
_BELOW = 2 ** (-1 / 4)  # an edge is compared with a quarter octave below it ...
_ABOVE = (2 ** (1 / 12), 2 ** (5 / 12))  # ... and a third of an octave above, past the filter's flank
_EMPTY_DB = -120.0  # a bin of nothing, where samples are too fine to say
_NEARLY_EMPTY_DB = 6.0
_QUANTISATION_MARGIN_DB = 14.0  # 7 for the quantile of noise over its mean, 7 for noise shaping


@dataclass(frozen=True)
class Bandwidth:
    """Where a sound ends.

    Attributes:
        cutoff_hz: all that is kept lies below.
        found_by: "edge" (a steep fall, nothing above), "hole" (a steep fall, with something above again), "roll-off"
            (above it only the samples' quantisation), "rate" (it fills its sampling rate, up to half of it or to where
            the resampler that made it fell) or "silence".
    """

    cutoff_hz: float
    found_by: str


def frame_samples(sample_rate_hz: int) -> int:
    """Length of the frames that `detect` is given the spectra of: a power of two of 32 to 64 ms."""
    return 2 ** round(math.log2(sample_rate_hz / 20))


def detect(power: np.ndarray, sample_rate_hz: int, bits: int | None) -> Bandwidth:
    """The bandwidth of a sound (our definition).

    Of every bin the 99 % quantile over frames is taken, so that rare sounds count and clicks do not. Then, in turn:
    the steepest fall, from the median of a quarter octave to the 90 % quantile of a third of an octave a step higher,
    if it is of 28 dB, or of 15 dB down to quantisation noise; or else the highest bin that is more than quantisation
    noise; or else the whole of the rate: up to half of it, or to where the flank of a resampler has lost 12 dB against
    the band at 75 to 88 % of it. Where the kept band is in doubt the higher edge is taken: what is kept too much sounds
    dull, what is kept too little is lost.

    Args:
        power: [bins, frames] squared magnitudes of Hann-windowed frames, where a full-scale sine reads 1.
        sample_rate_hz: of the sound; bins reach from 0 to half of it.
        bits: of an integer sample; None where the samples are floating or come from a lossy codec.
    """
    # 1e-20 keeps the logarithm of digital silence finite, far below any level that is looked at.
    levels_db = 10.0 * np.log10(np.quantile(power, _LOUD_SHARE, axis=1) + 1e-20)
    bins_hz = np.arange(len(levels_db)) * sample_rate_hz / (2 * (len(levels_db) - 1))
    whole_hz = _RATE_SHARE * sample_rate_hz / 2
    empty_db = _empty_db(len(levels_db), bits)
    if levels_db[1:].max() <= empty_db:
        return Bandwidth(sample_rate_hz / 2, "silence")
    # An edge says more than a level: it is looked for first, and the highest bin only where there is none.
    edge = _edge(levels_db, bins_hz, empty_db)
    if edge is not None and MIN_CUTOFF_HZ <= edge.cutoff_hz < whole_hz:
        return edge
    last_hz = bins_hz[np.flatnonzero(levels_db > empty_db)[-1]]
    if MIN_CUTOFF_HZ <= last_hz < whole_hz:
        return Bandwidth(float(last_hz), "roll-off")
    return Bandwidth(_top(levels_db, bins_hz), "rate")


def _empty_db(bins: int, bits: int | None) -> float:
    """Level of a bin that holds only the quantisation of its samples, where a full-scale sine reads 0 dB."""
    if bits is None:
        return _EMPTY_DB
    # Noise of variance step^2 / 12 against a sine's 1/2, spread over the bins; the Hann window gathers 1.5 of them.
    noise_db = 10.0 * math.log10(2.0 ** (2 - 2 * bits) / 6.0 * 1.5 / bins)
    return max(_EMPTY_DB, noise_db + _QUANTISATION_MARGIN_DB)


def _edge(levels_db: np.ndarray, bins_hz: np.ndarray, empty_db: float) -> Bandwidth | None:
    """The steepest fall that can only be a filter's, or None."""
    best_db = 0.0
    found = None
    # The highest place looked at leaves room above it for the band that it is compared with.
    octaves = np.log2(0.97 * bins_hz[-1] / _ABOVE[0] / MIN_CUTOFF_HZ)
    # Steps of 1/48 octave: a quarter of a semitone, finer than the flanks that filters have.
    for at_hz in MIN_CUTOFF_HZ * 2.0 ** np.arange(0.0, octaves, 1 / 48):
        below = levels_db[(bins_hz >= at_hz * _BELOW) & (bins_hz <= at_hz)]
        above = levels_db[(bins_hz >= at_hz * _ABOVE[0]) & (bins_hz <= at_hz * _ABOVE[1])]
        # Low in the spectrum, a band holds too few bins for its median to mean anything.
        if len(below) < 4 or len(above) < 4:
            continue
        level_db = np.median(below)
        above_db = np.quantile(above, 0.9)
        beyond = levels_db[bins_hz > at_hz * _ABOVE[1]]
        # Single bins beyond are pilots and whistles; a band that comes back is a hole's far side.
        returns = len(beyond) > 8 and np.quantile(beyond, 0.9) > above_db + _EDGE_DB
        is_empty = above_db <= empty_db + _NEARLY_EMPTY_DB
        fall_db = level_db - above_db
        # Where nothing is left above, less of a fall is proof enough: no partials can imitate it.
        if fall_db > best_db and fall_db >= (_EDGE_DB if is_empty else _STEEP_DB) and (is_empty or not returns):
            best_db, found = fall_db, Bandwidth(_flank(levels_db, bins_hz, at_hz), "hole" if returns else "edge")
    return found


def _flank(levels_db: np.ndarray, bins_hz: np.ndarray, at_hz: float) -> float:
    """Where the fall about `at_hz` begins: the last bin within 12 dB of what lies half an octave below it."""
    passed = np.median(levels_db[(bins_hz >= at_hz / 2) & (bins_hz <= at_hz * 2**-0.4)])
    near = (bins_hz >= at_hz * 2**-0.4) & (bins_hz <= at_hz * _ABOVE[0])
    within = bins_hz[near & (levels_db >= passed - _FLANK_DB)]
    return float(within[-1]) if len(within) else float(at_hz * 2**-0.4)


def _top(levels_db: np.ndarray, bins_hz: np.ndarray) -> float:
    """Where a sound that fills its rate ends: half the rate, or where the flank of what resampled it is 12 dB down."""
    half_hz = float(bins_hz[-1])
    # Medians of 5 bins: a whistle on the flank is no band.
    smooth_db = np.median(np.lib.stride_tricks.sliding_window_view(np.pad(levels_db, 2, mode="edge"), 5), axis=1)
    passed = np.median(smooth_db[(bins_hz >= _PASSED[0] * half_hz) & (bins_hz <= _PASSED[1] * half_hz)])
    last = int(np.flatnonzero(smooth_db >= passed - _FLANK_DB)[-1])
    return half_hz if last >= len(bins_hz) - 1 - _LOBE_BINS else float(bins_hz[last])
