"""Synthetic data of the examples in this folder: harmonic textures by class, and a fixed random network as teacher."""

import torch
from torch import Tensor
from torch.nn import functional as F

CLASSES = 8
CHANNELS = 16
FRAMES = 32
TEACHER_FRAMES = 25
TEACHER_DIM = 24


def clips(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Latents [B, C, L] and their classes [B]: a class is a pitch and a pattern over channels, a clip its own phase."""
    fixed = torch.Generator().manual_seed(0)
    own = torch.Generator().manual_seed(seed)
    pattern = torch.randn(CLASSES, 3, CHANNELS, generator=fixed)
    labels = torch.randint(CLASSES, (count,), generator=own)
    time = torch.arange(FRAMES) / FRAMES
    turns = (1 + labels[:, None, None] / 2) * torch.arange(1, 4)[:, None] * time + torch.rand(
        count, 3, 1, generator=own
    )
    x = torch.einsum("bhc,bhl->bcl", pattern[labels], torch.cos(2 * torch.pi * turns))
    return (x + 0.1 * torch.randn(x.shape, generator=own)) / 1.3, labels


@torch.no_grad()
def teacher(latents: Tensor) -> Tensor:
    """Latents [B, C, L] -> "teacher" features [B, S, F], at another frame rate than the latents."""
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(48, CHANNELS, 5, generator=generator) / (5 * CHANNELS) ** 0.5
    second = torch.randn(TEACHER_DIM, 48, 5, generator=generator) / (5 * 48) ** 0.5
    x = F.conv1d(torch.tanh(2 * F.conv1d(latents, first, padding=2)), second, padding=2)
    return F.interpolate(x, TEACHER_FRAMES, mode="linear").transpose(1, 2)
