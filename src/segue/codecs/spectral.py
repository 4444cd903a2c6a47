"""The codec without weights: an STFT with compressed magnitudes, inverted to float32 accuracy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.codecs.base import Codec
from segue.codecs.sides import left_right, mid_side
from segue.types import UserError


class SpectralCodec(Codec):
    """Complex STFT, square-root Hann window at half overlap (a tight frame), magnitudes raised to `compression`.

    Channels are the real parts of every bin (DC and Nyquist included), then the imaginary parts of the bins between:
    DC and Nyquist have none, so no channel is constantly zero and C is the window's length. A full-scale sine reads 1.
    Of a stereo waveform the mid, (left + right) / 2, has the first half of the channels and the side,
    (left - right) / 2, the second: a mono recording has a side of exactly zero, and comes back as exactly mono.

    Args:
        sample_rate_hz: any rate; the window is about 32 ms (512 samples at 16 kHz), the hop half of it.
        compression: c in S |S|^(c-1); 0.3 brings 100 dB of dynamic range down to 30.
        audio_channels: A, 1 or 2.

    Raises:
        UserError: a rate below 1 kHz, compression outside (0, 1], or neither one nor two channels.
    """

    name = "spectral"
    statistics = "global"

    def __init__(self, sample_rate_hz: int = 16000, compression: float = 0.3, audio_channels: int = 1) -> None:
        if audio_channels not in (1, 2):
            raise UserError(f"{audio_channels} channels: the spectral codec takes 1 or 2")
        if sample_rate_hz < 1000:
            raise UserError(f"sample rate {sample_rate_hz} Hz is too low for the spectral codec; hint: 1000 Hz or more")
        if not 0 < compression <= 1:
            raise UserError(f"compression {compression} is outside (0, 1]; hint: 0.3 is the default")
        self.sample_rate_hz = sample_rate_hz
        self.compression = compression
        self.hop_samples = 16 * round(sample_rate_hz / 1000)
        self.audio_channels = audio_channels
        self.window_samples = 2 * self.hop_samples
        self.channels = audio_channels * self.window_samples
        # In float64 before the root: the two halves of the frame must add up to 1 as exactly as float32 allows.
        self.window = torch.hann_window(self.window_samples, dtype=torch.float64).sqrt().float()
        self.scale = 2 / self.window.sum().item()

    def encode(self, wave: Tensor) -> Tensor:
        """[B, A, T] -> [B, C, L]; see `Codec.encode` for what it raises."""
        self.check_wave(wave)
        if self.audio_channels == 2:
            wave = mid_side(wave)
        # Mid and side as waveforms of their own, whose channels then follow each other.
        return self._analysed(wave.flatten(0, 1)).unflatten(0, wave.shape[:2]).flatten(1, 2)

    def decode(self, latents: Tensor, samples: int) -> Tensor:
        """[B, C, L] -> [B, A, samples]: the least-squares inverse, exact for latents of a waveform."""
        parts = latents.unflatten(1, (self.audio_channels, -1))
        wave = self._synthesised(parts.flatten(0, 1), samples).unflatten(0, parts.shape[:2])
        return left_right(wave) if self.audio_channels == 2 else wave

    def _analysed(self, wave: Tensor) -> Tensor:
        """[B, T] -> [B, window_samples, L]."""
        padding = self.latent_frames(wave.shape[-1]) * self.hop_samples - wave.shape[-1]
        # Half a hop on either side: every sample then lies under two windows.
        side = self.hop_samples // 2
        padded = F.pad(wave.float(), (side, padding + side))
        window = self.window.to(wave.device)
        frames = padded.unfold(-1, self.window_samples, self.hop_samples) * window
        spectrum = torch.fft.rfft(frames).transpose(1, 2) * self.scale
        spectrum = _with_power(spectrum, self.compression)
        # DC and Nyquist have no imaginary part.
        return torch.cat([spectrum.real, spectrum.imag[:, 1:-1]], dim=1)

    def _synthesised(self, latents: Tensor, samples: int) -> Tensor:
        """[B, window_samples, L] -> [B, samples]."""
        bins = self.hop_samples + 1
        latents = latents.float()
        imag = F.pad(latents[:, bins:], (0, 0, 1, 1))
        spectrum = _with_power(torch.complex(latents[:, :bins], imag), 1 / self.compression) / self.scale
        window = self.window.to(latents.device)
        frames = torch.fft.irfft(spectrum.transpose(1, 2), self.window_samples) * window
        halves = frames.unflatten(-1, (2, -1))
        squares = (window**2).expand(frames.shape).unflatten(-1, (2, -1))
        wave, envelope = (_overlap(x) for x in (halves, squares))
        side = self.hop_samples // 2
        return (wave / envelope.clamp_min(1e-8))[:, side : side + samples]

    def fingerprint(self) -> dict:
        """The settings that decide the latents."""
        return {
            "codec": self.name,
            "version": 1,
            "sample_rate_hz": self.sample_rate_hz,
            "window_samples": self.window_samples,
            "hop_samples": self.hop_samples,
            "compression": self.compression,
            # Named only then, so that mono caches stay what they are.
            **({"audio_channels": 2} if self.audio_channels == 2 else {}),
        }


def _with_power(spectrum: Tensor, exponent: float) -> Tensor:
    """Raise magnitudes to `exponent`, keep phases; 0 stays 0, and no subnormal magnitude overflows on the way."""
    magnitude = spectrum.abs()
    gain = torch.where(magnitude > 0, magnitude.clamp_min(1e-30) ** (exponent - 1), torch.zeros_like(magnitude))
    return spectrum * gain


def _overlap(halves: Tensor) -> Tensor:
    """Frames of two halves [B, L, 2, hop], each overlapping the next by one half -> [B, (L + 1) hop]."""
    return (F.pad(halves[:, :, 0], (0, 0, 0, 1)) + F.pad(halves[:, :, 1], (0, 0, 1, 0))).flatten(1)
