"""Where a token stands and what time it is: rotary positions, sinusoids of t."""

from __future__ import annotations

import torch
from torch import Tensor


def sinusoidal(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """[B] times in [0, 1] -> [B, dim] sinusoids of 1000 t, with the frequencies of arXiv 1706.03762, section 3.5."""
    frequencies = torch.exp(
        -torch.log(torch.tensor(max_period)) * torch.arange(dim // 2, dtype=torch.float32) / (dim // 2)
    ).to(t.device)
    # float32: in bfloat16, numbers near 1,000 are 4 apart.
    angles = 1000.0 * t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotary_tables(tokens: int, head_dim: int, device: torch.device, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables [N, head_dim / 2] of rotary positions (RoFormer, arXiv 2104.09864)."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angles = torch.arange(tokens, dtype=torch.float32, device=device)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the two halves of each head of x [B, H, N, head_dim] by its position's angles."""
    cos, sin = (table.to(x.dtype) for table in tables)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
