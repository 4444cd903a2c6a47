"""Attention of the DiT's blocks, and what else a block is made of: layer norm, modulation.

Masks are additive (0 or -inf) and None where nothing is masked: only then attention takes its fastest kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segue.models.positions import Tables, as_bias, rotate, window_bias, window_mask

PLAIN = 1024**2  # most pairs of query and key for which plain products are as fast on a CPU in bfloat16


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis, in the type of its input; its sums are float32 inside.

    Autocast on CUDA would take it to float32 and leave the way back to the next layer: two conversions of all tokens.
    """

    def __init__(self, width: int, affine: bool = False) -> None:
        super().__init__(width, eps=1e-6, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same shape and type."""
        # The kernel of the CPU takes float32 weights beside bfloat16 tokens, that of CUDA does not.
        if x.device.type == "cpu" or x.dtype == torch.float32:
            return super().forward(x)
        weight, bias = (None if p is None else p.to(x.dtype) for p in (self.weight, self.bias))
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def multiply_add(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """a + b y, for modulations and gates: b [B, 1, D], y [B, N, D], a of either shape."""
    return _MultiplyAdd.apply(a, b, y)


class _MultiplyAdd(torch.autograd.Function):
    """In one pass over the tokens, and two for the gradient; autograd's own would take a pass more, whichever way."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(b, y)
        ctx.whole = a.shape == y.shape
        return torch.addcmul(a, b, y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, y = ctx.saved_tensors
        g = gradients[0]
        return g if ctx.whole else g.sum(1, keepdim=True), (g * y).sum(1, keepdim=True), g * b


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention: q [B, H, N, head_dim], k and v [B, H, keys, head_dim], bias [B or 1, 1, N or 1, keys]."""
    # torch's kernel for CPUs has a slow backward pass in bfloat16: plain products took half to a tenth of its time.
    pairs = q.shape[2] * k.shape[2]
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled() and pairs <= PLAIN:
        logits = (q * q.shape[-1] ** -0.5) @ k.mT
        return (logits if bias is None else logits + bias).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def token_bias(real: Tensor | None, x: Tensor, window: int, tables: Tables) -> Tensor | None:
    """What self-attention adds to its logits [B or 1, 1, N or 1, N], or None where every token sees all others.

    Args:
        real: [B, N] bool, True where a token is not padding; None where none is.
        x: [B, N, D] tokens.
        window: tokens to each side that a token attends to; 0 = all.
        tables: of the model.
    """
    tokens = x.shape[1]
    if real is None:
        return tables.get(window_bias, tokens, window, x.device, x.dtype) if window else None
    seen = real[:, None, None]
    if window:
        near, itself = (tables.get(window_mask, tokens, width, x.device) for width in (window, 0))
        seen = (near & seen) | itself  # a token always sees itself: softmax over an empty row is NaN
    return as_bias(seen, x.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions; q and k are normalised by head.

    With a value residual (ResFormer, arXiv 2410.17897: its learned form), values are mixed with those of the first
    block; the two shares begin at one half.
    """

    def __init__(self, width: int, heads: int, value_residual: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = LayerNorm(width // heads, affine=True)
        self.k_norm = LayerNorm(width // heads, affine=True)
        self.out = nn.Linear(width, width)
        if value_residual:
            self.value_shares = nn.Parameter(torch.full((2,), 0.5))

    def values(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, heads, head_dim], as `first` of other blocks."""
        weight, bias = (part.chunk(3)[2] for part in (self.qkv.weight, self.qkv.bias))
        return F.linear(x, weight, bias).unflatten(-1, (self.heads, -1))

    def forward(
        self, x: Tensor, bias: Tensor | None, rotary: tuple[Tensor, Tensor], first: Tensor | None = None
    ) -> Tensor:
        """x [B, N, D], bias of `token_bias`, rotary tables [N, head_dim / 2] -> [B, N, D].

        Args:
            first: [B, N, heads, head_dim] values of the first block, for a value residual.
        """
        # Heads stay behind tokens in memory until attention itself, which reads them in any order without a copy.
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        if first is not None:
            v = self.value_shares[0] * first + self.value_shares[1] * v
        q, k = (rotate(y, rotary).transpose(1, 2) for y in (self.q_norm(q), self.k_norm(k)))
        return self.out(attend(q, k, v.transpose(1, 2), bias).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to a context; q and k are normalised by head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.q_norm = LayerNorm(width // heads, affine=True)
        self.k_norm = LayerNorm(width // heads, affine=True)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        """x [B, N, D], context [B, K, D], bias [B, 1, 1, K] -> [B, N, D]; [B, 1, D] where all tokens get the same."""
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).unbind(2)
        if context.shape[1] == 1 and not torch.is_grad_enabled():
            return self.out(v.flatten(2))  # the softmax over a single key is 1; training keeps the weights of q in use
        q = self.q_norm(self.q(x).unflatten(-1, (self.heads, -1)))
        mixed = attend(q.transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2), bias)
        return self.out(mixed.transpose(1, 2).flatten(2))
