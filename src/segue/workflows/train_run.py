"""Train a run folder: check, train, generate a few held-out captions, write the report."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch

from segue.data.open_cache import open_cache
from segue.devices import device_of
from segue.report import write_run_report
from segue.training.checkpoint import list_checkpoints
from segue.training.checks import check_before_training
from segue.training.config import RunConfig
from segue.training.journal import TrainResult
from segue.training.loop import train
from segue.training.precision import settle
from segue.types import UserError
from segue.workflows.checkpoint_sounds import sounds_at_checkpoints
from segue.workflows.run_config import keep_config
from segue.workflows.run_samples import generate_samples, upsample_samples


def run_training(
    config: RunConfig,
    cache_path: Path | str,
    run_dir: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    samples: int | None = None,
    quiet: bool = False,
    cache_on_device: str = "auto",
    trust_remote_code: bool = False,
    grace_sec: float = 30.0,
) -> TrainResult:
    """Check, train, generate a few held-out captions, write the run's report.

    Of several processes the first alone checks, and writes what the loop does not.

    Args:
        samples: sounds each time, in place of what the config says.

    Raises:
        UserError: the run folder is taken, or a check fails.
    """
    samples = config.train.samples if samples is None else samples
    first = os.environ.get("RANK", "0") == "0"  # as torchrun and accelerate tell it, before they have met
    # Before training: a free folder, the checks, and config.json.
    if first and not resume and (run_dir / "config.json").exists():
        hint = f"continue it with --resume {run_dir}, or choose another --out"
        raise UserError(f"{run_dir}: holds a run already ({len(list_checkpoints(run_dir))} checkpoints); hint: {hint}")
    # Every process opens the cache; only the first one checks it.
    cache = open_cache(cache_path)
    # As config.json will have it: the run goes on as it began, wherever that is.
    config = settle(config, torch.device(device_of(device)))
    for line in check_before_training(config, cache, device) if first else []:
        if not quiet:
            print(line, file=sys.stderr)
    if first:
        # After the checks: a run that they refuse is not begun.
        keep_config(run_dir, config, cache, resume)
    result = train(
        config,
        cache,
        run_dir,
        resume=resume,
        device=device,
        quiet=quiet,
        cache_on_device=cache_on_device,
        trust_remote_code=trust_remote_code,
        grace_sec=grace_sec,
        sounds=sounds_at_checkpoints(config, cache, run_dir, samples),
    )
    # After training: samples and the report, by the first process alone.
    if not first:
        return result
    # A stopped run is no finished model, so that its samples would mislead.
    if result.finished and samples > 0:
        if config.train.task == "generation":
            generate_samples(run_dir, cache, samples)
        else:
            upsample_samples(run_dir, cache, config, samples)
    write_run_report(run_dir)
    return result


def continue_training(
    config: RunConfig, cache_path: Path | str, run_dir: Path, *, device: str = "auto", quiet: bool = False
) -> TrainResult:
    """Train in `run_dir`, from its newest checkpoint where it has one; for runs that another process looks after.

    Of a start that left no checkpoint nothing counts: it is cleared, and the run begins anew. No samples are made.
    """
    # config.json without a checkpoint is a run that was killed before it had saved anything.
    resume = (run_dir / "config.json").exists() and bool(list_checkpoints(run_dir))
    if not resume:
        for name in ("config.json", "log.jsonl"):
            (run_dir / name).unlink(missing_ok=True)
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    return run_training(config, cache_path, run_dir, resume=resume, device=device, samples=0, quiet=quiet)
