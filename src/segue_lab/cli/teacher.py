"""`segue-lab teacher measure`: linear probes of a teacher's space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from segue.cli.options import SkipBad, Threads


def measure(
    teacher: Annotated[str, typer.Argument(help="Name of a teacher, or folder of a trained one.")],
    source: Annotated[Path, typer.Argument(help="Folder of sounds whose manifest has labels to probe for.")],
    layers: Annotated[bool, typer.Option("--layers", help="Probe every layer of a compact teacher.")] = False,
    clips: Annotated[int, typer.Option(help="Number of clips that a probe trains on, at most.")] = 4000,
    skip_bad: SkipBad = False,
    threads: Threads = 0,
) -> None:
    """Compare a teacher with log-mel statistics and random weights by linear probes, as JSON."""
    from segue.cli.options import finite, use_threads
    from segue.ssl import load_teacher
    from segue_lab.teacher_probes import probe_teacher

    use_threads(threads)
    finite("--clips", clips, 1)
    report = probe_teacher(load_teacher(teacher), source, layers=layers, clips=clips, skip_bad=skip_bad)
    typer.echo(json.dumps(report, indent=2))
