"""Figures of generated recordings: how near they come to what was recorded under their captions, and what they are.

They need no trained network: a clip is the levels of its mel bands and their changes (`log_mel_statistics`), taken at
the clip's own rate, so that everything up to half of that counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segue.evaluation.bootstrap import bootstrap_interval
from segue.evaluation.frechet import frechet_measure
from segue.evaluation.kernel import kernel_audio_distance
from segue.evaluation.log_mel import log_mel_statistics
from segue.evaluation.mel import stft_magnitude
from segue.evaluation.stereo import width_db
from segue.types import UserError

END_DB = -40.0  # below the loudest 10 ms: what is softer than that to the end is no part of the sound
TREBLE_HZ = 10_000.0
_FRAME_SEC = 0.01
_SILENT_DB = -120.0


def statistics_of(waves: Tensor, sample_rate_hz: int) -> np.ndarray:
    """[B, A, T] -> [B, 64] float64: `log_mel_statistics` of the mean of the sides, over the whole window."""
    # In parts, since spectrograms in float64 are large.
    return np.concatenate([log_mel_statistics(part.mean(1), sample_rate_hz) for part in waves.split(16)])


def caption_distance(made: np.ndarray, recorded: np.ndarray, captions: Sequence[str]) -> dict:
    """How far clips are from what was recorded under their own captions (our definition).

    The distance of two clips is the mean absolute difference of their statistics, in dB. "chance" is the mean distance
    of a made clip to the recordings of all other captions: what a generator would reach that pays no attention to its
    caption.

    Args:
        made, recorded: [N, 64] statistics; row i of both has caption i.
        captions: N.

    Returns:
        {"value", "interval" (95 % bootstrap over clips), "chance", "n"}; no chance where all captions are the same.

    Raises:
        UserError: fewer than two clips.
    """
    if len(made) < 2:
        raise UserError("a distance to recordings needs at least 2 clips for its interval")
    own = np.abs(made - recorded).mean(axis=1)
    apart = np.abs(made[:, None] - recorded[None]).mean(axis=2)
    names = np.array(captions)
    other = names[:, None] != names[None]
    found = {
        "value": float(own.mean()),
        "interval": list(bootstrap_interval(lambda i: own[i].mean(), len(own))),
        "n": len(own),
    }
    return found | ({"chance": float(apart[other].mean())} if other.any() else {})


def set_distances(made: np.ndarray, recorded: np.ndarray) -> dict:
    """Kernel and Fréchet distance of two sets of statistics [N, 64], with intervals.

    The Fréchet distance is left out where a set has fewer clips than statistics.

    Returns:
        {"kernel_distance", "kernel_distance_interval", "clips"}, and "frechet_distance" with its interval.
    """
    kernel = kernel_audio_distance(made, recorded)
    found = {"kernel_distance": kernel.value, "kernel_distance_interval": list(kernel.interval), "clips": len(made)}
    if min(len(made), len(recorded)) >= made.shape[1]:
        frechet = frechet_measure(made, recorded)
        found |= {"frechet_distance": frechet.value, "frechet_distance_interval": list(frechet.interval)}
    return found


def described(waves: Tensor, sample_rate_hz: int) -> dict[str, list[float]]:
    """What the sounds of a set [B, A, T] are: of each figure the lower quartile, the median, and the upper quartile.

    "length_sec": see `sounding_sec`. "level_db": of the sounding part, in dB below a full-scale square wave.
    "treble_db": level above 10 kHz against the whole. "width_db", of two sides: `stereo.width_db`.
    """
    lengths = sounding_sec(waves, sample_rate_hz)
    ends = [max(1, round(seconds * sample_rate_hz)) for seconds in lengths.tolist()]
    levels = [_db(wave[:, :end].double().square().mean()) for wave, end in zip(waves, ends)]
    figures = {"length_sec": lengths, "level_db": torch.stack(levels)}
    if sample_rate_hz > 2 * TREBLE_HZ:
        figures["treble_db"] = treble_db(waves, sample_rate_hz)
    if waves.shape[1] == 2:
        figures["width_db"] = width_db(waves)
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    return {name: values.double().quantile(quartiles).tolist() for name, values in figures.items()}


def sounding_sec(waves: Tensor, sample_rate_hz: int) -> Tensor:
    """[B, A, T] -> [B]: when a sound ends, the last 10 ms that are within 40 dB of its loudest ones (our definition).

    A silent clip ends at 0.
    """
    size = max(1, round(_FRAME_SEC * sample_rate_hz))
    padded = torch.nn.functional.pad(waves, (0, -waves.shape[-1] % size))
    power = padded.double().unflatten(-1, (-1, size)).square().mean(dim=(1, 3))
    loudest = power.amax(dim=1, keepdim=True)
    sounds = (power >= loudest * 10 ** (END_DB / 10)) & (loudest > 0)
    last = (sounds * torch.arange(1, power.shape[1] + 1)).amax(dim=1)
    return (last * size).clamp(max=waves.shape[-1]).double() / sample_rate_hz


def treble_db(waves: Tensor, sample_rate_hz: int) -> Tensor:
    """[B, A, T] -> [B]: power above 10 kHz over the whole, in dB; -120 where there is none."""
    found = []
    for wave in waves:
        power = stft_magnitude(wave, 2048, 512).double().square().sum(dim=(0, 2))
        first = int(TREBLE_HZ * 2048 / sample_rate_hz) + 1
        found.append(_db(power[first:].sum() / power.sum().clamp(min=1e-30)))
    return torch.stack(found)


def _db(power: Tensor) -> Tensor:
    return (10 * power.clamp(min=1e-30).log10()).clamp(min=_SILENT_DB)
