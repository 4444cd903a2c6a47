"""`segue judge`: train the classifier that listens to generated notes, and show how well it hears."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from segue.cli.origin import command, commit, machine


def train(
    source: Annotated[
        Path, typer.Argument(help="Demo set to train on: a folder or manifest with kind, family, instrument, pitch.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for judge.safetensors and card.json.")],
    card_on: Annotated[
        Path | None, typer.Option(help="Another demo set (other seed) that the card is measured on.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the data.", min=1)] = 9,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and damage.")] = 0,
) -> None:
    """Train a judge and write its card: about 20 minutes for 8,000 notes on one core."""
    from segue.training.judge import JudgeTraining, make_judge

    origin = {"command": command(), "commit": commit(), "machine": machine()}
    make_judge(source, out, card_on, JudgeTraining(epochs=epochs, seed=seed), origin)
    card(out)


def card(
    folder: Annotated[Path | None, typer.Argument(help="Folder of a judge; default: the shipped one.")] = None,
) -> None:
    """Show what a judge was trained on and how well it hears, clean and damaged."""
    from segue.metrics.judge import SHIPPED, Judge

    judge = Judge.load(folder or SHIPPED)
    shown = {
        k: judge.card.get(k) for k in ("what", "limits", "command", "commit", "machine", "data", "training", "sha256")
    }
    print(json.dumps(shown, indent=1, ensure_ascii=False))
    if not judge.card.get("figures"):
        print("no figures: trained without --card-on")
        return
    print(f"{'':22}{'family':>18}{'instrument':>18}{'pitch':>18}   (accuracy [95 % interval])")
    for damage, heads in judge.card["figures"].items():
        cells = (f"{x['accuracy']:.3f} [{x['interval'][0]:.3f} {x['interval'][1]:.3f}]" for x in heads.values())
        print(f"{damage:22}" + "".join(f"{cell:>20}" for cell in cells))
