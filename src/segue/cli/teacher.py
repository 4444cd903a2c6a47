"""`segue teacher train` and `segue teacher measure`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from segue.cli.reading import Column, Encoding, FollowLinks, Root, Source, source_of


def train(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for the teacher, its training state and its log.")],
    minutes: Annotated[float, typer.Option(help="Minutes of training, over all resumes.")] = 60.0,
    steps: Annotated[
        int | None, typer.Option(help="Steps instead of minutes: then a run is reproducible bit for bit.")
    ] = None,
    rate: Annotated[int, typer.Option(help="Sample rate in Hz; sounds are resampled to it.")] = 16000,
    extra: Annotated[list[Path] | None, typer.Option(help="Further folder of sounds, mixed in; repeatable.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights and draws.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves PyTorch's choice.")] = 0,
    root: Root = None,
    follow_links: FollowLinks = False,
    column: Column = None,
    encoding: Encoding = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unusable files out, and name them.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = "auto",
) -> None:
    """Train a teacher on your own sounds, without labels; the folder is then a teacher by name: --teacher DIR."""
    from segue.cli.options import device_of, finite, use_threads
    from segue.ssl.compact import CompactConfig
    from segue.training.teacher import TeacherTrainConfig, train_teacher
    from segue.training.teacher_figures import measure_teacher
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
    teacher: Annotated[str, typer.Argument(help="Teacher name, or the folder of a trained one.")],
    source: Source,
    root: Root = None,
    follow_links: FollowLinks = False,
    column: Column = None,
    encoding: Encoding = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unusable files out, and name them.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves PyTorch's choice.")] = 0,
) -> None:
    """Collapse figures of a teacher's space on held-out sounds, as JSON."""
    from segue.cli.options import use_threads
    from segue.ssl import load_teacher
    from segue.training.teacher_figures import measure_teacher

    use_threads(threads)
    data = source_of(source, root, follow_links, column, encoding)
    typer.echo(json.dumps(measure_teacher(load_teacher(teacher), data, skip_bad=skip_bad), indent=2))
