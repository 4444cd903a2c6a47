"""Figures of two channels: how wide a sound is, and its left, right, mid and side one by one."""

from __future__ import annotations

import torch
from torch import Tensor

NARROWEST_DB = -60.0  # a side that is softer against the mid is none
VIEWS = ("left", "right", "side")


def view(wave: Tensor, name: str) -> Tensor:
    """[B, 2, T] -> [B, T]: "left", "right", "mid" (half the sum) or "side" (half the difference, left first).

    Raises:
        KeyError: no such view.
    """
    left, right = wave.unbind(1)
    return {"left": left, "right": right, "mid": (left + right) / 2, "side": (left - right) / 2}[name]


def width_db(wave: Tensor) -> Tensor:
    """[B, 2, T] -> [B] float64: level of the side over that of the mid, in dB, from -60 (mono) to 60 (our definition).

    0 is sound on one side alone, or two sides that have nothing in common.
    """
    mid, side = (view(wave.double(), name).square().mean(dim=1) for name in ("mid", "side"))
    # Silence is mono.
    found = 10 * (side.clamp(min=1e-20) / mid.clamp(min=1e-20)).log10()
    return torch.where(side > 0, found.clamp(NARROWEST_DB, -NARROWEST_DB), NARROWEST_DB)


def width_error_db(estimate: Tensor, reference: Tensor) -> Tensor:
    """[B, 2, T] each -> [B] float64: how far their widths are apart, in dB."""
    return (width_db(estimate) - width_db(reference)).abs()
