"""The loss of a step, term by term: flow, alignment with the teacher, learned weights of noise levels.

Terms that a policy does not use are not built: the loss is then the mean flow loss, and the run the plain baseline.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from segue.data.cache import LatentCache
from segue.models.dit import DiTConfig
from segue.stage.adaptive_timesteps import importance
from segue.stage.controller import Decision
from segue.stage.ssl_guidance import step_weight
from segue.training.config import OptimConfig, RunConfig
from segue.training.ears import Ears
from segue.training.guidance import Guidance
from segue.training.heads import Head, Uncertainty, weigh_by_uncertainty
from segue.training.step import Example, Outcome


@dataclass(frozen=True)
class Terms:
    """What is added to the flow loss, or weighs it.

    Attributes:
        guidance: alignment with the teacher, or None.
        uncertainty: learned weight of each noise level (EDM2), or None.
    """

    guidance: Guidance | None = None
    uncertainty: Head | None = None

    @property
    def heads(self) -> list[Head]:
        """Those that train beside the model."""
        projector = None if self.guidance is None else self.guidance.head
        return [head for head in (projector, self.uncertainty) if head is not None]

    def at_step(self, decision: Decision, step: int) -> Decision:
        """The decision with the guidance weight of this step (`step_weight`)."""
        if self.guidance is None:
            return decision
        return replace(decision, guidance_weight=step_weight(self.guidance.config, decision.guidance_weight, step))

    def follows(self, decision: Decision) -> bool:
        """Whether this step needs the teacher's features."""
        return self.guidance is not None and decision.guidance_weight > 0

    def tap(self, decision: Decision) -> int | None:
        """The block whose tokens this step needs."""
        return self.guidance.tap if self.follows(decision) else None

    def loss(self, outcome: Outcome, piece: Example, decision: Decision) -> tuple[Tensor, Tensor]:
        """Of a piece of a batch: per-example losses [B] to descend, and [2] sums to log: flow loss and alignment."""
        flow = outcome.loss
        total = flow
        if decision.corrected:
            total = total * importance(decision.timesteps, piece.t)
        if self.uncertainty is not None:
            total = weigh_by_uncertainty(total, self.uncertainty.module(piece.t))
        aligned = torch.zeros_like(flow)
        if self.follows(decision):
            whole = piece.condition.complete(outcome.x_0_hat)
            aligned = self.guidance.loss(outcome.hidden, whole, piece.t, piece.mask, piece.teacher)
            total = total + decision.guidance_weight * aligned
        return total, torch.stack([flow.detach().sum(), aligned.detach().sum()])

    def step(self, rate: float, decision: Decision) -> None:
        """The heads' own optimiser steps; a head that the loss did not use keeps still."""
        for head in self.heads:
            if head is self.uncertainty or self.follows(decision):
                head.step(rate)

    def zero_grad(self) -> None:
        """Forget the gradients of a step that is not taken."""
        for head in self.heads:
            head.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of the heads."""
        return {name: value for head in self.heads for name, value in head.tensors().items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        for head in self.heads:
            head.load(tensors)


def means(sums: list[Tensor]) -> tuple[float, float | None]:
    """Mean flow loss of steps, and mean alignment of the guided ones; None where none was.

    Args:
        sums: [2] of each step: flow loss and alignment, which is 0 where a step was not guided.
    """
    flow, aligned = torch.stack(sums).unbind(1)
    guided = aligned[aligned != 0]
    return float(flow.mean()), float(guided.mean()) if len(guided) else None


def make_terms(
    config: RunConfig, cache: LatentCache, dit: DiTConfig, optim: OptimConfig, accelerator, ears: Ears | None
) -> Terms:
    """The terms that a config asks for.

    Args:
        ears: for guidance in output space.

    Raises:
        UserError: guidance without a teacher in the cache, or a tap outside the model.
    """
    guidance = uncertainty = None
    seed = config.train.seed
    if config.policy.guidance.weight > 0:
        guidance = Guidance(config.policy.guidance, cache, dit, optim, seed, accelerator, ears)
    if config.train.objective == "uncertainty":
        uncertainty = Head("uncertainty", Uncertainty().to(accelerator.device), optim, accelerator)
    return Terms(guidance, uncertainty)
