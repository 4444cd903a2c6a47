"""A model of super-resolution without weights: band replication, shaken by the noise it is given."""

import math

import torch

from segue.evaluation.baselines import band_replication


class StandIn:
    """What `SuperResolver` offers. Every frame of noise scales the new band around its hop, so misplaced noise is heard."""

    steps = 4
    cutoffs_hz = (2000.0, 12_000.0)

    audio_channels = 1

    def __init__(self, sample_rate_hz=16000, shake=0.5):
        self.sample_rate_hz = sample_rate_hz
        self.hop_samples = sample_rate_hz // 125  # band replication's own grid
        self.context_samples = sample_rate_hz // 8
        self.shake = shake
        self.calls = []

    def frames(self, samples):
        return math.ceil(samples / self.hop_samples)

    def noise(self, shape_frames, seed, first_frame):
        def one(frame):
            generator = torch.Generator().manual_seed(1_000_003 * seed + frame)
            return torch.randn(1, generator=generator)

        return torch.stack([one(first_frame + i) for i in range(shape_frames)], dim=1)

    def resolve(self, low, cutoff_hz, noise, *, steps):
        self.calls.append(tuple(low.shape))
        wide = band_replication(low.flatten(0, 1), self.sample_rate_hz, float(cutoff_hz[0])).view_as(low)
        gain = 1.0 + self.shake * noise.repeat_interleave(self.hop_samples, dim=-1)[:, :1, : low.shape[-1]]
        return low + gain * (wide - low)
