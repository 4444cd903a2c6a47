"""`segue teacher train` and `segue teacher measure`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from segue.cli.data_options import Column, Encoding, FollowLinks, Root, Source, source_of
from segue.cli.options import ContinueOut, Device, Extra, SkipBad, Steps, Threads, check_rate


def train(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for the teacher, its training state and its log.")],
    minutes: Annotated[float, typer.Option(help="Length of training in minutes, over all resumes.")] = 60.0,
    steps: Steps = None,
    rate: Annotated[int, typer.Option(help="Sample rate in Hz that sounds are resampled to.")] = 16000,
    extra: Extra = None,
    resume: ContinueOut = False,
    seed: Annotated[int, typer.Option(help="Seed of weights and draws.")] = 0,
    threads: Threads = 0,
    root: Root = None,
    follow_links: FollowLinks = False,
    column: Column = None,
    encoding: Encoding = None,
    skip_bad: SkipBad = False,
    device: Device = "auto",
) -> None:
    """Train a teacher (a self-supervised encoder) on your own sounds; other commands take its folder: --teacher DIR."""
    from segue.cli.options import finite, use_threads
    from segue.devices import announced_device
    from segue.ssl.compact import CompactConfig
    from segue.training.teacher import TeacherTrainConfig, train_teacher
    from segue.training.teacher.collapse import measure_teacher

    finite("--steps", steps, 1)
    use_threads(threads)
    check_rate(rate)
    place = announced_device(device)
    config = TeacherTrainConfig(model=CompactConfig.for_rate(rate), minutes=minutes, steps=steps, seed=seed)
    data = source_of(source, root, follow_links, column, encoding)
    teacher = train_teacher(data, out, config, extra=tuple(extra or ()), resume=resume, skip_bad=skip_bad, device=place)
    typer.echo(json.dumps(measure_teacher(teacher.to("cpu"), data, skip_bad=skip_bad), indent=2))
    typer.echo(f"teacher in {out}; next: segue encode SOURCE --out CACHE --teacher {out}")


def measure(
    teacher: Annotated[str, typer.Argument(help="Name of a teacher, or folder of a trained one.")],
    source: Source,
    root: Root = None,
    follow_links: FollowLinks = False,
    column: Column = None,
    encoding: Encoding = None,
    skip_bad: SkipBad = False,
    threads: Threads = 0,
) -> None:
    """Measure whether a teacher's features have collapsed, on held-out sounds; as JSON."""
    from segue.cli.options import use_threads
    from segue.ssl import load_teacher
    from segue.training.teacher.collapse import measure_teacher

    use_threads(threads)
    data = source_of(source, root, follow_links, column, encoding)
    typer.echo(json.dumps(measure_teacher(load_teacher(teacher), data, skip_bad=skip_bad), indent=2))
