"""Runs of one demo, at once where a CPU has cores for it: two small runs of one thread each train a third more
examples in a minute than one run after the other on two threads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from segue.cli.train import run_training
from segue.files import write_text
from segue.study.processes import examples_logged, last_words, locked, start_worker, stop_with_parent, stop_workers
from segue.training.checkpoint import latest_checkpoint, list_checkpoints
from segue.training.config import RunConfig, from_json, to_json
from segue.training.interrupt import Interrupt
from segue.training.log import read_log
from segue.training.loop import TrainResult
from segue.training.progress import Meter
from segue.types import UserError

WORKER = (sys.executable, "-m", "segue.cli.side_by_side")
ARM = "arm.json"


@dataclass(frozen=True)
class Arm:
    """One run: its config, the cache it trains on, and its folder."""

    config: RunConfig
    cache_path: Path
    run_dir: Path


def lanes(runs: int) -> int:
    """How many runs go at once: one on an accelerator, and no more than there are cores for."""
    alone = torch.cuda.is_available() or torch.backends.mps.is_available() or os.name == "nt"  # no file locks there
    return 1 if alone else max(1, min(runs, _cores()))


@contextmanager
def threads_of(lane_count: int) -> Iterator[None]:
    """Compute with one lane's share of the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(_threads(lane_count) if lane_count > 1 else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train_arms(arms: Sequence[Arm]) -> dict[str, TrainResult] | None:
    """Train the arms, go on with them, or take them as they stand when they are finished.

    Returns:
        recipe -> how its run ended; None where somebody asked to stop. What was done is saved.

    Raises:
        UserError: an arm failed; the line is its own.
    """
    lane_count = lanes(len(arms))
    if lane_count == 1:
        for arm in arms:
            if not train_arm(arm).finished:
                return None
    elif not _train_at_once(arms, lane_count):
        return None
    return {arm.config.recipe: result_of(arm) for arm in arms}


def train_arm(arm: Arm, quiet: bool = False) -> TrainResult:
    """Train one arm here, from its newest checkpoint where it has one."""
    resume = (arm.run_dir / "config.json").exists() and bool(list_checkpoints(arm.run_dir))
    if not resume:  # a start that left no checkpoint: nothing of it counts
        for name in ("config.json", "log.jsonl"):
            (arm.run_dir / name).unlink(missing_ok=True)
        shutil.rmtree(arm.run_dir / "checkpoints", ignore_errors=True)
    return run_training(arm.config, arm.cache_path, arm.run_dir, resume=resume, samples=0, quiet=quiet)


def result_of(arm: Arm) -> TrainResult:
    """How a run that is on disk ended."""
    state = json.loads((latest_checkpoint(arm.run_dir) / "state.json").read_text())
    losses = [e["loss_by_t"] for e in read_log(arm.run_dir / "log.jsonl") if e["event"] == "validation"]
    seen = state["examples_seen"]
    return TrainResult(arm.run_dir, seen, state["seconds"], seen >= arm.config.train.total_examples, losses[-1])


def _train_at_once(arms: Sequence[Arm], lane_count: int) -> bool:
    """True when all are finished, False when interrupted."""
    threads = str(_threads(lane_count))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    total = sum(arm.config.train.total_examples for arm in arms)
    waiting: list[Arm] = list(arms)
    running: dict[Path, subprocess.Popen] = {}

    def seen() -> list[int]:
        return [min(a.config.train.total_examples, examples_logged(a.run_dir)) for a in arms]

    with Interrupt() as interrupt, Meter("both recipes", total, sum(seen())) as meter:
        try:
            while (waiting or running) and not interrupt.requested:
                while waiting and len(running) < lane_count:
                    arm = waiting.pop(0)
                    about = {"config": to_json(arm.config), "cache": str(arm.cache_path.resolve())}
                    write_text(arm.run_dir / ARM, json.dumps(about, indent=1))
                    running[arm.run_dir] = start_worker(WORKER, arm.run_dir, environment)
                time.sleep(0.2)
                for run_dir, process in list(running.items()):
                    code = process.poll()
                    if code:
                        raise UserError(f"{run_dir}: {last_words(run_dir, code).removeprefix('segue: ')}")
                    if code == 0:
                        del running[run_dir]
                done = seen()
                words = (f"{a.config.recipe} {n / a.config.train.total_examples:.0%}" for a, n in zip(arms, done))
                meter.update(sum(done), ", ".join(words))
        finally:
            stop_workers(list(running.values()))
        return not interrupt.requested


def _threads(lane_count: int) -> int:
    return max(1, _cores() // lane_count)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(run_dir: Path) -> int:
    """Train the arm that a folder's arm.json describes; what `train_arms` starts in a process of its own."""
    stop_with_parent()
    with locked(run_dir / "lock", wait=True):  # the worker of a demo that was killed may still be saving
        about = json.loads((run_dir / ARM).read_text())
        finished = train_arm(Arm(from_json(about["config"]), Path(about["cache"]), run_dir)).finished
    return 0 if finished else 130


if __name__ == "__main__":
    try:
        sys.exit(work(Path(sys.argv[1])))
    except UserError as error:
        print(f"segue: {error}", file=sys.stderr)
        sys.exit(2)
