"""Signal distances between an estimate and its reference: from pairs [B, T] to one number a clip, [B]."""

from __future__ import annotations

import torch
from torch import Tensor

from segue.metrics.mel import mel_magnitude, stft_magnitude
from segue.types import UserError


def log_mel_l1(
    estimate: Tensor,
    reference: Tensor,
    sample_rate_hz: int,
    *,
    n_fft: int = 1024,
    hop_samples: int = 256,
    bands: int = 80,
    floor: float = 1e-5,
) -> Tensor:
    """Mean over frames and bands of |ln max(mel(estimate), floor) - ln max(mel(reference), floor)|; nepers, 0 is equal.

    mel: HTK bands over STFT magnitudes (`mel_magnitude`). Not scale-invariant: a gain of g adds ln g where nothing is
    below the floor. The figure belongs to its parameters; never compare it with another toolkit's.
    """
    _check_pair(estimate, reference)
    logs = (
        mel_magnitude(x, sample_rate_hz, n_fft=n_fft, hop_samples=hop_samples, bands=bands).clamp(min=floor).log()
        for x in (estimate, reference)
    )
    return (next(logs) - next(logs)).abs().mean(dim=(1, 2))


def log_spectral_distance(
    estimate: Tensor, reference: Tensor, *, n_fft: int = 2048, hop_samples: int = 512, floor: float = 1e-8
) -> Tensor:
    """LSD = mean over frames of sqrt(mean over bins of (log10 |reference|^2 / |estimate|^2)^2), in decades of power.

    The defaults are the preset of NU-Wave 2, AP-BWE and AERO: 2048/512, squared magnitudes clamped at 1e-8. Not
    scale-invariant; never compare across presets or papers.
    """
    _check_pair(estimate, reference)
    power = [stft_magnitude(x, n_fft, hop_samples).square().clamp(min=floor) for x in (estimate, reference)]
    return (power[1].log10() - power[0].log10()).square().mean(dim=1).sqrt().mean(dim=1)


def snr_db(estimate: Tensor, reference: Tensor) -> Tensor:
    """10 log10(|reference|^2 / |estimate - reference|^2) in dB, computed in float64; infinite where they are equal."""
    _check_pair(estimate, reference)
    estimate, reference = estimate.double(), reference.double()
    return 10.0 * torch.log10(reference.square().sum(-1) / (estimate - reference).square().sum(-1))


def si_sdr_db(estimate: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, eq. 3), in float64, without mean removal.

    The reference is scaled by <estimate, reference> / |reference|^2 before the ratio is taken.
    """
    _check_pair(estimate, reference)
    estimate, reference = estimate.double(), reference.double()
    scale = (estimate * reference).sum(-1, keepdim=True) / reference.square().sum(-1, keepdim=True)
    target = scale * reference
    return 10.0 * torch.log10(target.square().sum(-1) / (estimate - target).square().sum(-1))


def _check_pair(estimate: Tensor, reference: Tensor) -> None:
    if estimate.ndim != 2 or estimate.shape != reference.shape:
        raise UserError(
            f"expected two batches [B, T] of equal shape; got {list(estimate.shape)} and {list(reference.shape)}"
        )
