"""`segue-lab teacher measure`: linear probes of a teacher's space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def measure(
    teacher: Annotated[str, typer.Argument(help="Teacher name, or the folder of a trained one.")],
    source: Annotated[Path, typer.Argument(help="Folder of sounds; labels of its manifest are probed for.")],
    layers: Annotated[bool, typer.Option("--layers", help="Probe every layer of one of our own.")] = False,
    clips: Annotated[int, typer.Option(help="Clips at most that a probe trains on.")] = 4000,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unusable files out, and name them.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves PyTorch's choice.")] = 0,
) -> None:
    """Linear probes against log-mel statistics (and random weights), and collapse figures, as JSON."""
    from segue.cli.options import finite, use_threads
    from segue.ssl import load_teacher
    from segue_lab.teacher_probes import probe_teacher

    use_threads(threads)
    finite("--clips", clips, 1)
    report = probe_teacher(load_teacher(teacher), source, layers=layers, clips=clips, skip_bad=skip_bad)
    typer.echo(json.dumps(report, indent=2))
