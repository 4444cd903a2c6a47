"""`segue teacher train` and `segue teacher measure`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from segue.cli.data_options import Column, Encoding, FollowLinks, Root, Source, source_of


def train(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for the teacher, its training state and its log.")],
    minutes: Annotated[float, typer.Option(help="Length of training in minutes, over all resumes.")] = 60.0,
    steps: Annotated[
        int | None,
        typer.Option(help="Length of training in steps, instead of --minutes; such a run is reproducible bit for bit."),
    ] = None,
    rate: Annotated[int, typer.Option(help="Sample rate in Hz that sounds are resampled to.")] = 16000,
    extra: Annotated[
        list[Path] | None, typer.Option(help="Folder of further sounds that are mixed in. May be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights and draws.")] = 0,
    threads: Annotated[int, typer.Option(help="Number of CPU threads; 0 leaves the choice to PyTorch.")] = 0,
    root: Root = None,
    follow_links: FollowLinks = False,
    column: Column = None,
    encoding: Encoding = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out files that cannot be used, and name them.")
    ] = False,
    device: Annotated[str, typer.Option(help="Device that computes: cpu, cuda, cuda:1, mps or auto.")] = "auto",
) -> None:
    """Train a teacher (a self-supervised encoder) on your own sounds; other commands take its folder: --teacher DIR."""
    from segue.cli.options import device_of, finite, use_threads
    from segue.ssl.compact import CompactConfig
    from segue.training.teacher import TeacherTrainConfig, train_teacher
    from segue.training.teacher.collapse import measure_teacher
    from segue.types import UserError

    finite("--steps", steps, 1)
    use_threads(threads)
    place = device_of(device)
    if not 1000 <= rate <= 192000:
        raise UserError(f"--rate {rate} Hz is outside 1000..192000; hint: give the rate of your sounds")
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
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out files that cannot be used, and name them.")
    ] = False,
    threads: Annotated[int, typer.Option(help="Number of CPU threads; 0 leaves the choice to PyTorch.")] = 0,
) -> None:
    """Measure whether a teacher's features have collapsed, on held-out sounds; as JSON."""
    from segue.cli.options import use_threads
    from segue.ssl import load_teacher
    from segue.training.teacher.collapse import measure_teacher

    use_threads(threads)
    data = source_of(source, root, follow_links, column, encoding)
    typer.echo(json.dumps(measure_teacher(load_teacher(teacher), data, skip_bad=skip_bad), indent=2))
