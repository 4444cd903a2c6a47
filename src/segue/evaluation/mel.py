"""Spectrograms and band filters, shared by the note classifier, the spectral metrics and the report's pictures."""

from __future__ import annotations

import torch
from torch import Tensor


def stft_magnitude(wave: Tensor, n_fft: int, hop_samples: int) -> Tensor:
    """[B, T] -> [B, n_fft/2+1, 1 + floor(T/hop)] magnitudes: periodic Hann window, centred frames, zero padding."""
    window = torch.hann_window(n_fft, device=wave.device, dtype=wave.dtype)
    return torch.stft(
        wave, n_fft, hop_samples, window=window, center=True, pad_mode="constant", return_complex=True
    ).abs()


def triangular_bands(edges_hz: Tensor, n_fft: int, sample_rate_hz: int) -> Tensor:
    """Triangles of height 1 from edge k over centre k+1 to edge k+2: edges [bands + 2] -> filters [bands, n_fft/2+1].

    Slopes are at least one bin wide, so that a band narrower than a bin interpolates instead of staying empty.
    """
    bin_hz = sample_rate_hz / n_fft
    bins_hz = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * bin_hz
    # Edges k, k + 1 and k + 2 of every band, as columns against the bins.
    lower, centre, upper = (edges_hz.double()[i : len(edges_hz) - 2 + i, None] for i in range(3))
    rise = 1.0 - (centre - bins_hz) / (centre - lower).clamp(min=bin_hz)
    fall = 1.0 - (bins_hz - centre) / (upper - centre).clamp(min=bin_hz)
    return torch.minimum(rise, fall).clamp(min=0.0).float()


def mel_edges_hz(bands: int, f_min_hz: float, f_max_hz: float) -> Tensor:
    """Band edges [bands + 2], equally spaced on the HTK mel scale, mel = 2595 log10(1 + f / 700)."""
    low, high = (2595.0 * torch.log10(torch.tensor(1.0 + f / 700.0, dtype=torch.float64)) for f in (f_min_hz, f_max_hz))
    mel = low + (high - low) * torch.linspace(0.0, 1.0, bands + 2, dtype=torch.float64)
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


def mel_magnitude(
    wave: Tensor,
    sample_rate_hz: int,
    *,
    n_fft: int = 1024,
    hop_samples: int = 256,
    bands: int = 80,
    f_min_hz: float = 0.0,
    f_max_hz: float | None = None,
) -> Tensor:
    """[B, T] -> [B, bands, frames]: triangular HTK mel bands over STFT magnitudes (not power), not area-normalised."""
    edges = mel_edges_hz(bands, f_min_hz, f_max_hz or sample_rate_hz / 2.0)
    # In the wave's type and place: float64 waves get float64 filters.
    filters = triangular_bands(edges, n_fft, sample_rate_hz).to(wave)
    return filters @ stft_magnitude(wave, n_fft, hop_samples)
