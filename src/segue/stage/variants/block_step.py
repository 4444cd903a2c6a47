"""The block term beside an optimiser: a small step on grouped blocks, as a share of the optimiser's own step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from segue.stage.variants.block_structure import (
    StructureConfig,
    StructureMeasure,
    StructureState,
    measure_structure,
    structure_step,
)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))


class BlockStep:
    """Measures a stack of blocks, and moves those that form groups after each step of the optimiser.

    Args:
        config: of the term; it acts on every `config.every`-th step.
        blocks: not wrapped; moved in place.
        whole: blocks -> context in which each rank holds their whole weights, where they are sharded.
        norm: Euclidean norm of tensors together, over ranks where they are sharded.
    """

    def __init__(
        self,
        config: StructureConfig,
        blocks: Sequence[nn.Module],
        *,
        whole: Callable[[Sequence[nn.Module]], AbstractContextManager] = nullcontext,
        norm: Callable[[Sequence[Tensor]], Tensor] = total_norm,
    ) -> None:
        self._config = config
        self._blocks = blocks
        self._whole = whole
        self._norm = norm
        self._before: list[Tensor] = []

    def measure(self, state: StructureState) -> StructureMeasure:
        """The measurement that a check decides by."""
        with self._whole(self._blocks):
            return measure_structure(self._config, state, self._blocks)

    def keep(self, state: StructureState, strength: float, step: int) -> None:
        """Before the optimiser's step: copy the weights that the term will move, to measure the optimiser's move.

        Args:
            state: with the groups in force.
            strength: of the term; 0 = off.
            step: optimiser steps taken so far.
        """
        # Loops that draw times once per piece of a batch come here several times before one step.
        if strength > 0 and step % self._config.every == 0 and not self._before:
            self._before = [p.detach().clone() for p in self._grouped(state)]

    def follow(self, state: StructureState, strength: float) -> None:
        """After the optimiser's step: take the term's own, where weights were kept before."""
        if not self._before:
            return
        config = self._config
        moved = self._norm([p.detach() - then for p, then in zip(self._grouped(state), self._before)])
        self.forget()
        # The term acts on one of `every` steps, so its step is that many times as large.
        norm = strength * config.every * float(moved)
        with self._whole(self._blocks):
            structure_step(self._blocks, state, norm, config.control, config.in_proj, config.out_proj)

    def forget(self) -> None:
        """Drop the copies, where the optimiser's step was not taken."""
        self._before = []

    def _grouped(self, state: StructureState) -> list[nn.Parameter]:
        return [p for label, block in zip(state.labels, self._blocks) if label >= 0 for p in block.parameters()]
