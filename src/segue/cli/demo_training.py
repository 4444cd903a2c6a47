"""The runs of a demo: trained at once where a CPU has cores for it, resumed where they were interrupted."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segue.files import write_text
from segue.training.checkpoint import latest_checkpoint
from segue.training.config import RunConfig, from_json, to_json
from segue.training.journal import TrainResult
from segue.training.log import read_log
from segue.training.parallel_runs import (
    Job,
    last_words,
    locked,
    run_jobs,
    slots_here,
    stop_with_parent,
    threads_each,
)
from segue.types import UserError
from segue.workflows.train_run import continue_training

WORKER = (sys.executable, "-m", "segue.cli.demo_training")
VARIANT = "variant.json"


@dataclass(frozen=True)
class Variant:
    """One run: its config, the cache that it trains on, and its folder."""

    config: RunConfig
    cache_path: Path
    run_dir: Path

    @property
    def examples(self) -> int:
        """Length of the run."""
        return self.config.train.total_examples


def train_variants(variants: Sequence[Variant]) -> dict[str, TrainResult] | None:
    """Train the variants, continue them, or take them as they stand when they are finished.

    Returns:
        recipe -> how its run ended; None where somebody asked to stop. What was done is saved.

    Raises:
        UserError: a run failed; the line is its own.
    """
    slots = slots_here(len(variants))
    # One at a time needs no process of its own.
    if slots == 1:
        finished = all(train_variant(variant).finished for variant in variants)
    else:
        finished = _train_at_once(variants, slots)
    return {variant.config.recipe: result_of(variant) for variant in variants} if finished else None


def train_variant(variant: Variant, quiet: bool = False) -> TrainResult:
    """Train one variant here, from its newest checkpoint where it has one."""
    return continue_training(variant.config, variant.cache_path, variant.run_dir, quiet=quiet)


def result_of(variant: Variant) -> TrainResult:
    """How a run that is on disk ended."""
    state = json.loads((latest_checkpoint(variant.run_dir) / "state.json").read_text(encoding="utf-8"))
    losses = [e["loss_by_t"] for e in read_log(variant.run_dir / "log.jsonl") if e["event"] == "validation"]
    seen = state["examples_seen"]
    return TrainResult(variant.run_dir, seen, state["seconds"], seen >= variant.examples, losses[-1])


def _train_at_once(variants: Sequence[Variant], slots: int) -> bool:
    """True when all are finished, False when interrupted."""
    by_folder = {variant.run_dir: variant for variant in variants}

    def start(job: Job) -> None:
        # The worker gets its job as a file: a command line would have to carry a whole config.
        variant = by_folder[job.folder]
        about = {"config": to_json(variant.config), "cache": str(variant.cache_path.resolve())}
        write_text(job.folder / VARIANT, json.dumps(about, indent=1))

    def end(job: Job, code: int) -> str:
        if code:
            raise UserError(f"{job.folder}: {last_words(job.folder, code).removeprefix('segue: ')}")
        return ""

    jobs = [Job(variant.config.recipe, variant.run_dir, variant.examples) for variant in variants]
    threads = threads_each(slots)
    return run_jobs(jobs, WORKER, slots=slots, threads=threads, title="both recipes", start=start, end=end)


def work(run_dir: Path) -> int:
    """Train the variant that a folder's variant.json describes; what `train_variants` starts in its own process."""
    # Without this, workers would train on after a killed demo.
    stop_with_parent()
    with locked(run_dir / "lock", wait=True):  # the worker of a demo that was killed may still be saving
        # Read under the lock, since a second demo may write it anew.
        about = json.loads((run_dir / VARIANT).read_text(encoding="utf-8"))
        finished = train_variant(Variant(from_json(about["config"]), Path(about["cache"]), run_dir)).finished
    return 0 if finished else 130


if __name__ == "__main__":
    try:
        sys.exit(work(Path(sys.argv[1])))
    except UserError as error:
        print(f"segue: {error}", file=sys.stderr)
        sys.exit(2)
