"""What one optimiser step gained on the batch that it was taken on: the reward of learned training times."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from segue.training.step import Example, losses

TIMES = (0.2, 0.5, 0.8)  # where the gain is measured; the paper picks three of its thousand


@contextmanager
def measured_gains(due: bool, model: nn.Module, example: Example, accelerator) -> Iterator[list[tuple[float, float]]]:
    """Around the optimiser's step: (time trained at, fall of its loss) of each example of the global batch; or [].

    Args:
        due: whether to measure at all.
        model: not wrapped.
        example: this rank's batch.
    """
    pairs: list[tuple[float, float]] = []
    before = _losses(model, example) if due else None
    yield pairs
    if due:
        gains = accelerator.gather(torch.stack([example.t.double(), before - _losses(model, example)], dim=1))
        pairs.extend((float(t), float(gain)) for t, gain in gains)


@torch.no_grad()
def _losses(model: nn.Module, example: Example) -> Tensor:
    """Sum over TIMES of each example's loss, [B] float64, with the noise that it was trained with."""
    at = [replace(example, t=torch.full_like(example.t, t)) for t in TIMES]
    return sum(losses(model, e, model.predicts).double() for e in at)
