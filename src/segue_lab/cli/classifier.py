"""`segue-lab classifier`: train the note classifier, and show how accurate it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from segue.provenance import command, commit, machine


def train(
    source: Annotated[
        Path, typer.Argument(help="Demo set to train on: a folder or manifest with kind, family, instrument, pitch.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for note-classifier.safetensors and card.json.")],
    card_on: Annotated[Path | None, typer.Option(help="Demo set of another seed that the card is measured on.")] = None,
    epochs: Annotated[int, typer.Option(help="Number of passes over the data.", min=1)] = 9,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and damage.")] = 0,
) -> None:
    """Train a note classifier and write its card: about 20 minutes for 8,000 notes on one core."""
    from segue_lab.note_classifier_training import NoteTraining, make_classifier

    origin = {"command": command(), "commit": commit(), "machine": machine()}
    # Where the weights come from is settled before the training, since a commit may move under a long run.
    make_classifier(source, out, card_on, NoteTraining(epochs=epochs, seed=seed), origin)
    card(out)


def card(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of a note classifier; default: the shipped one.")
    ] = None,
) -> None:
    """Show what a note classifier was trained on and how accurate it is, on clean and on damaged clips."""
    from segue.evaluation.note_classifier import SHIPPED, NoteClassifier

    classifier = NoteClassifier.load(folder or SHIPPED)
    shown = {
        k: classifier.card.get(k)
        for k in ("what", "limits", "command", "commit", "machine", "data", "training", "sha256")
    }
    print(json.dumps(shown, indent=1, ensure_ascii=False))
    if not classifier.card.get("figures"):
        print("no figures: trained without --card-on")
        return
    print(f"{'':22}{'family':>18}{'instrument':>18}{'pitch':>18}   (accuracy [95 % interval])")
    for damage, heads in classifier.card["figures"].items():
        cells = (f"{x['accuracy']:.3f} [{x['interval'][0]:.3f} {x['interval'][1]:.3f}]" for x in heads.values())
        print(f"{damage:22}" + "".join(f"{cell:>20}" for cell in cells))
