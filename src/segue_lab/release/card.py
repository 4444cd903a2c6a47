"""The card of a release: how the weights were trained, and what they measure."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from segue.files import write_text
from segue.types import UserError


def measured_and_listed(measure_on: Sequence[str], sources: Path) -> tuple[dict[str, Path], list[dict]]:
    """The folders of --measure NAME=FOLDER by name, and the JSON list of --sources.

    Raises:
        UserError: a pair without name or folder, or a file that is no JSON.
    """
    # partition keeps the first "=" as the separator: a folder may hold others.
    pairs = [text.partition("=") for text in measure_on]
    if any(not name or not folder for name, _, folder in pairs):
        raise UserError("--measure wants NAME=FOLDER; hint: for example --measure notes=runs/demo-set")
    try:
        listed = json.loads(sources.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{sources}: not a readable JSON file ({error}); hint: a list of objects") from error
    return {name: Path(folder) for name, _, folder in pairs}, listed


def training_card(state: dict, *, sources: list[dict], command: str, commit: str) -> dict:
    """How weights were trained, for a card.

    Args:
        state: what `segue.training.small_run.read_meta` gives of the run.
        sources: what they were trained on: {"name", "licence", "hours", ...} each.
        command, commit: how, and at which commit.
    """
    return {
        "command": command,
        "commit": commit,
        "steps": state["step"],
        "hours": round(state["seconds"] / 3600, 2),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread used",
        "torch": torch.__version__,
        "config": state["config"],
        "sources": sources,
    }


def write_card(out: Path, card: dict) -> dict:
    """Write card.json whole or not at all; returns the card."""
    write_text(out / "card.json", json.dumps(card, indent=2) + "\n")
    return card
