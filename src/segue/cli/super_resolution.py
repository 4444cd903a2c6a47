"""`segue super-resolution`: figures of a super-resolution model beside those of baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from segue.cli.options import finite, step_counts
from segue.files import write_text
from segue.pipeline import SuperResolver
from segue.workflows.measure_super_resolution import measure_super_resolution


def measure(
    run: Annotated[str, typer.Argument(help="Folder of a run, or a checkpoint; 'default': the shipped model.")],
    source: Annotated[
        Path, typer.Argument(help="Folder of full-band sounds; its held-out clips (test or valid) are measured on.")
    ],
    cutoff_hz: Annotated[
        float, typer.Option(help="Frequency in Hz above which the test takes everything away.")
    ] = 4000.0,
    test: Annotated[str, typer.Option(help="Test protocol: nuwave2, nuwave2-poly or ssr-eval.")] = "nuwave2",
    steps: Annotated[str, typer.Option(help="Numbers of solver steps to measure, separated by commas.")] = "4,50",
    clips: Annotated[int, typer.Option(help="Number of sounds at most, evenly spaced in the set.")] = 64,
    seconds: Annotated[
        float, typer.Option(help="Length in seconds that is taken of each sound, from its start.")
    ] = 4.0,
    whole_set: Annotated[
        bool, typer.Option("--all", help="Measure on all of SOURCE, which the model was not trained on.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write all figures to, as JSON.")] = None,
) -> None:
    """Measure a model and every baseline: LSD (full, low and high band) and SI-SDR, with 95 % intervals."""
    counts = step_counts(steps)
    finite("--clips", clips, 1)
    resolver = SuperResolver.load(None if run == "default" else run)
    figures = measure_super_resolution(resolver, source, cutoff_hz, test, counts, clips, seconds, whole_set)
    if json_file is not None:
        write_text(json_file, json.dumps(figures, indent=2) + "\n")
    _print(figures)


def _print(figures: dict) -> None:
    which = "all clips" if figures["split"] == "all" else f"held-out clips (split {figures['split']})"
    about = f"{which}: " + "{clips} of {source}, cut at {cutoff_hz:,.0f} Hz by {test}, LSD preset {lsd}".format(
        **figures
    )
    table = Table(title=f"{about}; 95 % intervals over clips", title_justify="left")
    names = list(next(iter(figures["rows"].values())))
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for name, row in figures["rows"].items():
        cells = (row[measure] for measure in names)
        table.add_row(name, *("{mean:.3f} ({interval[0]:.3f} to {interval[1]:.3f})".format(**cell) for cell in cells))
    console = Console()
    console = console if console.is_terminal else Console(width=160)  # into a file or a pipe: no cut columns
    console.print(table)
