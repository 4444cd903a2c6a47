"""Left and right as mid and side, for codecs that hold the two apart: our definition, with a half in both."""

from __future__ import annotations

import torch
from torch import Tensor

FAINT = 1e-10  # 200 dB below full scale


def mid_side(wave: Tensor) -> Tensor:
    """[B, 2, T] left and right -> [B, 2, T] mid and side, half their sum and half their difference.

    Two equal sides have a side signal of exactly zero.
    """
    left, right = wave.float().unbind(1)
    return torch.stack([(left + right) / 2, (left - right) / 2], dim=1)


def left_right(wave: Tensor) -> Tensor:
    """[B, 2, T] mid and side -> [B, 2, T] left and right; a side signal of zero gives two equal sides, bit for bit.

    Side samples below FAINT count as zero: statistics that are taken off latents and put back leave some 1e-7 of their
    mean there, and a mono recording has to come back as exactly mono.
    """
    mid, side = wave.unbind(1)
    side = side.masked_fill(side.abs() < FAINT, 0.0)
    return torch.stack([mid + side, mid - side], dim=1)
