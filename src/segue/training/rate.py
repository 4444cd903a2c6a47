"""How fast this machine trains, measured before a budget is set."""

from __future__ import annotations

import time

from segue.data.cache import LatentCache
from segue.data.loader import LatentLoader
from segue.process.noise import BatchDraws
from segue.training.build import build_model, make_task
from segue.training.config import RunConfig
from segue.training.optim import make_optimizer
from segue.training.step import draw_example, losses


def measure_rate(config: RunConfig, cache: LatentCache, steps: int = 8) -> float:
    """Training examples per second on this machine, from a few steps that are thrown away."""
    model = build_model(config, cache, seed=0)
    optimizer = make_optimizer(model, config.optim)
    task = make_task(config, cache)
    loader = LatentLoader(cache, "train", config.train.batch_size, seed=0)
    for step in range(steps + 2):
        if step == 2:  # the first two warm caches and allocators
            started = time.monotonic()
        draws = BatchDraws(0, step * config.train.batch_size, config.train.batch_size)
        prepared = task.prepare(loader.next_batch(), draws)
        example = draw_example(*prepared, draws.uniform("times"), draws)
        losses(model, example, model.predicts, config.train.objective).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    loader.close()
    return steps * config.train.batch_size / (time.monotonic() - started)
