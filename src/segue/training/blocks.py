"""The block term in this loop: how far the optimiser just moved, and a small step beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from segue.stage.block_structure import StructureConfig, structure_step
from segue.stage.controller import Decision
from segue.training.sharding import norm_of, whole_blocks


@contextmanager
def block_step(config: StructureConfig, decision: Decision, model: nn.Module, steps: int) -> Iterator[None]:
    """Around the optimiser's step: follows it with the term's own, of a share of its norm over the same blocks.

    Args:
        config: of the term; it acts on every `config.every`-th step.
        decision: strength and groups.
        model: not wrapped; its `blocks` are moved in place.
        steps: optimiser steps done before this one.
    """
    labels = decision.structure.labels
    grouped = [p for label, block in zip(labels, model.blocks) if label >= 0 for p in block.parameters()]
    acts = decision.structure_strength > 0 and steps % config.every == 0
    before = [p.detach().clone() for p in grouped] if acts else []
    yield
    if acts:
        moved = norm_of([p.detach() - then for p, then in zip(grouped, before)])
        norm = decision.structure_strength * config.every * float(moved)
        with whole_blocks(model.blocks):
            structure_step(model.blocks, decision.structure, norm, config.control, config.readers, config.writers)
