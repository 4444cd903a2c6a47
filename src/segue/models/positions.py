"""Where a token stands and what time it is: rotary positions, sinusoids of t.

Tables are made once for each length, device and type, and kept by their functions: no forward pass makes or copies one,
and no model stores one. They are ordinary tensors even where inference mode asks for them first, since training may ask
for the same ones later.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

TABLES = 64  # kept of each kind; a run uses a few


def sinusoidal(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """[B] times in [0, 1] -> [B, dim] sinusoids of 1000 t, with the frequencies of arXiv 1706.03762, section 3.5."""
    # float32: in bfloat16, numbers near 1,000 are 4 apart.
    angles = 1000.0 * t.float()[:, None] * sinusoid_frequencies(dim, max_period, t.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@lru_cache(TABLES)
def sinusoid_frequencies(dim: int, max_period: float, device: torch.device) -> Tensor:
    """[dim / 2] frequencies, falling from 1 to nearly 1 / max_period."""
    with torch.inference_mode(False):
        steps = torch.arange(dim // 2, dtype=torch.float32) / (dim // 2)
        return torch.exp(-torch.log(torch.tensor(max_period)) * steps).to(device)


@lru_cache(TABLES)
def rotary_tables(
    tokens: int,
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    base: float = 10_000.0,
) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables [N, head_dim / 2] of rotary positions (RoFormer, arXiv 2104.09864)."""
    with torch.inference_mode(False):
        frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
        angles = torch.arange(tokens, dtype=torch.float32, device=device)[:, None] * frequencies
        return angles.cos().to(dtype), angles.sin().to(dtype)


@lru_cache(TABLES)
def window_table(tokens: int, window: int, device: torch.device) -> Tensor:
    """Bool [1, 1, N, N], True where two tokens are at most `window` apart."""
    with torch.inference_mode(False):
        position = torch.arange(tokens, device=device)
        return ((position[:, None] - position).abs() <= window)[None, None]


@lru_cache(TABLES)
def window_bias(tokens: int, window: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The same as attention adds it to its logits: 0 where two tokens see each other, else -inf."""
    with torch.inference_mode(False):
        return as_bias(window_table(tokens, window, device), dtype)


def as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask, True = attend, as attention adds it to its logits. Attention would convert it in every block."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the two halves of each head of x [B, N, H, head_dim] by its position's angles."""
    cos, sin = (table[:, None] for table in tables)
    return _Rotate.apply(x, cos, sin)


class _Rotate(torch.autograd.Function):
    """The turn in three kernels, and the turn back for the gradient; autograd's own would take fifteen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradients[0], cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    out = x * torch.cat([cos, cos], dim=-1)
    out_first, out_second = out.chunk(2, dim=-1)
    out_first.addcmul_(second, sin, value=-1)
    out_second.addcmul_(first, sin)
    return out
