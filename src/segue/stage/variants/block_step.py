"""The block term beside an optimiser: how far it just moved the grouped blocks, and a small step of a share of that."""

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
    """Measures a stack of blocks, and moves those that form groups after the optimiser has.

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
        """What a check reads from the weights."""
        with self._whole(self._blocks):
            return measure_structure(self._config, state, self._blocks)

    def keep(self, state: StructureState, strength: float, step: int) -> None:
        """Before an optimiser's step: the weights that the term will move, to see how far the optimiser moves them.

        Args:
            state: groups in force.
            strength: of the term; 0 = it is off.
            step: optimiser steps done.
        """
        if strength > 0 and step % self._config.every == 0 and not self._before:
            self._before = [p.detach().clone() for p in self._grouped(state)]

    def follow(self, state: StructureState, strength: float) -> None:
        """After the optimiser's step: the term's own, where weights were kept before."""
        if not self._before:
            return
        config = self._config
        moved = self._norm([p.detach() - then for p, then in zip(self._grouped(state), self._before)])
        self.forget()
        norm = strength * config.every * float(moved)
        with self._whole(self._blocks):
            structure_step(self._blocks, state, norm, config.control, config.readers, config.writers)

    def forget(self) -> None:
        """After a step that was not taken."""
        self._before = []

    def _grouped(self, state: StructureState) -> list[nn.Parameter]:
        return [p for label, block in zip(state.labels, self._blocks) if label >= 0 for p in block.parameters()]
