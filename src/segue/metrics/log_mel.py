"""How a clip sounds in 64 numbers that nobody trained: levels in mel bands and their changes. A linear ear for them.

For sounds that no judge here knows. No run can have been guided by it, and it needs no weights from anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segue.metrics.embeddings import Embedding, check_crop
from segue.metrics.mel import mel_magnitude
from segue.types import UserError, import_extra

BANDS, N_FFT, HOP_SAMPLES = 32, 1024, 256
FLOOR_DB = -20.0  # 68 below a full-scale sine: what lies lower is the tail's quantisation, not the sound
RATE_HZ = 16_000
DIM = 2 * BANDS


def log_mel_statistics(wave: Tensor, sample_rate_hz: int, seconds: Sequence[float] | None = None) -> np.ndarray:
    """[B, T] -> [B, 64] float64: mean and standard deviation over frames of 32 mel bands in dB, floored at -20 dB.

    Our definition. dB of a band's magnitude (a full-scale sine reads about +48); levels are kept, so loudness counts.

    Args:
        seconds: B lengths; frames whose middle lies beyond are not heard. The whole clip by default.
    """
    mel = mel_magnitude(wave.double(), sample_rate_hz, n_fft=N_FFT, hop_samples=HOP_SAMPLES, bands=BANDS)
    level_db = 20.0 * torch.log10(mel.clamp(min=10 ** (FLOOR_DB / 20.0)))
    middles = torch.arange(level_db.shape[2]) * HOP_SAMPLES
    ends = torch.full((len(wave),), float("inf")) if seconds is None else sample_rate_hz * torch.tensor(seconds)
    heard = (middles < ends[:, None].clamp(min=1)).double()[:, None]
    mean = (level_db * heard).sum(2) / heard.sum(2)
    deviation = ((level_db - mean[..., None]).square() * heard).sum(2) / heard.sum(2)
    return torch.cat([mean, deviation.sqrt()], dim=1).numpy()


class LogMelEmbedding(Embedding):
    """`log_mel_statistics` of the first `crop_sec` seconds of a clip, at 16 kHz."""

    def __init__(self, crop_sec: float = 10.0) -> None:
        """Raises:
        UserError: crop_sec is not positive.
        """
        self.name, self.sample_rate_hz, self.dim, self.crop_sec = "log-mel", RATE_HZ, DIM, check_crop(crop_sec)

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


@dataclass(frozen=True)
class LinearEar:
    """Multinomial logistic regression from embeddings to classes.

    Attributes:
        classes: K names.
        weight: [K, E].
        bias: [K].
    """

    classes: tuple[str, ...]
    weight: np.ndarray
    bias: np.ndarray

    def hear(self, embedding: np.ndarray) -> list[str]:
        """[N, E] -> N names."""
        return [self.classes[k] for k in (embedding @ self.weight.T + self.bias).argmax(axis=1)]


def fit_linear_ear(embedding: np.ndarray, names: Sequence[str]) -> LinearEar:
    """Fit on N clips whose class is known; standardised features, L2 penalty of strength 10 (C = 0.1). Deterministic.

    Args:
        embedding: [N, E].
        names: class of each clip.

    Raises:
        UserError: fewer than two classes.
    """
    classes = sorted(set(names))
    if len(classes) < 2:
        raise UserError(f"a linear ear needs two classes at least, found {', '.join(classes) or 'none'}")
    linear = import_extra("sklearn.linear_model", "evaluate")
    mean, deviation = embedding.mean(axis=0), np.maximum(embedding.std(axis=0), 1e-6)
    model = linear.LogisticRegression(C=0.1, max_iter=1000)
    model.fit((embedding - mean) / deviation, [classes.index(name) for name in names])
    weight, bias = model.coef_, model.intercept_
    if len(classes) == 2:  # scikit-learn keeps one row for two classes
        weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
    weight = weight / deviation
    return LinearEar(tuple(classes), weight, bias - weight @ mean)
