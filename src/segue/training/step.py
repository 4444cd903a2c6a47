"""A training step without devices and optimisers: from a batch to per-example losses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from segue.process.noise import BatchDraws
from segue.process.objectives import masked_mean, min_snr_weight, velocity_loss
from segue.process.path import clean_of, cosine_target, sample_path, velocity_of
from segue.types import Condition


@dataclass(frozen=True)
class Example:
    """A batch of the model's inputs, on one device.

    Attributes:
        x_0: [B, C, L] standardised clean latents.
        eps: [B, C, L] noise.
        t: [B] times.
        condition: captions, with `drop` drawn.
        mask: [B, L] bool, or None where every frame is real.
        teacher: [B, S, F] features, as stored, and [B, S] bool of the clean clips, where this step is aligned.
        other: [B, C, L] what another clip of the batch asks the prediction to be, for the contrastive loss.
    """

    x_0: Tensor
    eps: Tensor
    t: Tensor
    condition: Condition
    mask: Tensor | None
    teacher: tuple[Tensor, Tensor] | None = None
    other: Tensor | None = None

    def to(self, device: torch.device | str) -> Example:
        """The same batch on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        teacher = None if self.teacher is None else (self.teacher[0].to(device), self.teacher[1].to(device))
        x_0, eps, t = (x.to(device) for x in (self.x_0, self.eps, self.t))
        return Example(x_0, eps, t, self.condition.to(device), mask, teacher)

    def split(self, parts: int) -> list[Example]:
        """The batch in `parts` pieces, for gradient accumulation."""
        pieces = []
        count = len(self.t)
        # The first pieces take one more each; in a batch of fewer examples than parts some have none and are left out.
        sizes = [count // parts + (part < count % parts) for part in range(parts)]
        for end, size in zip(accumulate(sizes), sizes):
            if size == 0:
                continue
            # A slice: nothing is copied.
            rows = slice(end - size, end)
            condition = self.condition.rows(rows)
            mask = None if self.mask is None else self.mask[rows]
            teacher = None if self.teacher is None else (self.teacher[0][rows], self.teacher[1][rows])
            other = None if self.other is None else self.other[rows]
            pieces.append(Example(self.x_0[rows], self.eps[rows], self.t[rows], condition, mask, teacher, other))
        return pieces


def draw_example(
    x_0: Tensor,
    condition: Condition,
    mask: Tensor | None,
    t: Tensor,
    draws: BatchDraws,
    dropout: float = 0.0,
    teacher: tuple[Tensor, Tensor] | None = None,
) -> Example:
    """Draw noise and dropped captions for one rank's part of a global batch, on the device of x_0.

    Args:
        x_0: [B, C, L] this rank's standardised latents.
        condition, mask: of the same examples.
        t: [B] their times (`Stage.timesteps`).
        draws: of this batch, on the same device.
        dropout: share of captions replaced by the null.
        teacher: features of the same examples as they are stored, and their mask, where this step is aligned.
    """
    drop = draws.uniform("drop") < dropout
    eps = draws.normal("noise", *x_0.shape[1:])
    # The features stay in the cache's half precision: an aligned step reads a part of them.
    return Example(x_0, eps, t, replace(condition, drop=drop), mask, teacher)


@dataclass(frozen=True)
class Outcome:
    """The result of a forward pass.

    Attributes:
        loss: [B] flow losses.
        x_0_hat: [B, C, L] one-step prediction of the clean sample.
        prediction: [B, C, L] of the model, float32.
    """

    loss: Tensor
    x_0_hat: Tensor
    prediction: Tensor


def losses(model: nn.Module, example: Example, predicts: str, objective: str = "auto") -> Tensor:
    """Per-example flow losses [B] of the model on a drawn batch; see `run_model`."""
    return run_model(model, example, predicts, objective).loss


def run_model(model: nn.Module, example: Example, predicts: str, objective: str = "auto") -> Outcome:
    """The model on a drawn batch.

    A clean-sample error e is a velocity error of e / t. Measured in velocity, a model that predicts clean samples would
    learn little but the lowest noise levels, so "auto" measures the error in what the model predicts.

    Args:
        model: called as model(x_t, t, condition, mask).
        example: the batch.
        predicts: what the model returns, "velocity", "clean" or "v" (of the cosine path).
        objective: "velocity", "min-snr" (arXiv 2303.09556), or "auto" and "uncertainty": as `predicts` says.
    """
    x_t = sample_path(example.x_0, example.eps, example.t)
    # float32 from here on, also under autocast.
    prediction = model(x_t, example.t, example.condition, example.mask).prediction.float()
    objective = predicts if objective in ("auto", "uncertainty") else objective
    velocity = velocity_of(prediction, predicts, x_t, example.t)
    x_0_hat = prediction if predicts == "clean" else clean_of(x_t, velocity, example.t)
    mask = example.condition.generated(example.mask)  # frames that are given teach nothing
    # Not by way of the velocity, which is clamped at small t (process/path.py) and would change the error there.
    if predicts == objective == "clean":
        loss = masked_mean((prediction - example.x_0).square(), mask)
    elif predicts == objective == "v":
        target = cosine_target(example.x_0, example.eps, example.t)
        loss = masked_mean((prediction - target).square(), mask)
    else:
        # The clean sample's error is t times the velocity's, so its square counts t^2 times.
        weights = {"velocity": lambda t: 1.0, "clean": lambda t: t**2, "min-snr": min_snr_weight}
        loss = velocity_loss(velocity, example.x_0, example.eps, mask) * weights[objective](example.t)
    return Outcome(loss, x_0_hat, prediction)
