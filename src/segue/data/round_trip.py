"""Before hours of encoding: does the codec give back what it was given?

A codec whose weights never loaded returns noise, and a model trained on it learns noise; other trainers' users found
out after days.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from statistics import median

import torch
from torch import Tensor

from segue.codecs.base import Codec
from segue.types import UserError

WORST = 0.9
# Of levels, in dB: on 40 recordings, MP3 at 128 and 64 kbit/s is 0.5 and 1.4 dB off in the median, at 32 kbit/s 4.6 dB,
# and sound whose phases are drawn at random 6.3 dB (docs/log.md).
GOOD_DB = 1.5
USABLE_DB = 6.0
_SILENT_SHARE = 1e-6  # of the loudest level's power


@dataclass(frozen=True)
class RoundTrip:
    """What a codec gave back, in the median over clips.

    Attributes:
        spectral_error: see `round_trip_error`.
        level_error_db: see `level_error_db`.
    """

    spectral_error: float
    level_error_db: float

    @property
    def meaning(self) -> str:
        """ "good", "audible loss" or "unusable", with what separates them."""
        error_db = self.level_error_db
        word = "good" if error_db <= GOOD_DB else "audible loss" if error_db <= USABLE_DB else "unusable"
        return f"{word} (good up to {GOOD_DB:g} dB, unusable above {USABLE_DB:g} dB)"


@torch.inference_mode()
def returned_by(codec: Codec, waves: Tensor) -> Tensor:
    """decode(encode(waves)), [B, A, T] on the CPU."""
    return codec.decode(codec.encode(waves), waves.shape[-1]).float().cpu()


def round_trip_error(waves: Tensor, returned: Tensor) -> float:
    """Spectral convergence: | |X| - |X'| | / | |X| | over STFT magnitudes (our definition of bad).

    0 is perfect; silence in place of sound gives 1, noise of the same loudness more; a codec that
    keeps the envelope but not the phases of a noisy sound comes to about 0.65.

    Args:
        waves, returned: [B, A, T], before and after the codec.
    """
    window = torch.hann_window(512)
    # A codec that diverges must not pass by way of a NaN that compares false.
    if not bool(torch.isfinite(returned).all()):
        return float("inf")
    wanted, got = (
        torch.stft(w.flatten(0, 1), 512, 128, window=window, return_complex=True, pad_mode="constant").abs()
        for w in (waves.cpu(), returned)
    )
    return float((wanted - got).norm() / wanted.norm().clamp(min=1e-9))


def level_error_db(waves: Tensor, returned: Tensor, sample_rate_hz: int) -> float:
    """Mean absolute error of levels, in third octaves and windows of about 46 ms (our definition).

    What lies 60 dB below the clip's loudest level, or lower, is not counted. Levels say little of phases, which a codec
    may lose without harm, and much of what a codec dulls, blurs or leaves out.

    Args:
        waves, returned: [B, A, T], before and after the codec.
    """
    samples = 2 ** round(log2(0.046 * sample_rate_hz))
    bins_hz = torch.arange(samples // 2 + 1) * sample_rate_hz / samples
    edges_hz = 50 * 2 ** (torch.arange(40) / 3)
    # Low bands that hold no bin of their own belong to the next one.
    band = torch.unique(torch.bucketize(bins_hz, edges_hz), return_inverse=True)[1]
    powers = [
        torch.stft(
            w.cpu().flatten(0, 1), samples, samples // 2, window=torch.hann_window(samples), return_complex=True,
            pad_mode="constant",
        ).abs().square()
        for w in (waves, returned)
    ]  # fmt: skip
    wanted, got = (x.new_zeros(len(x), int(band.max()) + 1, x.shape[2]).index_add_(1, band, x) for x in powers)
    silent = _SILENT_SHARE * wanted.max()
    error_db = 10 * ((wanted + silent) / (got + silent).clamp(min=1e-20)).log10().abs()
    counted = error_db[wanted > silent]
    return float(counted.mean()) if len(counted) else 0.0


def check_round_trip(codec: Codec, waves: Tensor, name: str) -> RoundTrip:
    """What a codec gives back of some clips, where it is something that a model can live with.

    A working codec may be at a loss with a few sounds (a beep, recorded noise), and a broken one is with all of them.
    Silent clips tell nothing, and count only where there are no others.

    Args:
        waves: [B, A, T] at the codec's rate.
        name: of the codec, for the message.

    Raises:
        UserError: the codec returns something else than the sound.
    """
    sounding = [wave[None] for wave in waves if bool(wave.any())] or list(waves.split(1))
    pairs = [(wave, returned_by(codec, wave)) for wave in sounding]
    error = median(round_trip_error(*pair) for pair in pairs)
    if error > WORST:
        raise UserError(
            f"the codec {name} gives back noise, not the sound (spectral error {error:.2f}; 0 is perfect, {WORST} the "
            "most that is accepted); hint: take one whose weights are trained for sound like this"
        )
    return RoundTrip(error, median(level_error_db(*pair, codec.sample_rate_hz) for pair in pairs))
