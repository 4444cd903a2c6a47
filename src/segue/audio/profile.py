"""How loud a sound is in each band, when it is loud and when it is quiet: what tells a telephone, a tape or an MP3."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_LOWEST_HZ = 50.0
_WIDTH_HZ = 100.0  # of a band below 4 kHz, where telephones end; a sixth of an octave above
_FINE_HZ = 4000.0
_SIXTH = 2 ** (1 / 6)
_LOUD, _QUIET = 0.95, 0.1
_PAUSE_SHARE = 1e-4  # of a loud frame's power: 40 dB below it is a pause
_EMPTY = 1e-10  # mean power of a bin in which a codec has left nothing: 100 dB below a full-scale sine


@dataclass(frozen=True)
class Profile:
    """A sound in bands of 100 Hz, and of a sixth of an octave from 4 kHz on (our definition).

    Attributes:
        edges_hz: [n + 1] of the bands.
        loud_db, quiet_db: [n] the 95 % and the 10 % quantile over frames of the mean power of a band's bins, where a
            full-scale sine reads 0 dB.
        empty_share: [n] share of the frames outside of pauses in which a band holds nothing.
    """

    edges_hz: np.ndarray
    loud_db: np.ndarray
    quiet_db: np.ndarray
    empty_share: np.ndarray

    def level_db(self, from_hz: float, to_hz: float) -> float:
        """Median loud level of the bands that lie within; -200 where none does."""
        inside = (self.edges_hz[:-1] >= from_hz) & (self.edges_hz[1:] <= to_hz)
        return float(np.median(self.loud_db[inside])) if inside.any() else -200.0


def profile(power: np.ndarray, sample_rate_hz: int) -> Profile:
    """The profile of [bins, frames] squared magnitudes, as `bandwidth.detect` takes them."""
    bins_hz = np.arange(len(power)) * sample_rate_hz / (2 * (len(power) - 1))
    edges = [_LOWEST_HZ]
    while edges[-1] < sample_rate_hz / 2:
        edges.append(edges[-1] + _WIDTH_HZ if edges[-1] < _FINE_HZ else edges[-1] * _SIXTH)
    edges[-1] = sample_rate_hz / 2
    starts = np.searchsorted(bins_hz, edges[:-1])
    counts = np.diff([*starts, len(bins_hz)])
    bands = np.add.reduceat(power, starts, axis=0, dtype=np.float64) / counts[:, None]
    whole = power.sum(axis=0, dtype=np.float64)
    sounds = whole >= _PAUSE_SHARE * np.quantile(whole, _LOUD)
    loud, quiet = (10.0 * np.log10(np.quantile(bands, share, axis=1) + 1e-20) for share in (_LOUD, _QUIET))
    return Profile(np.array(edges), loud, quiet, (bands[:, sounds] < _EMPTY).mean(axis=1))
