"""`segue train`: a recipe and a cache in, a run folder out."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from segue.audio.write import write_wav
from segue.cli.resume import keep_config, resumed
from segue.data.cache import LatentCache
from segue.data.tars import located
from segue.files import write_text
from segue.pipeline import Pipeline, SuperResolver
from segue.recipes import load_recipe
from segue.report import write_run_report
from segue.tasks.degradation import degrade
from segue.training.checkpoint import list_checkpoints
from segue.training.checks import check_before_training
from segue.training.config import RunConfig, override, to_json
from segue.training.journal import TrainResult
from segue.training.loop import train as train_loop
from segue.types import UserError


def train(
    recipe: Annotated[str | None, typer.Argument(help="A name of `segue recipes`.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Latent cache made by `segue encode`, or shards of `segue data pack`: folder or address. With "
            "--resume: where the run's cache lies now."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make.")] = None,
    examples: Annotated[
        int | None, typer.Option(help="Length of the run in examples seen; with --resume: its new length.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order, noise and times.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: optim.learning_rate=3e-4. May be repeated.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder, as its config.json says.")] = None,
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    samples: Annotated[int, typer.Option(help="Sounds to generate at the end, from held-out captions.", min=0)] = 4,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with the probe's teacher.")
    ] = False,
    grace_sec: Annotated[
        float, typer.Option(help="After SIGTERM, save and end within this many seconds; 0 = take as long as it takes.")
    ] = 30.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the settings, the memory need and the checks; train nothing.")
    ] = False,
) -> int:
    """Train a model on a latent cache. Ctrl-C saves; --resume RUN goes on exactly where it stopped."""
    if resume is not None:
        given = [
            n
            for n, v in {
                "RECIPE": recipe,
                "--out": out,
                "--seed": seed,
                "--set": set_,
            }.items()
            if v
        ]
        if given:
            raise UserError(f"--resume takes the rest from {resume}/config.json; hint: leave {', '.join(given)} away")
        config, cache_path = resumed(resume, data, examples)
        out = resume
    else:
        if recipe is None or data is None or out is None:
            name = "RECIPE" if recipe is None else "--data" if data is None else "--out"
            raise UserError(f"{name} is missing; hint: segue train static-uniform --data CACHE --out runs/mine")
        config, cache_path = _config(recipe, examples, seed, set_ or []), located(data)
    if dry_run:
        print(json.dumps(to_json(config), indent=1))
        for line in check_before_training(config, LatentCache.open(cache_path)):
            print(line)
        return 0
    result = run_training(
        config,
        cache_path,
        out,
        resume=resume is not None,
        device=device,
        samples=samples,
        trust_remote_code=trust_remote_code,
        grace_sec=grace_sec,
    )
    if not result.finished:
        print(
            f"stopped at {result.examples_seen:,} examples, saved; go on with: segue train --resume {out}",
            file=sys.stderr,
        )
        return 130
    print(f"{out}: {result.examples_seen:,} examples in {result.seconds:.0f} s; report: {out}/report.html")
    return 0


def run_training(
    config: RunConfig,
    cache_path: Path | str,
    run_dir: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    samples: int = 4,
    quiet: bool = False,
    trust_remote_code: bool = False,
    grace_sec: float = 30.0,
) -> TrainResult:
    """Check, train, generate a few held-out captions, write the run's report.

    Of several processes the first alone checks, and writes what the loop does not.

    Raises:
        UserError: the run folder is taken, or a check fails.
    """
    first = os.environ.get("RANK", "0") == "0"  # as torchrun and accelerate tell it, before they have met
    if first and not resume and (run_dir / "config.json").exists():
        mend = f"go on with --resume {run_dir}, or choose another --out"
        raise UserError(f"{run_dir}: holds a run already ({len(list_checkpoints(run_dir))} checkpoints); {mend}")
    cache = LatentCache.open(cache_path)
    for line in check_before_training(config, cache) if first else []:
        if not quiet:
            print(line, file=sys.stderr)
    if first:
        keep_config(run_dir, config, cache, resume)
    result = train_loop(
        config,
        cache,
        run_dir,
        resume=resume,
        device=device,
        quiet=quiet,
        trust_remote_code=trust_remote_code,
        grace_sec=grace_sec,
    )
    if not first:
        return result
    if result.finished and samples > 0:
        if config.train.task == "generation":
            write_samples(run_dir, cache, samples)
        else:
            write_resolved(run_dir, cache, config, samples)
    write_run_report(run_dir)
    return result


def continue_training(
    config: RunConfig, cache_path: Path | str, run_dir: Path, *, device: str = "auto", quiet: bool = False
) -> TrainResult:
    """Train in `run_dir`, from its newest checkpoint where it has one; for runs that another process looks after.

    Of a start that left no checkpoint nothing counts: it is cleared, and the run begins anew. No samples are made.
    """
    resume = (run_dir / "config.json").exists() and bool(list_checkpoints(run_dir))
    if not resume:
        for name in ("config.json", "log.jsonl"):
            (run_dir / name).unlink(missing_ok=True)
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    return run_training(config, cache_path, run_dir, resume=resume, device=device, samples=0, quiet=quiet)


def write_samples(run_dir: Path, cache: LatentCache, count: int) -> None:
    """Generate held-out captions of the cache into samples/."""
    pipeline = Pipeline.load(run_dir)
    rows = cache.rows("test") or cache.rows("valid")
    entries = [cache.row(i) for i in rows[:: max(1, len(rows) // count)][:count]]
    captions = [entry["captions"][0] for entry in entries]
    folder = run_dir / "samples"
    folder.mkdir(exist_ok=True)
    listed = []
    for index, (caption, wave) in enumerate(zip(captions, pipeline.generate(captions))):
        name = f"{index:03d}.wav"
        write_wav(folder / name, wave.numpy(), pipeline.codec.sample_rate_hz, caption, f"{run_dir} seed 0")
        listed.append({"file": name, "prompt": caption, "held_out": entries[index]["split"] == "test"})
    write_text(folder / "samples.json", json.dumps(listed, indent=1))


def write_resolved(run_dir: Path, cache: LatentCache, config: RunConfig, count: int) -> None:
    """Held-out clips of the cache into samples/: what the degradation leaves, what the model makes of it, the truth."""
    resolver = SuperResolver.load(run_dir)
    rows = cache.rows("test") or cache.rows("valid")
    rows = rows[:: max(1, len(rows) // count)][:count]
    samples = round(cache.meta["seconds"] * resolver.sample_rate_hz)
    true = resolver.codec.decode(cache.latents(rows)[0], samples)
    filter_ = config.degradation.held_out
    low = degrade(true, resolver.sample_rate_hz, [filter_] * len(rows))
    noise = torch.stack([resolver.noise(resolver.frames(samples), index) for index in range(len(rows))])
    made = resolver.resolve(low, torch.full((len(rows),), filter_.cutoff_hz), noise)
    (run_dir / "samples").mkdir(exist_ok=True)
    listed = []
    for index, row in enumerate(rows):
        entry = cache.row(row)
        for name, waves in (("low", low), ("made", made), ("true", true)):
            file = f"{index:03d}-{name}.wav"
            about = f"{entry['captions'][0]} ({name})"
            write_wav(run_dir / "samples" / file, waves[index].numpy(), resolver.sample_rate_hz, about)
            listed.append({"file": file, "prompt": about, "held_out": entry["split"] == "test"})
    write_text(run_dir / "samples" / "samples.json", json.dumps(listed, indent=1))


def _config(recipe: str, examples: int | None, seed: int | None, changes: list[str]) -> RunConfig:
    config = load_recipe(recipe)
    if examples is not None:
        config = replace(config, train=replace(config.train, total_examples=examples))
    if seed is not None:
        config = replace(config, train=replace(config.train, seed=seed))
    return override(config, changes)
