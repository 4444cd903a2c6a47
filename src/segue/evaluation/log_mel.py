"""A clip in 64 numbers that nobody trained: levels in mel bands and their changes.

This is for sounds that the note classifier does not know. It takes part in no training and needs no weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segue.evaluation.embeddings import Embedding, check_crop
from segue.evaluation.mel import mel_magnitude

BANDS = 32
N_FFT = 1024
HOP_SAMPLES = 256
FLOOR_DB = -20.0  # 68 below a full-scale sine: what lies lower is the tail's quantisation, not the sound
RATE_HZ = 16_000
DIM = 2 * BANDS


def log_mel_statistics(wave: Tensor, sample_rate_hz: int, seconds: Sequence[float] | None = None) -> np.ndarray:
    """[B, T] -> [B, 64] float64: mean and standard deviation over frames of 32 mel bands in dB, floored at -20 dB.

    Our definition. dB of a band's magnitude (a full-scale sine reads about +48); levels are kept, so loudness counts.

    Args:
        seconds: B lengths; frames whose middle lies beyond are left out. The whole clip by default.
    """
    mel = mel_magnitude(wave.double(), sample_rate_hz, n_fft=N_FFT, hop_samples=HOP_SAMPLES, bands=BANDS)
    level_db = 20.0 * torch.log10(mel.clamp(min=10 ** (FLOOR_DB / 20.0)))
    middles = torch.arange(level_db.shape[2]) * HOP_SAMPLES
    ends = torch.full((len(wave),), float("inf")) if seconds is None else sample_rate_hz * torch.tensor(seconds)
    # At least the first frame counts, however short the clip.
    inside = (middles < ends[:, None].clamp(min=1)).double()[:, None]
    mean = (level_db * inside).sum(2) / inside.sum(2)
    # In two passes, about the mean of the frames inside: padding must not widen the spread.
    deviation = ((level_db - mean[..., None]).square() * inside).sum(2) / inside.sum(2)
    return torch.cat([mean, deviation.sqrt()], dim=1).numpy()


class LogMelEmbedding(Embedding):
    """`log_mel_statistics` of the first `crop_sec` seconds of a clip, at 16 kHz."""

    def __init__(self, crop_sec: float = 10.0) -> None:
        """Raises:
        UserError: crop_sec is not positive.
        """
        self.name = "log-mel"
        self.sample_rate_hz = RATE_HZ
        self.dim = DIM
        self.crop_sec = check_crop(crop_sec)

    def card(self) -> dict:
        """See `Embedding.card`."""
        return {
            "name": self.name,
            "weights": "none",
            "layer": f"{BANDS} HTK mel bands of magnitudes, {N_FFT} / {HOP_SAMPLES}, dB, floor {FLOOR_DB:g}",
            "pooling": "mean and standard deviation over frames",
            "dim": self.dim,
            "sample_rate_hz": self.sample_rate_hz,
            "crop": f"first {self.crop_sec:g} s, shorter clips whole",
            "preprocessing": "mean of channels, soxr HQ",
        }

    def embed(self, wave: np.ndarray) -> dict[str, np.ndarray]:
        """See `Embedding.embed`."""
        cropped = torch.from_numpy(wave[: round(self.crop_sec * self.sample_rate_hz)].astype(np.float32))
        return {"embedding": log_mel_statistics(cropped[None], self.sample_rate_hz)[0]}
