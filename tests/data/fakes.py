"""A codec, a text encoder and a teacher that are small, exact and without weights."""

from __future__ import annotations

import zlib

import torch

from segue.codecs.base import Codec
from segue.conditioners.base import TextConditioner
from segue.ssl.base import Teacher


class FakeCodec(Codec):
    """Latents are the wave itself, cut into frames of `hop` samples: [B, hop, L]."""

    name = source = "fake"
    sample_rate_hz = 8000

    def __init__(self, hop: int = 100, statistics: str = "channel", gain: float = 1.0) -> None:
        self.channels = self.hop_samples = hop
        self.statistics, self.gain = statistics, gain

    def encode(self, wave):
        short = -wave.shape[1] % self.hop_samples
        wave = torch.nn.functional.pad(wave, (0, short))
        return self.gain * wave.unflatten(1, (-1, self.hop_samples)).transpose(1, 2).contiguous()

    def decode(self, latents, samples):
        return latents.transpose(1, 2).flatten(1)[:, :samples] / self.gain

    def fingerprint(self):
        return {"codec": "fake", "hop": self.hop_samples, "gain": self.gain}


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
