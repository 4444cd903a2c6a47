"""What the host does for a batch before the model sees it: python benchmarks/host.py CACHE [--json FILE]

Rows, captions and teacher features are read, standardised, and joined by noise, times and dropped captions, as the loop
does it, all on one thread: what the loader's own thread does counts. "before" is the way of the versions until
2026-11-28, kept here: every row read by itself, one generator an example. Both are timed in turns, in CPU time of the
thread, and the least of many rounds is given, since other work on the machine only ever adds to it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import torch

from segue._version import __version__
from segue.data.cache import LatentCache
from segue.data.loader import LatentLoader
from segue.data.open_cache import open_cache
from segue.data.order import Order
from segue.data.shards import ShardFile
from segue.process.noise import BatchDraws, keyed_generator, keyed_noise
from segue.provenance import commit, machine
from segue.recipes import load_recipe
from segue.stage.timesteps import STAGE_TIMESTEPS, stage_distribution
from segue.tasks.base import Task
from segue.training.build import make_task
from segue.training.config import RunConfig, override
from segue.training.step import Example, draw_example
from segue.types import Condition

PARTS = ("read", "prepare", "draw")
AIMS_MS = {False: 3.0, True: 5.0}  # of a batch of 256, without and with teacher features


class Now:
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


class Before:
    """The same, row by row."""

    def __init__(self, cache: LatentCache, task: Task, batch: int) -> None:
        self.cache, self.task, self.batch = cache, task, batch
        self.now = Now(cache, task, batch)
        self.files: dict[str, tuple] = {}
        self.ends = np.cumsum([shard["rows"] for shard in cache.meta["text_shards"]]).tolist()

    def __call__(self, position: int, teacher: bool) -> tuple[float, float, float]:
        """CPU seconds of each of PARTS."""
        cache = self.cache
        started = time.thread_time()
        indices = [int(i) for i in self.now.order.at(position, self.batch).rows]
        rows = [cache.row(i) for i in indices]
        latents = torch.from_numpy(np.stack([self._row(r["shard"], "latents", r["row"]) for r in rows])).float()
        mask = torch.arange(cache.frames) < torch.tensor([r["frames"] for r in rows]).unsqueeze(1)
        tokens = torch.zeros(len(rows), cache.text_tokens, cache.text_dim)
        tokens_mask = torch.zeros(len(rows), cache.text_tokens, dtype=torch.bool)
        for b, r in enumerate(rows):
            number = r["caption_rows"][0]
            shard = int(np.searchsorted(self.ends, number, side="right"))
            name = cache.meta["text_shards"][shard]["file"]
            found = self._row(name, "tokens", number - (self.ends[shard - 1] if shard else 0))
            tokens[b, : len(found)] = torch.from_numpy(found)
            tokens_mask[b, : len(found)] = torch.from_numpy(
                self._row(name, "mask", number - (self.ends[shard - 1] if shard else 0))
            )
        if teacher:
            features = torch.from_numpy(np.stack([self._row(r["shard"], "teacher", r["row"]) for r in rows])).float()
            rate_hz = cache.meta["teacher_frame_rate_hz"]
            frames = torch.tensor([ceil(r["length_sec"] * rate_hz) for r in rows])
            _ = features, torch.arange(features.shape[1]) < frames.unsqueeze(1)
        read = time.thread_time()
        space = self.task.space
        x_0 = (latents - space.mean) / space.std * mask[:, None]
        longest = max(1, int(tokens_mask.sum(1).max()))
        condition = Condition(tokens[:, :longest], tokens_mask[:, :longest])
        whole = None if bool(mask.all()) else mask
        prepared = time.thread_time()
        t = self.now.times.sample(self.batch, keyed_generator(0, "times", position), stratified=True)
        drop = torch.rand(self.batch, generator=keyed_generator(0, "drop", position)) < 0.1
        eps = keyed_noise(x_0.shape[1:], 0, "noise", range(position, position + self.batch))
        Example(x_0, eps, t, replace(condition, drop=drop), whole)
        return read - started, prepared - read, time.thread_time() - prepared

    def _row(self, shard: str, name: str, row: int) -> np.ndarray:
        if shard not in self.files:
            path = self.cache.path / "shards" / shard
            head = ShardFile(path)
            self.files[shard] = head, path.open("rb", buffering=0)
        head, file = self.files[shard]
        first, size = head.place(name)
        data = bytearray(os.pread(file.fileno(), size, first + row * size))
        return np.frombuffer(data, head.dtype(name)).reshape(head.shape(name)[1:])


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
    ways: dict[str, Callable] = {"before": Before(cache, task, batch), "now": Now(cache, task, batch)}
    ways["now, rows in memory"] = Now(cache, task, batch, on_device=True)
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
