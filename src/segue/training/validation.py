"""Loss at fixed times on fixed clips and noise: the curve that compares between runs, whatever times they train on."""

from __future__ import annotations

import torch

from segue.data.cache import LatentCache
from segue.memory import malloc_trim
from segue.models.backbone import Backbone
from segue.process.noise import keyed_noise
from segue.tasks.base import Task
from segue.training.config import RunConfig
from segue.training.log import RunLog
from segue.training.step import Example, losses

VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


def make_validation_set(task: Task, cache: LatentCache, config: RunConfig, device: torch.device) -> list[Example]:
    """Fixed clips, captions and noise at each fixed time: losses of any two runs on one cache compare."""
    rows = cache.rows("valid")[: config.train.validation_clips]
    x_0, condition, mask = task.prepare(cache.batch(rows))
    eps = keyed_noise(x_0.shape[1:], 0, "validation", range(len(rows)))
    malloc_trim()  # a task may decode and encode all of these clips at once
    return [Example(x_0, eps, torch.full((len(rows),), t), condition, mask).to(device) for t in VALIDATION_TIMES]


@torch.no_grad()
def validate(model: Backbone, examples: list[Example]) -> dict[str, float]:
    """Mean loss at each fixed time, measured in what the model predicts."""
    return {f"{t:g}": float(losses(model, e, model.predicts).mean()) for t, e in zip(VALIDATION_TIMES, examples)}


def record_validation(log: RunLog, seen: int, model: Backbone, examples: list[Example]) -> dict[str, float]:
    """`validate`, and the result as a line of the log."""
    found = validate(model, examples)
    log.write("validation", seen, loss_by_t=found, loss=sum(found.values()) / len(found))
    return found
