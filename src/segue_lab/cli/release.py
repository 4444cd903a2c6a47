"""`segue-lab release`: trained weights, halved to float16, measured, with a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from segue_lab.release.card import measured_and_listed

Out = Annotated[Path, typer.Option(help="Folder for the weights (float16) and card.json.")]
MeasureOn = Annotated[
    list[str], typer.Option("--measure", help="Folder of sounds to measure on, as NAME=FOLDER. May be repeated.")
]
Sources = Annotated[Path, typer.Option(help="JSON list of the training data, with licences.")]
Command = Annotated[str, typer.Option(help="Command that trained the weights.")]
Commit = Annotated[str, typer.Option(help="Commit that the weights were trained at.")]


def codec(
    run: Annotated[Path, typer.Argument(help="Folder that `segue codec train` wrote.")],
    out: Out,
    measure_on: MeasureOn,
    sources: Sources,
    command: Command,
    commit: Commit,
    classify_on: Annotated[
        Path | None, typer.Option(help="Demo set on which the note classifier's accuracy after the codec is measured.")
    ] = None,
) -> None:
    """Halve a trained codec's weights, measure it, and write its card."""
    from segue_lab.release.codec import release_codec

    # The lists are read first: a wrong path must not show after the measurement.
    folders, listed = measured_and_listed(measure_on, sources)
    about: dict[str, Any] = {"sources": listed, "command": command, "commit": commit}
    _show(release_codec(run, out, folders, classify_on=classify_on, **about))


def teacher(
    run: Annotated[Path, typer.Argument(help="Folder that `segue teacher train` wrote.")],
    out: Out,
    measure_on: MeasureOn,
    sources: Sources,
    command: Command,
    commit: Commit,
    layer: Annotated[
        list[int] | None,
        typer.Option("--layer", help="Layer whose features are the default; if repeated, the mean of the layers."),
    ] = None,
) -> None:
    """Halve a trained teacher's weights, measure it, and write its card."""
    from segue_lab.release.teacher import release_teacher

    folders, listed = measured_and_listed(measure_on, sources)
    about: dict[str, Any] = {"sources": listed, "command": command, "commit": commit}
    _show(release_teacher(run, out, folders, layers=tuple(layer or ()) or None, **about))


def super_resolution(
    run: Annotated[Path, typer.Argument(help="Folder that `segue train` wrote.")],
    out: Out,
    measure_on: MeasureOn,
    sources: Sources,
    command: Command,
    commit: Commit,
    steps: Annotated[str, typer.Option(help="Numbers of solver steps to measure, separated by commas.")] = "4,50",
    clips: Annotated[int, typer.Option(help="Number of sounds to measure, at most.")] = 64,
) -> None:
    """Keep a trained model's averaged weights in float16, measure them, and write their card."""
    from segue.cli.options import step_counts
    from segue_lab.release.super_resolution import release_super_resolution

    folders, listed = measured_and_listed(measure_on, sources)
    about: dict[str, Any] = {"sources": listed, "command": command, "commit": commit}
    _show(release_super_resolution(run, out, folders, steps=step_counts(steps), clips=clips, **about))


def text_to_audio(
    demo: Annotated[Path, typer.Argument(help="Folder that `segue demo` left.")],
    out: Out,
    sources: Sources,
    variant: Annotated[str, typer.Option(help="Recipe of the run that is released.")] = "stage",
) -> None:
    """Keep the averaged weights of one of a demo's runs in float16, with the demo's figures in the card."""
    from segue_lab.release.text_to_audio import release_text_to_audio

    _, listed = measured_and_listed((), sources)
    _show(release_text_to_audio(demo, variant, out, listed))


def _show(card: dict) -> None:
    typer.echo(json.dumps(card["figures"], indent=2))
