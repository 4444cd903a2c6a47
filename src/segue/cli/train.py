"""`segue train`: a recipe and a cache in, a run folder out."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from segue.cli.options import Device, finite
from segue.data.open_cache import open_cache
from segue.data.tars import located
from segue.recipes import DEFAULT_RECIPE, fine_tuning, load_recipe
from segue.training.build import model_shape
from segue.training.checks import check_before_training
from segue.training.config import RunConfig, override, to_json
from segue.training.fine_tuning import with_lora
from segue.training.fit_memory import fit_memory
from segue.training.trackers import with_tracker
from segue.types import UserError
from segue.workflows.run_config import resumed
from segue.workflows.train_run import run_training


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help=f"Name of a recipe; `segue recipes` lists them; default: {DEFAULT_RECIPE}, or stage with --model or "
            "--lora."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Latent cache of `segue encode`, or shards of `segue data pack`: a folder or an address. With "
            "--resume: where the cache of the run lies now."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub name of a diffusers pipeline whose model is trained on (docs/fine-tuning.md); the "
            "cache is that of segue encode --model."
        ),
    ] = None,
    lora: Annotated[
        str | None,
        typer.Option(help="Train low-rank adapters in place of all weights: rank=16, or rank=16,dora."),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            help="GiB of the GPU: choose parts of a batch, checkpointing and 8-bit moments that fit, in bf16."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run, which must be new.")] = None,
    examples: Annotated[
        int | None,
        typer.Option(help="Length of the run in examples seen; default: the recipe's. With --resume: its new length."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of weights, order, noise and timesteps; default: the recipe's.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Setting to change, such as optim.learning_rate=3e-4. May be repeated."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Folder of a run to continue, with the settings in its config.json.")
    ] = None,
    device: Device = "auto",
    cache_on_device: Annotated[
        str,
        typer.Option(
            help="Whether training rows live in the device's memory: yes, no, or auto (where they take at most a "
            "quarter of a GPU's free memory)."
        ),
    ] = "auto",
    samples: Annotated[
        int | None,
        typer.Option(
            help="Number of sounds to generate at each checkpoint and at the end; 0: none; default: 4, of a continued "
            "run as before.",
            min=0,
        ),
    ] = None,
    tracker: Annotated[
        str | None,
        typer.Option(
            help="Tracker that gets numbers and sounds besides log.jsonl: tensorboard (files in the run folder), wandb "
            "(WANDB_MODE=offline is honoured) or none; default: none, of a continued run as before."
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with the teacher.")
    ] = False,
    grace_sec: Annotated[
        float, typer.Option(help="Seconds in which a run saves and ends after SIGTERM; 0: no limit.")
    ] = 30.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the settings, the memory need and the checks; train nothing.")
    ] = False,
) -> int:
    """Train a model on a latent cache. Ctrl-C saves; --resume RUN continues exactly there."""
    # Which run: a new one of a recipe, or one that is continued as its config.json says.
    if resume is not None:
        given = [
            n
            for n, v in {
                "RECIPE": recipe,
                "--model": model,
                "--lora": lora,
                "--memory": memory,
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
        if data is None or out is None:
            name = "--data" if data is None else "--out"
            raise UserError(f"{name} is missing; hint: segue train --data CACHE --out runs/mine")
        if recipe is None:
            # What is trained on keeps the optimiser that it was made with; adapters take no updates of full rank.
            recipe = DEFAULT_RECIPE if model is None and lora is None else "stage"
            print(f"recipe: {recipe}, the default; `segue recipes` lists all", file=sys.stderr)
        finite("--memory", memory, 0.0, above=True)
        config = _config(recipe, model, lora, examples, seed, set_ or [])
        cache_path = located(data)
        if memory is not None:
            cache = open_cache(cache_path)
            config, line = fit_memory(config, cache, model_shape(config, cache), memory)
            print(line, file=sys.stderr)
    if samples is not None:
        config = override(config, [f"train.samples={samples}"])
    if tracker is not None:
        config = with_tracker(config, tracker)
    # A dry run ends with the checks.
    if dry_run:
        print(json.dumps(to_json(config), indent=1))
        for line in check_before_training(config, open_cache(cache_path), device):
            print(line)
        return 0
    result = run_training(
        config,
        cache_path,
        out,
        resume=resume is not None,
        device=device,
        cache_on_device=cache_on_device,
        trust_remote_code=trust_remote_code,
        grace_sec=grace_sec,
    )
    # A stopped run is saved; the exit code is that of an interrupt.
    if not result.finished:
        print(
            f"stopped at {result.examples_seen:,} examples, saved; continue with: segue train --resume {out}",
            file=sys.stderr,
        )
        return 130
    print(f"{out}: {result.examples_seen:,} examples in {result.seconds:.0f} s; report: {out}/report.html")
    return 0


def _config(
    recipe: str, model: str | None, lora: str | None, examples: int | None, seed: int | None, changes: list[str]
) -> RunConfig:
    config = load_recipe(recipe)
    if model is not None:
        config = fine_tuning(config, model)
    if lora is not None:
        config = with_lora(config, lora)
    if examples is not None:
        config = replace(config, train=replace(config.train, total_examples=examples))
    if seed is not None:
        config = replace(config, train=replace(config.train, seed=seed))
    return override(config, changes)
