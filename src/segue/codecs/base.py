"""The codec interface: waveform <-> latent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import ceil

import torch
from torch import Tensor

from segue.types import UserError


class Codec(ABC):
    """Turns waveforms [B, A, T] into latent frames [B, C, L] and back. Frozen: it never trains inside a diffusion run.

    A waveform has A = `audio_channels` channels: 1 (mono), or 2, of which the first is the left one. A codec takes and
    gives exactly as many as it has; whoever reads files makes them fit (`segue.audio.stereo.fitted`). How the two sides
    share the latents is the codec's own affair, as long as they come back in their places.

    Subclasses set these as attributes or properties:
        name: short name, as the command line knows it.
        source: what `load_codec` takes to make it again, a name or a path; not part of the fingerprint.
        sample_rate_hz: rate of the waveforms.
        audio_channels: A, channels of the waveforms. Where a codec takes 1 or 2 by choice, its fingerprint says
            "audio_channels" where it is 2, and nothing where it is 1.
        channels: C, latent channels.
        hop_samples: waveform samples per latent frame.
        statistics: "channel" where latents are standardised per channel, "global" where one mean and one standard
            deviation serve all channels (their relative scale carries meaning, as the bins of a spectrum do).
        levels: how many of the first channels are levels of frequency bands; 0 where channels belong to no bands.
            With levels a codec has `bands_below`, and super-resolution keeps the known bands as they are.
        pairs: [2, P] int64, channels that hold the real and the imaginary parts of P complex numbers; None where
            channels hold no such numbers.
    """

    name: str
    source: str
    sample_rate_hz: int
    audio_channels: int = 1
    channels: int
    hop_samples: int
    statistics: str = "channel"
    levels: int = 0
    pairs: Tensor | None = None

    def bands_below(self, cutoff_hz: Tensor) -> Tensor:
        """[B] cutoffs -> [B, C] bool: the channels of bands that lie wholly below the cutoff.

        Raises:
            NotImplementedError: the codec's channels belong to no bands (`levels` is 0).
        """
        raise NotImplementedError(f"channels of the codec {self.name} belong to no bands")

    @abstractmethod
    def encode(self, wave: Tensor) -> Tensor:
        """[B, A, T] float waveform in [-1, 1] -> [B, C, L] float32 latents, L = latent_frames(T).

        Raises:
            ValueError, UserError: as `check_wave`, which every codec calls first.
        """

    @abstractmethod
    def decode(self, latents: Tensor, samples: int) -> Tensor:
        """[B, C, L] latents -> [B, A, samples] float32 waveform."""

    @abstractmethod
    def fingerprint(self) -> dict:
        """JSON-able settings (and weight hash, where there are weights) that decide the latents; keys the cache."""

    def check_wave(self, wave: Tensor) -> None:
        """Refuse what is no waveform of this codec.

        Raises:
            ValueError: not [B, A, T].
            UserError: an empty waveform.
        """
        if wave.ndim != 3 or wave.shape[1] != self.audio_channels:
            raise ValueError(
                f"the codec {self.name} takes waveforms [B, {self.audio_channels}, T], not {list(wave.shape)}"
            )
        if not wave.shape[-1]:
            raise UserError("cannot encode a waveform of 0 samples; hint: leave empty clips out")

    def latent_frames(self, samples: int) -> int:
        """Latent frames of a waveform of `samples` samples."""
        return ceil(samples / self.hop_samples)

    @property
    def frame_rate_hz(self) -> float:
        """Latent frames per second."""
        return self.sample_rate_hz / self.hop_samples

    def to(self, device: torch.device | str) -> Codec:
        """Move what has weights; a codec without any returns itself."""
        return self
