"""Where a token stands, what time it is, and which tokens see each other: rotary positions, sinusoids of t, windows."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")
KEPT = 32  # tables of one model: a run needs a few, a folder of sounds of all lengths would fill the memory


class Tables:
    """A model's tables, each made once for its length, device and type: no forward pass makes or copies one.

    They are no part of a model's state: nothing saves, converts or shares them.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def get(self, make: Callable[..., Made], *key: Any) -> Made:
        """make(*key), made at the first call and kept."""
        name = (make, *key)
        if name in self._made:
            return self._made[name]
        # An ordinary tensor, also where inference asks first: training may ask for the same one later.
        with torch.inference_mode(False):
            made = make(*key)
        # A tensor without values, by which memory is counted, serves that count alone.
        if type(made[0] if isinstance(made, tuple) else made) is Tensor:
            if len(self._made) == KEPT:
                del self._made[next(iter(self._made))]
            self._made[name] = made
        return made


def sinusoidal(t: Tensor, frequencies: Tensor) -> Tensor:
    """[B] times in [0, 1] -> [B, dim] sinusoids of 1000 t, by the frequencies [dim / 2] of `sinusoid_frequencies`."""
    # float32: in bfloat16, numbers near 1,000 are 4 apart.
    angles = 1000.0 * t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sinusoid_frequencies(dim: int, device: torch.device, max_period: float = 10_000.0) -> Tensor:
    """[dim / 2] frequencies from 1 down to nearly 1 / max_period, of arXiv 1706.03762, section 3.5."""
    share = torch.arange(dim // 2, dtype=torch.float32) / (dim // 2)
    return torch.exp(-torch.log(torch.tensor(max_period)) * share).to(device)


def rotary_tables(
    tokens: int, head_dim: int, device: torch.device, dtype: torch.dtype = torch.float32, base: float = 10_000.0
) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables [N, head_dim / 2] of rotary positions (RoFormer, arXiv 2104.09864)."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angles = torch.arange(tokens, dtype=torch.float32, device=device)[:, None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def window_mask(tokens: int, window: int, device: torch.device) -> Tensor:
    """Bool [1, 1, N, N], True where two tokens are at most `window` apart."""
    position = torch.arange(tokens, device=device)
    return ((position[:, None] - position).abs() <= window)[None, None]


def window_bias(tokens: int, window: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`window_mask` as attention adds it to its logits."""
    return as_bias(window_mask(tokens, window, device), dtype)


def as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask, True = attend, as attention adds it to its logits. Attention would convert it in every block."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the two halves of each head of x [B, N, H, head_dim] by its position's angles."""
    cos, sin = (table[:, None] for table in tables)
    return _Rotate.apply(x, cos, sin)


class _Rotate(torch.autograd.Function):
    """The turn in three kernels, and the turn back for the gradient in as many; autograd's own took fifteen."""

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
