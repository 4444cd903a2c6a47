"""The loss of a step: flow matching, alignment with the teacher, learned weights of noise levels.

Parts that a policy does not use are not built. Without any, the loss is the mean flow loss: the plain baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from segue.data.cache import LatentCache
from segue.models.backbone import Backbone, BackboneConfig
from segue.process.noise import BatchDraws
from segue.process.objectives import masked_mean
from segue.stage.alignment import step_weight
from segue.stage.stage import Stage
from segue.training.config import OptimConfig, RunConfig
from segue.training.features import FrameGrid
from segue.training.heads import Head, Uncertainty, weigh_by_uncertainty
from segue.training.step import Example, Outcome, draw_example, run_model
from segue.training.targets import LatentTargets, OwnTargets, other_targets
from segue.types import Condition, UserError


@dataclass(frozen=True)
class Heads:
    """The networks that train beside the model.

    Attributes:
        projector: of the alignment in hidden space, or None.
        uncertainty: learned weight of each noise level (EDM2), or None.
    """

    projector: Head | None = None
    uncertainty: Head | None = None

    @property
    def all(self) -> list[Head]:
        """The heads that exist."""
        return [head for head in (self.projector, self.uncertainty) if head is not None]

    def step(self, rate: float, aligned: bool, bad: Tensor) -> None:
        """The heads' own optimiser steps; the projector takes none where the step was not aligned.

        Args:
            bad: of `Guard.check`.
        """
        for head in self.all:
            if head is not self.projector or aligned:
                head.step(rate, bad)

    def zero_grad(self) -> None:
        """Clear the gradients of a step that is not taken."""
        for head in self.all:
            head.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The heads' weights and optimiser states, for a checkpoint."""
        return {name: value for head in self.all for name, value in head.tensors().items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        for head in self.all:
            head.load(tensors)


def make_heads(config: RunConfig, stage: Stage, optim: OptimConfig, accelerator) -> Heads:
    """The heads that a config asks for; the stage's projector is wrapped for several ranks."""
    projector = uncertainty = None
    if stage.projector is not None:
        projector = Head("projector", stage.projector.to(accelerator.device), optim, accelerator)
        stage.projector = projector.module
    if config.train.objective == "uncertainty":
        uncertainty = Head("uncertainty", Uncertainty().to(accelerator.device), optim, accelerator)
    return Heads(projector, uncertainty)


class StepLosses:
    """The loss of a step.

    Attributes:
        heads: the networks that train beside the model.
    """

    def __init__(
        self,
        config: RunConfig,
        cache: LatentCache,
        dit: BackboneConfig,
        stage: Stage,
        optim: OptimConfig,
        accelerator,
        ema: Backbone,
    ) -> None:
        """
        Args:
            dit: shape of the model.
            stage: the method, with importance weights and alignment.
            optim: settings of the heads' optimisers.
            ema: the model of averaged weights, for alignment.target "self".

        Raises:
            UserError: a contrastive loss that this run cannot have.
        """
        self.heads = make_heads(config, stage, optim, accelerator)
        self._stage = stage
        self._predicts = dit.predicts
        self._objective = config.train.objective
        target = config.policy.alignment.target
        self._grid = FrameGrid.of(cache, dit, target)
        self._targets: LatentTargets | OwnTargets | None = None
        if target == "latents":
            self._targets = LatentTargets()
        elif target == "self":
            self._targets = OwnTargets(ema, self._grid, config.train.precision == "bf16")
        self._dropout = config.train.condition_dropout
        self._contrastive = config.train.contrastive
        if self._contrastive:
            _check_contrastive(config, accelerator.num_processes)

    def reads_teacher(self, later: int = 0) -> bool:
        """Whether the coming step, or one so many steps later at today's lambda, needs the cache's teacher features."""
        stage = self._stage
        weight = step_weight(stage.policy.alignment, stage.decision.alignment_weight, stage.steps + later)
        return weight > 0 and self._targets is None

    def draw(
        self,
        x_0: Tensor,
        condition: Condition,
        mask: Tensor | None,
        t: Tensor,
        draws: BatchDraws,
        teacher: tuple[Tensor, Tensor] | None = None,
    ) -> Example:
        """`draw_example`, with what the coming step aligns with, and what the contrastive loss pushes away from."""
        example = draw_example(x_0, condition, mask, t, draws, self._dropout, teacher)
        if self._targets is not None and self._stage.alignment_weight > 0:
            example = replace(example, teacher=self._targets(example, draws))
        if self._contrastive:
            example = replace(example, other=other_targets(example, self._predicts))
        return example

    def __call__(self, model: nn.Module, piece: Example) -> tuple[Tensor, Tensor]:
        """[B] losses of a piece of a batch to descend, and [2, B] to log: flow loss, and alignment before its weight.

        Args:
            model: as wrapped for several ranks.
            piece: with teacher features where this step is aligned.
        """
        outcome = run_model(model, piece, self._predicts, self._objective)
        # Weights of noise levels act on the flow loss alone: the alignment has its own, w(t).
        loss = outcome.loss
        if piece.other is not None:
            # Contrastive flow matching (arXiv 2506.05350, eq. 6): away from what the other clip asks for.
            loss = loss - self._contrastive * masked_mean((outcome.prediction - piece.other).square(), piece.mask)
        loss = loss * self._stage.importance(piece.t)
        if self.heads.uncertainty is not None:
            loss = weigh_by_uncertainty(loss, self.heads.uncertainty.module(piece.t))
        aligned = torch.zeros_like(outcome.loss)
        if piece.teacher is not None:
            # By example, not as a mean: the loop averages over the pieces of a batch.
            features, options = alignment_inputs(outcome, piece, self._grid)
            loss = loss + self._stage.alignment(features, piece.t, **options, reduction="none")
            if self._stage.aligned is not None:
                aligned = self._stage.aligned
        return loss, torch.stack([outcome.loss.detach(), aligned])


def _check_contrastive(config: RunConfig, world: int) -> None:
    train = config.train
    if train.task != "generation" or train.objective not in ("auto", "uncertainty"):
        raise UserError("train.contrastive needs train.task=generation and train.objective=auto; hint: leave it at 0")
    if train.batch_size % (2 * world):
        # Clips are paired within a rank, so that pairs are the same for any number of ranks.
        raise UserError(f"train.contrastive pairs clips; hint: make train.batch_size a multiple of {2 * world}")


def alignment_inputs(outcome: Outcome, piece: Example, grid: FrameGrid) -> tuple[Tensor, dict]:
    """Teacher features [B, S, F] of an aligned batch, and the options of `Stage.alignment` for it."""
    assert piece.teacher is not None
    features, real = piece.teacher
    options = {
        "mask": real,
        "tokens_mask": grid.tokens_mask(piece.mask),
        "span": grid.span(features.shape[1], piece.x_0.shape[-1]),
        "x_0_hat": piece.condition.fill_known(outcome.x_0_hat),
    }
    return features, options


def means(steps: Sequence[tuple[float, float]]) -> tuple[float, float | None]:
    """Mean flow loss of steps, and mean alignment of the aligned ones; None where none was.

    Args:
        steps: flow loss and alignment of each, which is 0 where a step was not aligned.
    """
    flow, aligned = torch.tensor(steps).unbind(1)
    some = aligned[aligned != 0]
    return float(flow.mean()), float(some.mean()) if len(some) else None
