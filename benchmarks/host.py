"""What the host does for a batch before the model sees it: python benchmarks/host.py CACHE [--json FILE]

Rows, captions and teacher features are read, standardised, and joined by noise, times and dropped captions, as the loop
does it, all on one thread: what the loader's own thread does counts. "before" is the way of the versions until
2026-11-28, kept here: every row read by itself, one generator an example. Both are timed in turns, in CPU time of the
thread, and the least of many rounds is given, since other work on the machine only ever adds to it.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from segue._version import __version__
from segue.data.cache import LatentCache
from segue.data.loader import LatentLoader
from segue.data.open_cache import open_cache
from segue.data.order import Order
from segue.process.noise import BatchDraws, keyed_generator
from segue.provenance import commit, machine
from segue.recipes import load_recipe
from segue.stage.timesteps import STAGE_TIMESTEPS, stage_distribution
from segue.tasks.base import Task
from segue.training.build import make_task
from segue.training.config import RunConfig, override
from segue.training.step import draw_example

PARTS = ("read", "prepare", "draw")
AIMS_MS = {False: 3.0, True: 5.0}  # of a batch of 256, without and with teacher features


class Batches:
    """A batch as the loop makes it; the thread's own work is called here, where it is timed."""

    def __init__(self, cache: LatentCache, task: Task, batch: int, on_device: bool = False) -> None:
        self.loader = LatentLoader(cache, "train", batch, 0, on_device="yes" if on_device else "no")
        self.cache, self.task, self.batch, self.on_device = cache, task, batch, on_device
        self.order = Order(cache, np.asarray(cache.rows("train")), 0)
        self.times = stage_distribution(0.5, STAGE_TIMESTEPS.floor, STAGE_TIMESTEPS.mu_start, 0.5)

    def __call__(self, position: int, teacher: bool) -> tuple[float, float, float]:
        """CPU seconds of each of PARTS."""
        started = time.thread_time()
        if self.on_device:
            self.loader.position = position
            batch = self.loader.next_batch(teacher)
        else:
            drawn = self.order.at(position, self.batch)
            batch = self.cache.batch(drawn.rows, drawn.choice, teacher)
        read = time.thread_time()
        draws = BatchDraws(0, position, self.batch)
        prepared_batch = self.task.prepare(batch, draws)
        prepared = time.thread_time()
        t = self.times.sample(self.batch, keyed_generator(0, "times", position), stratified=True)
        draw_example(*prepared_batch, t, draws, 0.1, batch.teacher)
        return read - started, prepared - read, time.thread_time() - prepared


def least_ms(ways: dict[str, Callable], batch: int, rounds: int, teacher: bool) -> dict[str, dict[str, float]]:
    """Way -> milliseconds of each part and in all, the least of `rounds`, the ways taking turns."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            found[name].append(way(turn * batch, teacher))
    return {
        name: {part: round(1e3 * min(times), 3) for part, times in zip(PARTS, zip(*taken[1:]))}  # the first warms up
        | {"all": round(1e3 * min(sum(each) for each in taken[1:]), 3)}
        for name, taken in found.items()
    }


def measure(cache: LatentCache, config: RunConfig, batch: int, rounds: int) -> dict[str, dict]:
    """Figures without teacher features, and with them where the cache has them."""
    task = make_task(config, cache)
    ways: dict[str, Callable] = {
        "rows in files": Batches(cache, task, batch),
        "rows in memory": Batches(cache, task, batch, on_device=True),
    }
    figures = {"without teacher features": least_ms(ways, batch, rounds, teacher=False)}
    if cache.meta["teacher"] is not None:
        figures["with teacher features"] = least_ms(ways, batch, rounds, teacher=True)
    return figures


def main() -> None:
    """Print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write one JSON object there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cache = open_cache(given.cache)
    config = override(load_recipe("stage"), [f"train.batch_size={given.batch}"])
    figures = measure(cache, config, given.batch, given.rounds)
    for what, ways in figures.items():
        print(f"{what}, CPU ms a batch of {given.batch}, one thread, least of {given.rounds}")
        for name, parts in ways.items():
            print(f"  {name:20}" + "".join(f"{part:>9} {ms:7.2f}" for part, ms in parts.items()))
    report = {
        "benchmark": "host",
        "commit": commit(),
        "machine": machine(),
        "versions": {"segue": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "settings": {"batch": given.batch, "rounds": given.rounds, "rows": len(cache), "dtype": cache.meta["dtype"]},
        "aims_ms": {name: AIMS_MS[name.startswith("with ")] for name in figures},
        "figures_ms": figures,
    }
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
