"""Loss at fixed times on fixed clips and noise: the curve that compares between runs, whatever times they train on.

Clips, times and noise are the same at every validation, so that the curve has no noise of its own: where it turns, the
model has begun to learn its training clips by heart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.data.cache import LatentCache
from segue.memory import malloc_trim
from segue.models.backbone import Backbone
from segue.process.noise import keyed_noise
from segue.tasks.base import Task
from segue.training.config import RunConfig
from segue.training.log import RunLog, read_log
from segue.training.step import Example, losses

VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
AFTER_LEAST = 3  # validations in a row above the least one, before it counts as a turn
RISE = 0.01  # of the least loss, by which the last of them must be above it


@dataclass(frozen=True)
class ValidationSet:
    """Fixed clips, captions and noise at each fixed time: losses of any two runs on one cache compare.

    Attributes:
        examples: this rank's clips at each of the times; all ranks have equally many, perhaps the first ones again, as
            a sharded model gathers its weights in every pass.
        clips: how many there are in all.
        gather: [n, ...] of this rank -> [world * n, ...] of all.
    """

    examples: list[Example]
    clips: int
    gather: Callable[[Tensor], Tensor]


def make_validation_set(task: Task, cache: LatentCache, config: RunConfig, accelerator) -> ValidationSet:
    """The first clips of the split "valid", this rank's share of them."""
    rows = cache.rows("valid")[: config.train.validation_clips]
    x_0, condition, mask = task.prepare(cache.batch(rows))
    eps = keyed_noise(x_0.shape[1:], 0, "validation", range(len(rows)))
    malloc_trim()  # a task may decode and encode all of these clips at once
    world = accelerator.num_processes
    mine = [row % len(rows) for row in range(accelerator.process_index, -(-len(rows) // world) * world, world)]
    x_0, eps, condition, mask = x_0[mine], eps[mine], condition.rows(mine), None if mask is None else mask[mine]
    at_times = (torch.full((len(mine),), t) for t in VALIDATION_TIMES)
    examples = [Example(x_0, eps, t, condition, mask).to(accelerator.device) for t in at_times]
    return ValidationSet(examples, len(rows), accelerator.gather)


@torch.no_grad()
def validate(model: Backbone, held_out: ValidationSet) -> dict[str, float]:
    """Mean loss at each fixed time over the clips of all ranks, measured in what the model predicts."""
    found = torch.stack([losses(model, example, model.predicts) for example in held_out.examples])
    # [ranks, times, clips of a rank]; clip i is the (i // ranks)-th of rank i % ranks.
    of_ranks = held_out.gather(found).unflatten(0, (-1, len(found)))
    in_order = of_ranks.permute(1, 2, 0).flatten(1)[:, : held_out.clips]
    return {f"{t:g}": value for t, value in zip(VALIDATION_TIMES, in_order.mean(1).tolist())}


def record_validation(log: RunLog, seen: int, model: Backbone, held_out: ValidationSet) -> tuple[dict[str, float], str]:
    """`validate`, and the result as a line of the log; and a sentence where the loss has turned, said once a turn."""
    found = validate(model, held_out)
    log.write("validation", seen, loss_by_t=found, loss=sum(found.values()) / len(found))
    # From the log, which a resumed run cuts back to its checkpoint: the same sentence at the same place.
    events = read_log(log.path)
    least = turned([event for event in events if event["event"] == "validation"])
    if least is None or any(event["event"] == "overfitting" and event["since"] == least for event in events):
        return found, ""
    log.write("overfitting", seen, since=least)
    return found, (
        f"{seen:,} examples: held-out loss has risen since {least:,} examples: overfitting; hint: end there with "
        f"--examples {least}, add sounds, or set a lower optim.learning_rate or optim.pull=0.1"
    )


def turned(validations: list[dict]) -> int | None:
    """Examples at which the held-out loss was least, where it has risen since; None where it has not.

    Our definition: it was above its least value at the last 3 validations, at the last by 1 % or more.

    Args:
        validations: lines of the log.
    """
    losses = [(event["loss"], event["examples_seen"]) for event in validations if event["loss"] is not None]
    if len(losses) <= AFTER_LEAST:
        return None
    least, at = min(losses)
    after = sum(seen > at for _, seen in losses)
    return at if at > 0 and after >= AFTER_LEAST and losses[-1][0] > (1 + RISE) * least else None
