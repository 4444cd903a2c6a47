"""Band levels apart from fine structure: the spectral codec, split as Opus splits a spectrum into gain and shape."""

from __future__ import annotations

import torch
from torch import Tensor

from segue.codecs.spectral import SpectralCodec

BAND_BINS = 8  # 250 Hz
FLOOR = 0.005  # of a compressed level: 155 dB below a full-scale sine, under the floor of every published LSD
OFFSET = 2.5  # keeps levels near zero, where float16 is fine


class GainShapeCodec(SpectralCodec):
    """The spectral codec, with the level of every band of 250 Hz in a channel of its own.

    Channels are hop_samples / 8 levels, ln(rms + FLOOR) + OFFSET of the band's compressed magnitudes, then the spectral
    codec's channels over exp of their band's level: about 1 in every band, loud or silent, so that a generative model
    spends its accuracy on relative error, which is what matters to listeners and to LSD. Decoding gives each band the
    rms that its level says, whatever the rms of its shape: an average over what could have been, which few sampling
    steps return, has the right shape at too low a level, and a third of it in a compressed level is five times in
    power. Exact to float32 accuracy on latents of a waveform, as the spectral codec is. Gain-shape coding: RFC 6716,
    section 4.3; bands, floor and the use in diffusion: our definition. Of a stereo waveform come the levels of the mid,
    then those of the side, then the shapes of both.
    """

    name = "gain-shape"
    statistics = "channel"

    def __init__(self, sample_rate_hz: int = 16000, compression: float = 0.3, audio_channels: int = 1) -> None:
        super().__init__(sample_rate_hz, compression, audio_channels)
        self.bands = self.hop_samples // BAND_BINS
        self.levels = audio_channels * self.bands
        self.channels = audio_channels * (self.bands + self.window_samples)
        # The last band takes the bins that are left over, Nyquist's among them.
        band = (torch.arange(self.hop_samples + 1) // BAND_BINS).clamp(max=self.bands - 1)
        # Real parts of all bins, then imaginary parts of those between the first and the last.
        self._band = torch.cat([band, band[1:-1]])  # of each channel of the spectral codec
        # Of each side's shape: bins between the first and the last, which have no imaginary part.
        real = torch.arange(1, self.hop_samples)
        pairs = torch.stack([real, real + self.hop_samples]) + self.levels
        self.pairs = torch.cat([pairs + side * self.window_samples for side in range(audio_channels)], dim=1)
        counts = torch.bincount(band, minlength=self.bands).float()
        self._sum = torch.zeros(self.bands, self.window_samples)  # squares of channels -> mean squares of bands
        # A matrix instead of a loop: one product gives all bands.
        self._sum[self._band, torch.arange(self.window_samples)] = 1 / counts[self._band]

    def encode(self, wave: Tensor) -> Tensor:
        """[B, A, T] -> [B, C, L]; see `Codec.encode` for what it raises."""
        parts = super().encode(wave).unflatten(1, (self.audio_channels, -1))
        # All levels first, as callers count on it.
        return torch.cat([parts[:, :, : self.bands].flatten(1, 2), parts[:, :, self.bands :].flatten(1, 2)], dim=1)

    def decode(self, latents: Tensor, samples: int) -> Tensor:
        """[B, C, L] -> [B, A, samples]."""
        parts = [part.unflatten(1, (self.audio_channels, -1)) for part in latents.tensor_split([self.levels], dim=1)]
        return super().decode(torch.cat(parts, dim=2).flatten(1, 2), samples)

    def _analysed(self, wave: Tensor) -> Tensor:
        """[B, T] -> [B, bands + window_samples, L]."""
        spectrum = super()._analysed(wave)
        level = (self._rms(spectrum) + FLOOR).log()
        # Divided by the level, every band is about 1, however soft.
        return torch.cat([level + OFFSET, spectrum * (-level).exp()[:, self._band.to(wave.device)]], dim=1)

    def _synthesised(self, latents: Tensor, samples: int) -> Tensor:
        """[B, bands + window_samples, L] -> [B, samples]."""
        latents = latents.float()
        level = latents[:, : self.bands] - OFFSET
        shape = latents[:, self.bands :]
        # Levels beyond full scale by 60 dB come from a model that has not learned yet; raised to 1 / c they overflow.
        wanted = (level.clamp(max=2.0).exp() - FLOOR).clamp_min(0.0)
        # The shape's own level is taken out first: averaging may have lowered it.
        gain = wanted / self._rms(shape).clamp_min(1e-12)
        return super()._synthesised(shape * gain[:, self._band.to(latents.device)], samples)

    def bands_below(self, cutoff_hz: Tensor) -> Tensor:
        """[B] cutoffs -> [B, C] bool: the channels of bands that lie wholly below (a bin over, where edges round)."""
        edges_hz = (torch.arange(self.bands) + 1) * BAND_BINS * self.sample_rate_hz / self.window_samples
        slack_hz = self.sample_rate_hz / self.window_samples / 2
        # Half a bin of slack: a cutoff that should be a band's edge may lie below it by rounding.
        below = edges_hz <= cutoff_hz[:, None].cpu() + slack_hz
        sides = self.audio_channels
        return torch.cat([below.repeat(1, sides), below[:, self._band].repeat(1, sides)], dim=1).to(cutoff_hz.device)

    def fingerprint(self) -> dict:
        """The settings that decide the latents."""
        return super().fingerprint() | {"codec": self.name, "band_bins": BAND_BINS, "floor": FLOOR, "offset": OFFSET}

    def _rms(self, spectrum: Tensor) -> Tensor:
        """[B, 2 hop, L] -> [B, bands, L]: root mean square of each band's magnitudes."""
        return torch.einsum("kc,bcl->bkl", self._sum.to(spectrum.device), spectrum.square()).sqrt()
