"""`segue recipes`: what can be trained, and in which sizes."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from segue.memory import format_bytes
from segue.models.gpu_fit import GPU_GIB, fit_of
from segue.models.presets import PRESETS, parameters_of
from segue.recipes import DEFAULT_RECIPE, RECIPES
from segue.stage.policy import Policy

FRAMES = 256  # of a row, each a token


def recipes(
    presets: Annotated[
        bool, typer.Option("--presets", help="Also print the model sizes and the memory they need.")
    ] = False,
) -> None:
    """List the recipes that `segue train` takes."""
    console = Console(highlight=False)
    name_column = Column("recipe", no_wrap=True, min_width=max(map(len, RECIPES)))  # a name that is cut cannot be typed
    table = Table(name_column, "regime", "times", "alignment", "what it is", box=None, pad_edge=False)
    for name, make in RECIPES.items():
        config = make()
        # A recipe describes itself: its docstring is the text of the list.
        words = " ".join((make.__doc__ or "").split())
        table.add_row(name + (" (default)" if name == DEFAULT_RECIPE else ""), *in_brief(config.policy), words)
    console.print(table)
    if presets:
        console.print(
            f"\nThe largest batch of rows of {FRAMES} tokens that a GPU trains: bf16 over float32 weights, AdamW, "
            "EMA (counted, not tried; train.accumulation and model.gradient_checkpointing make more possible):"
        )
        sizes = [Column(f"{gib} GiB", justify="right") for gib in GPU_GIB]
        names: list[Column | str] = [Column("preset", no_wrap=True), Column("parameters", no_wrap=True)]
        columns = [*names, "weights", "an example", *sizes]
        table = Table(*columns, box=None, pad_edge=False)
        for name, size in PRESETS.items():
            fit = fit_of(size, FRAMES)
            table.add_row(
                name,
                f"{parameters_of(size) / 1e6:,.1f} M",
                format_bytes(fit.weights),
                format_bytes(fit.example),
                *(f"{batch:,}" if batch else "-" for batch in fit.batches.values()),
            )
        console.print(table)


def in_brief(policy: Policy) -> tuple[str, str, str]:
    """Where the regime comes from, how times are drawn, how the teacher is followed."""
    regime = policy.regime
    timesteps = policy.timesteps
    alignment = policy.alignment
    # Words wrap in a narrow terminal, where a hyphenated name would be cut.
    read = f"r = {regime.constant:g}" if regime.signal == "constant" else regime.signal.replace("-", " ")
    # The regime matters only where something follows it: else "-" says that nothing does.
    driven = timesteps.distribution != "static" or (alignment.weight > 0 and alignment.schedule == "decay")
    times = str(policy.static_timesteps) if timesteps.distribution == "static" else timesteps.distribution
    teacher = f"{alignment.weight:g} {alignment.schedule}" if alignment.weight else "-"
    return read if driven or policy.structure.enabled else "-", times, teacher
