"""A codec, a text encoder and a teacher that are small, exact and without weights."""

from __future__ import annotations

import zlib

import torch

from segue.codecs.base import Codec
from segue.conditioners.base import TextConditioner
from segue.ssl.base import Teacher


class FakeCodec(Codec):
    """Latents are the waves themselves, cut into frames of `hop` samples: [B, A * hop, L], one side behind the other."""

    name = source = "fake"
    sample_rate_hz = 8000

    def __init__(self, hop: int = 100, statistics: str = "channel", gain: float = 1.0, audio_channels: int = 1) -> None:
        self.hop_samples, self.channels = hop, hop * audio_channels
        self.statistics, self.gain, self.audio_channels = statistics, gain, audio_channels

    def encode(self, wave):
        self.check_wave(wave)
        short = -wave.shape[-1] % self.hop_samples
        wave = torch.nn.functional.pad(wave, (0, short))
        return self.gain * wave.unflatten(2, (-1, self.hop_samples)).transpose(2, 3).flatten(1, 2).contiguous()

    def decode(self, latents, samples):
        sides = latents.unflatten(1, (self.audio_channels, -1))
        return sides.transpose(2, 3).flatten(2)[..., :samples] / self.gain

    def fingerprint(self):
        stereo = {"audio_channels": 2} if self.audio_channels == 2 else {}
        return {"codec": "fake", "hop": self.hop_samples, "gain": self.gain, **stereo}


class FakeText(TextConditioner):
    """A token a word; its embedding depends on the word alone."""

    name, dim, max_tokens = "fake-text", 6, 12

    def encode(self, captions):
        longest = min(self.max_tokens, max(len(c.split()) for c in captions))
        tokens, mask = torch.zeros(len(captions), longest, self.dim), torch.zeros(len(captions), longest, dtype=bool)
        for b, caption in enumerate(captions):
            for k, word in enumerate(caption.split()[:longest]):
                generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
                tokens[b, k], mask[b, k] = torch.randn(self.dim, generator=generator), True
        return tokens, mask

    def fingerprint(self):
        return {"name": self.name}


class FakeTeacher(Teacher):
    """Energy and sign changes of 20 ms frames at 4 kHz."""

    name, sample_rate_hz, frame_rate_hz, dim = "fake-teacher", 4000, 50.0, 2

    def encode(self, wave):
        frames = torch.nn.functional.pad(wave, (0, -wave.shape[1] % 80)).unflatten(1, (-1, 80))
        turns = (frames[..., 1:] * frames[..., :-1] < 0).float().mean(-1)
        return torch.stack([frames.square().mean(-1), turns], dim=-1)

    def fingerprint(self):
        return {"name": self.name}
