"""`segue super-resolution`: train a one-pass predictor; figures of a model beside those of baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from segue.cli.data_options import Column, Encoding, FollowLinks, Root, Source, source_of
from segue.cli.options import ContinueOut, Device, Extra, SkipBad, Steps, Threads, check_rate, finite, step_counts
from segue.files import write_text


def train(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for the predictor, its training state and its log.")],
    minutes: Annotated[float, typer.Option(help="Length of training in minutes, over all resumes.")] = 30.0,
    steps: Steps = None,
    rate: Annotated[int, typer.Option(help="Sample rate in Hz of what the predictor makes.")] = 16000,
    cutoff_min_hz: Annotated[
        float, typer.Option(help="Lowest frequency in Hz above which training clips lose everything.")
    ] = 3400.0,
    cutoff_max_hz: Annotated[
        float | None, typer.Option(help="Highest such frequency in Hz; default: 85 % of half of --rate.")
    ] = None,
    telephone_share: Annotated[
        float, typer.Option(help="Share of training clips out of telephones (300 to 3,400 Hz; A-law, mu-law, GSM).")
    ] = 0.0,
    coded_share: Annotated[float, typer.Option(help="Share of training clips out of MP3 and Opus files.")] = 0.0,
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
    """Train a one-pass predictor of upper bands on full-band sounds; segue upsample takes its folder."""
    from segue.cli.options import use_threads
    from segue.devices import announced_device
    from segue.predictor import PredictorConfig
    from segue.training.predictor import PredictorTrainConfig, train_predictor

    finite("--steps", steps, 1)
    use_threads(threads)
    # Options are checked before the sounds are read, which may take minutes.
    check_rate(rate)
    config = PredictorTrainConfig(
        PredictorConfig(rate),
        minutes,
        steps,
        cutoff_min_hz=cutoff_min_hz,
        cutoff_max_hz=cutoff_max_hz or 0.0,
        telephone_share=telephone_share,
        coded_share=coded_share,
        seed=seed,
    )
    data = source_of(source, root, follow_links, column, encoding)
    place = announced_device(device)
    train_predictor(data, out, config, extra=tuple(extra or ()), resume=resume, skip_bad=skip_bad, device=place)
    typer.echo(f"predictor in {out}; next: segue upsample {out} narrow.wav wide.wav")


def measure(
    run: Annotated[
        str, typer.Argument(help="Folder of a predictor or of a run, or a checkpoint; 'default': the shipped models.")
    ],
    source: Annotated[
        Path,
        typer.Argument(help="Folder of full-band sounds; of their split 'test', or of 'valid' where they have none."),
    ],
    cutoff_hz: Annotated[
        float, typer.Option(help="Frequency in Hz above which the test takes everything away.")
    ] = 4000.0,
    test: Annotated[str, typer.Option(help="Test protocol: nuwave2, nuwave2-poly or ssr-eval.")] = "nuwave2",
    steps: Annotated[
        str | None,
        typer.Option(
            help="Numbers of solver steps to measure, separated by commas; 0: the predictor.",
            show_default="0,4 of the shipped models, 0 of a predictor, 4,50 of a run",
        ),
    ] = None,
    clips: Annotated[int, typer.Option(help="Number of sounds at most, evenly spaced in the set.")] = 64,
    seconds: Annotated[
        float, typer.Option(help="Length in seconds that is taken of each sound, from its start.")
    ] = 4.0,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Measure all of a set that was no part of the model's training.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write all figures to, as JSON.")] = None,
) -> None:
    """Measure a model and every baseline: LSD (full, low and high band) and SI-SDR, with 95 % intervals."""
    from segue.workflows.measure_super_resolution import measure_super_resolution

    counts = None if steps is None else step_counts(steps, least=0)
    finite("--clips", clips, 1)
    figures = measure_super_resolution(_models(run, counts), source, cutoff_hz, test, clips, seconds, unseen)
    if json_file is not None:
        write_text(json_file, json.dumps(figures, indent=2) + "\n")
    _print(figures)


def _models(run: str, counts: tuple[int, ...] | None) -> dict:
    """Number of steps -> the model that works with it: predictors with 0, diffusion models with others."""
    from segue.predictor.files import predictor_file
    from segue.upsampling.load import load_resolver

    if counts is None:
        counts = (0, 4) if run == "default" else (4, 50) if predictor_file(run) is None else (0,)
    # One that takes several numbers of steps is loaded once.
    loaded = {least: load_resolver(run, "ema", "cpu", least) for least in {min(count, 1) for count in counts}}
    return {count: loaded[min(count, 1)] for count in counts}


def _print(figures: dict) -> None:
    about = "{clips} clips of {source} ({split}), cut at {cutoff_hz:,.0f} Hz by {test}, LSD preset {lsd}"
    about = about.format(**figures)
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
