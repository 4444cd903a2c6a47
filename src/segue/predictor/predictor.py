"""The whole predictor: a band-limited wave in, the same with its missing band out, in one pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segue.predictor.excitation import half_band_filter, harmonic_source, shift_index
from segue.predictor.network import PredictorConfig, PredictorNetwork, band_weights

FINE_INPUT_HZ = 4000.0  # below it the network gets every bin, above it levels of bands
_FLOOR = 1e-9  # of power in the features: what a 16-bit file's rounding leaves of a sound that is brought to 0.2
_JOIN_BINS = 2


@dataclass(frozen=True)
class Made:
    """What a predictor makes of a batch.

    Attributes:
        wave: [B, T] with its new band.
        levels: [B, L, bands] log10 of the power that each band was given.
        mean_levels: [B, L, bands] log10 of the mean power that it expects.
        mix: [B, L, 3, bands] shares of harmonic, shifted and noise excitation.
    """

    wave: Tensor
    levels: Tensor
    mean_levels: Tensor
    mix: Tensor


class BandPredictor(nn.Module):
    """Levels of the missing bands from a network; their fine structure from the low band (excitation.py) and noise.

    Three excitations are whitened: in every band and frame of 8 ms they have power 1. Their weighted sum is given the
    levels that the network predicts. Spectra are those of windows of 32 ms at a quarter hop, scaled so that white noise
    reads its variance.
    """

    window: Tensor
    weights: Tensor
    taps: Tensor

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.bf16 = False  # see PredictorNetwork.forward; a setting of training, not of the file
        weights = band_weights(config)
        bands, bins = weights.shape
        self.bin_hz = config.sample_rate_hz / config.window_samples
        self.fine_bins = min(bins, round(FINE_INPUT_HZ / self.bin_hz))
        # What is computed from the config is not saved.
        window = torch.hann_window(config.window_samples)
        self.register_buffer("window", window / window.square().sum().sqrt(), persistent=False)
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("taps", half_band_filter(), persistent=False)
        self.network = PredictorNetwork(config, self.fine_bins + 3 * bands, bands)

    def forward(self, low: Tensor, cutoff_hz: Tensor, noise: Tensor, mean_share: float = 0.0) -> Made:
        """One pass.

        Args:
            low: [B, T] at the config's rate, with nothing of use above its cutoff; training has its root mean square
                at about 0.2.
            cutoff_hz: [B], where each band ends.
            noise: [B, T] standard normal.
            mean_share: how far levels move from the ones that are least wrong in decibels (0) to those of the right
                mean power (1), which are higher.
        """
        spectrum = self.spectrum(low)
        bins = torch.arange(spectrum.shape[1], device=low.device)
        missing = (bins[None] * self.bin_hz > cutoff_hz[:, None]).float()
        # Excitations; only what lies above the cutoff counts.
        with torch.no_grad():
            source = self.spectrum(harmonic_source(low, self.taps, self.config.sample_rate_hz))
            index = shift_index(cutoff_hz / self.bin_hz, len(bins))
            shifted = spectrum.gather(1, index[..., None].expand_as(spectrum))
            raw = torch.stack([source, shifted, self.spectrum(noise)], dim=1)
            strengths = self.band_levels(raw.abs().square().flatten(0, 1), missing.repeat_interleave(3, dim=0))
            whitened = raw * _amplitude(-self.in_bins(strengths)).unflatten(0, (len(low), 3))
            features = self._features(spectrum, missing, strengths.unflatten(0, (len(low), 3))[:, 0])
        levels, excess, mix = self.network(features, self.bf16)

        # Each source by its share of the power, the sum at its level.
        shares = self.in_bins((mix + 1e-4).sqrt().transpose(1, 2).flatten(0, 1)).unflatten(0, (len(low), 3))
        given = levels + mean_share * excess
        made = (shares * whitened).sum(1) * _amplitude(self.in_bins(given))
        wave = self.wave(self._joined(spectrum, made, cutoff_hz, bins), low.shape[1])
        return Made(wave, given, levels.detach() + excess, mix)

    def spectrum(self, wave: Tensor) -> Tensor:
        """[B, T] -> complex [B, bins, L], frames centred, zeros beyond the ends."""
        size, hop = self.config.window_samples, self.config.hop_samples
        return torch.stft(wave, size, hop, window=self.window, pad_mode="constant", return_complex=True)

    def wave(self, spectrum: Tensor, samples: int) -> Tensor:
        """The inverse of `spectrum`."""
        size, hop = self.config.window_samples, self.config.hop_samples
        return torch.istft(spectrum, size, hop, window=self.window, length=samples)

    def band_levels(self, power: Tensor, counted: Tensor) -> Tensor:
        """[B, bins, L] power -> [B, L, bands] log10 of its mean in each band, over the bins [B, bins] that count."""
        weights = self.weights * counted[:, None]
        return ((weights @ power) / (weights.sum(-1, keepdim=True) + 1e-6) + 1e-12).log10().transpose(1, 2)

    def in_bins(self, levels: Tensor) -> Tensor:
        """[B, L, bands] -> [B, bins, L], in straight lines between the bands' centres."""
        return (levels @ self.weights).transpose(1, 2)

    def _features(self, spectrum: Tensor, missing: Tensor, harmonic: Tensor) -> Tensor:
        """[B, L, fine bins + 3 bands]: known bins and levels, which bands are known, levels of the harmonic source."""
        known = 1.0 - missing
        power = spectrum.abs().square()
        fine = _scaled((power[:, : self.fine_bins] + _FLOOR).log10()) * known[:, : self.fine_bins, None]
        share = (self.weights * known[:, None]).sum(-1) / self.weights.sum(-1)
        levels = _scaled(self.band_levels(power, known).clamp(min=-9.0)) * (share > 0.1)[:, None]
        shares = share[:, None].expand_as(levels)
        return torch.cat([fine.transpose(1, 2), levels, shares, _scaled(harmonic.clamp(min=-9.0))], dim=-1)

    def _joined(self, low: Tensor, high: Tensor, cutoff_hz: Tensor, bins: Tensor) -> Tensor:
        """The spectrum of `low` up to the cutoff, and that of `high` from two bins above it."""
        share = ((bins[None] - cutoff_hz[:, None] / self.bin_hz) / _JOIN_BINS).clamp(0, 1)[..., None]
        return low * (1.0 - share) + high * share


def _amplitude(levels: Tensor) -> Tensor:
    """Decades of power as factors of amplitude; exp takes a fourth of the time of a power of ten."""
    return (levels * (0.5 * math.log(10.0))).exp()


def _scaled(levels: Tensor) -> Tensor:
    """Decades of power, brought to a scale of about 1."""
    return (levels + 4.0) / 2.0
