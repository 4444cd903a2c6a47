"""Figures of an upper band that was generated: its levels, its mel spectrum, and how far its partials are there."""

from __future__ import annotations

import torch
from torch import Tensor

from segue.evaluation.mel import mel_magnitude, stft_magnitude

CELL_HZ = 250.0
CELL_SEC = 0.032
POWER_FLOOR = 1e-8  # of a bin, that of the published log-spectral distance
MEL_BANDS = 32
MEL_FLOOR = 1e-5
HNR_FRAME_SEC = 0.064
HNR_HOP_SEC = 0.016
PERIOD_SEC = (0.001, 0.0125)  # of a fundamental from 80 to 1,000 Hz
PERIODIC = 0.7  # autocorrelation of a frame that counts
HNR_DB = (-15.0, 30.0)
FEWEST_FRAMES = 8
_OVERSAMPLED = 4


def level_correlation(estimate: Tensor, reference: Tensor, sample_rate_hz: int, cutoff_hz: float) -> Tensor:
    """[B, T] pairs -> [B]: correlation of the dB levels of cells of 250 Hz by 32 ms above the cutoff (our definition).

    NaN where the reference's levels do not vary.
    """
    size = 2 * round(CELL_SEC * sample_rate_hz / 2)
    bins_hz = torch.arange(size // 2 + 1) * (sample_rate_hz / size)
    cells = ((bins_hz - cutoff_hz) / CELL_HZ).floor().long()
    levels = []
    for wave in (estimate, reference):
        power = stft_magnitude(wave.double(), size, size // 2).square()
        # The mean power of each cell; bins below the cutoff are in none.
        mean = [power[:, cells == cell].mean(1) for cell in range(int(cells.max())) if (cells == cell).any()]
        levels.append(torch.stack(mean, dim=1).clamp(min=POWER_FLOOR).log10().flatten(1))
    centred = [x - x.mean(1, keepdim=True) for x in levels]
    return (centred[0] * centred[1]).sum(1) / (centred[0].norm(dim=1) * centred[1].norm(dim=1))


def log_mel_l1_above(estimate: Tensor, reference: Tensor, sample_rate_hz: int, cutoff_hz: float) -> Tensor:
    """[B, T] pairs -> [B]: mean |ln difference| of 32 mel bands between the cutoff and half the rate, floor 1e-5."""
    made, true = (
        mel_magnitude(x.double(), sample_rate_hz, bands=MEL_BANDS, f_min_hz=cutoff_hz).clamp(min=MEL_FLOOR).log()
        for x in (estimate, reference)
    )
    return (made - true).abs().mean(dim=(1, 2))


def harmonic_to_noise_db(wave: Tensor, reference: Tensor, sample_rate_hz: int, cutoff_hz: float) -> Tensor:
    """[B, T] -> [B]: mean harmonic-to-noise ratio in dB above the cutoff, over the frames where the reference is
    periodic; NaN where fewer than 8 frames are.

    Boersma's ratio r / (1 - r) (1993, eq. 4, with his correction for the window), in frames of 64 ms, of what lies
    above the cutoff. The period is that of the whole reference, where its autocorrelation exceeds 0.7; the ratio is
    taken within 2 samples of it and kept within -15 to 30 dB (our definition).
    """
    period = _autocorrelation(_frames(reference, sample_rate_hz), 1)
    shortest, longest = (round(sec * sample_rate_hz) for sec in PERIOD_SEC)
    best, lag = period[..., shortest : longest + 1].max(-1)
    lag = lag + shortest
    high = _autocorrelation(_frames(_above(wave, sample_rate_hz, cutoff_hz), sample_rate_hz), _OVERSAMPLED)
    # Upper partials turn fast: the peak near the period is looked for between samples.
    near = torch.arange(-2 * _OVERSAMPLED, 2 * _OVERSAMPLED + 1)
    r = high.gather(-1, (lag[..., None] * _OVERSAMPLED + near).clamp(max=high.shape[-1] - 1)).amax(-1)
    r = r.clamp(1e-6, 1 - 1e-6)
    ratio_db = (10.0 * (r / (1 - r)).log10()).clamp(*HNR_DB)
    counted = best > PERIODIC
    means = (ratio_db * counted).sum(1) / counted.sum(1).clamp(min=1)
    return torch.where(counted.sum(1) >= FEWEST_FRAMES, means, torch.full_like(means, float("nan")))


def harmonic_to_noise_error_db(estimate: Tensor, reference: Tensor, sample_rate_hz: int, cutoff_hz: float) -> Tensor:
    """[B, T] pairs -> [B]: the absolute difference of their `harmonic_to_noise_db`."""
    made, true = (harmonic_to_noise_db(x, reference, sample_rate_hz, cutoff_hz) for x in (estimate, reference))
    return (made - true).abs()


def _above(wave: Tensor, sample_rate_hz: int, cutoff_hz: float) -> Tensor:
    spectrum = torch.fft.rfft(wave.double())
    bins_hz = torch.arange(spectrum.shape[-1]) * (sample_rate_hz / wave.shape[-1])
    return torch.fft.irfft(spectrum * (bins_hz > cutoff_hz), wave.shape[-1])


def _frames(wave: Tensor, sample_rate_hz: int) -> Tensor:
    samples, hop = (round(sec * sample_rate_hz) for sec in (HNR_FRAME_SEC, HNR_HOP_SEC))
    padded = torch.nn.functional.pad(wave.double(), (0, max(0, samples - wave.shape[-1])))
    return padded.unfold(-1, samples, hop)


def _autocorrelation(frames: Tensor, oversampled: int) -> Tensor:
    """[B, N, samples] -> [B, N, lags]: of Hann-windowed frames, divided by that of the window, 1 at lag 0."""
    window = torch.hann_window(frames.shape[-1], dtype=frames.dtype)
    size = 4 * frames.shape[-1]

    def of(x: Tensor) -> Tensor:
        power = torch.fft.rfft(x, size).abs().square()
        return torch.fft.irfft(power, size * oversampled)[..., : frames.shape[-1] * oversampled // 2]

    own = of((frames - frames.mean(-1, keepdim=True)) * window)
    shape = of(window)
    return own / (own[..., :1] + 1e-12) / (shape / shape[0])
