"""Before hours of encoding: does the codec give back what it was given?

A codec whose weights never loaded returns noise, and a model trained on it learns noise; other trainers' users found
out after days.
"""

from __future__ import annotations

from statistics import median

import torch
from torch import Tensor

from segue.codecs.base import Codec
from segue.types import UserError

WORST = 0.9


@torch.inference_mode()
def round_trip_error(codec: Codec, waves: Tensor) -> float:
    """Spectral convergence of decode(encode(x)): | |X| - |X'| | / | |X| | over STFT magnitudes (our definition of bad).

    0 is perfect; silence in place of sound gives 1, noise of the same loudness more; a codec that
    keeps the envelope but not the phases of a noisy sound comes to about 0.65.

    Args:
        codec: what is checked.
        waves: [B, A, T] at the codec's rate.
    """
    window = torch.hann_window(512)
    returned = codec.decode(codec.encode(waves), waves.shape[-1]).float().cpu()
    # A codec that diverges must not pass by way of a NaN that compares false.
    if not bool(torch.isfinite(returned).all()):
        return float("inf")
    wanted, got = (
        torch.stft(w.flatten(0, 1), 512, 128, window=window, return_complex=True, pad_mode="constant").abs()
        for w in (waves.cpu(), returned)
    )
    return float((wanted - got).norm() / wanted.norm().clamp(min=1e-9))


def check_round_trip(codec: Codec, waves: Tensor, name: str) -> float:
    """The median over clips of `round_trip_error`, where it is one that a model can live with.

    A working codec may be at a loss with a few sounds (a beep, recorded noise), and a broken one is with all of them.
    Silent clips tell nothing, and count only where there are no others.

    Args:
        waves: [B, A, T] at the codec's rate.
        name: of the codec, for the message.

    Raises:
        UserError: the codec returns something else than the sound.
    """
    sounding = [wave for wave in waves if bool(wave.any())] or list(waves)
    error = median(round_trip_error(codec, wave[None]) for wave in sounding)
    if error > WORST:
        raise UserError(
            f"--codec {name}: gives back noise, not the sound (spectral error {error:.2f}; 0 is perfect, {WORST} the "
            "most that is accepted); are its weights trained, and for sound like this?"
        )
    return error
