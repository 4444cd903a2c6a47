"""What the predictor learns from: levels of the missing bands, their mean power, and spectra of the whole result."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segue.predictor import BandPredictor, Made

WINDOW, HOP = 2048, 512  # those of the published log-spectral distance
SPECTRUM_FLOOR = 1e-8  # of power in a file's own scale, that of the published log-spectral distance
CONTRAST_BINS = 32
LEVEL_FLOOR = -9.0  # decades; what lies below it is as good as silent
MOST_EXCESS = 1.5  # decades by which a true level may exceed an expected one before it counts no more


def losses(model: BandPredictor, made: Made, wave: Tensor, cutoff_hz: Tensor, gain: Tensor) -> dict[str, Tensor]:
    """The losses of a batch, each a number.

    Args:
        made: what the model made of the waves without their top.
        wave: [B, T] true, at the level of the model's input.
        cutoff_hz: [B].
        gain: [B] by which the waves had been multiplied to bring them there.

    Returns:
        "level": L1 of band levels in decades of power. "power": the Itakura-Saito distance of the expected mean power,
        whose minimum is the mean. "spectrum": the log-spectral distance above the cutoff in decades. "contrast": how
        far the new band has as much of peaks and valleys as the true one.
    """
    bins_hz = torch.arange(model.weights.shape[1], device=wave.device) * model.bin_hz
    missing = (bins_hz[None] > cutoff_hz[:, None]).float()
    true = model.band_levels(model.spectrum(wave).abs().square(), missing).clamp(min=LEVEL_FLOOR)
    # Bands that are at least half missing.
    counted = ((model.weights * missing[:, None]).sum(-1) > 0.5 * model.weights.sum(-1)).float()[:, None]
    share = counted.sum() * true.shape[1]
    level = ((made.levels.clamp(min=LEVEL_FLOOR - 0.5) - true).abs() * counted).sum() / share
    over = (true - made.mean_levels).clamp(max=MOST_EXCESS) * math.log(10.0)
    power = ((over.exp() - over - 1.0) * counted).sum() / share
    logs = log_spectra(made.wave, gain), log_spectra(wave, gain)
    above = above_cutoff(cutoff_hz, model.config.sample_rate_hz)
    spectrum, contrast = spectral_distance(*logs, above), contrast_distance(*logs, above)
    return {"level": level, "power": power, "spectrum": spectrum, "contrast": contrast}


def above_cutoff(cutoff_hz: Tensor, sample_rate_hz: int) -> Tensor:
    """[B, bins, 1] of ones above each cutoff, else zeros."""
    bins_hz = torch.arange(WINDOW // 2 + 1, device=cutoff_hz.device) * (sample_rate_hz / WINDOW)
    return (bins_hz[None] > cutoff_hz[:, None]).float()[..., None]


def log_spectra(wave: Tensor, gain: Tensor) -> Tensor:
    """log10 of the power [B, bins, L] of waves [B, T], in the files' own scale, where the floor means something."""
    window = torch.hann_window(WINDOW, device=wave.device)
    x = torch.stft(wave / gain[:, None], WINDOW, HOP, window=window, pad_mode="constant", return_complex=True)
    return (x.real.square() + x.imag.square() + SPECTRUM_FLOOR).log10()


def spectral_distance(made: Tensor, true: Tensor, above: Tensor) -> Tensor:
    """Log-spectral distance above the cutoff: mean over frames of the root mean square over bins, in decades."""
    squares = ((made - true).square() * above).sum(1) / above.sum(1)
    return (squares + 1e-4).sqrt().mean()


def contrast_distance(made: Tensor, true: Tensor, above: Tensor) -> Tensor:
    """L1 between the standard deviations of log power over each 32 bins: partials stand out, noise does less.

    The distance of spectra alone prefers what is smoother than any sound is.
    """
    groups = [x[:, 1:].unflatten(1, (-1, CONTRAST_BINS)) for x in (made, true, above)]
    made_std, true_std = ((x.var(dim=2) + 1e-4).sqrt() for x in groups[:2])
    counted = groups[2].amin(dim=2)
    return ((made_std - true_std).abs() * counted).sum() / (counted.sum() * made_std.shape[-1])
