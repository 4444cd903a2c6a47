"""The release of a super-resolution model: averaged weights in float16, and a card with figures."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from segue.files import make_folder, sha256_of
from segue.models.files import model_file
from segue.pipeline import SuperResolver
from segue.provenance import machine
from segue.workflows.measure_super_resolution import measure_super_resolution
from segue_lab.release.card import write_card
from segue_lab.release.halved import write_halved


def release_super_resolution(
    run: Path,
    out: Path,
    measures: dict[str, Path],
    *,
    sources: list[dict],
    command: str,
    commit: str,
    steps: tuple[int, ...] = (4, 50),
    clips: int = 64,
) -> dict:
    """Write the averaged weights of a run in float16, and card.json beside them, into `out`.

    Args:
        run: folder that `segue train` left.
        measures: name -> folder of sounds to measure on.
        sources: what it was trained on: {"name", "licence", "hours", ...} each, as the card says it.
        command, commit: how it was trained.
        steps: solver steps to measure.
        clips: sounds to measure at most.

    Returns:
        The card.

    Raises:
        UserError: no model there, or unusable sounds.
    """
    make_folder(out)
    file, parameters = write_halved(run, out)
    # Measured as released, from the file just written.
    resolver = SuperResolver.load(file)
    about = resolver.saved.card
    cutoff_hz = about.degradation["cutoff_max_hz"]
    state = json.loads((model_file(run).parent / "state.json").read_text(encoding="utf-8"))
    training = {
        "command": command,
        "commit": commit,
        "recipe": about.recipe,
        "examples": about.examples_seen,
        "hours": round(state["seconds"] / 3600, 2),
        "machine": f"{machine()}, one thread used",
        "torch": torch.__version__,
        "config": json.loads((run / "config.json").read_text(encoding="utf-8"))["run"],
        "sources": sources,
    }
    card = {
        "name": "super-resolution",
        "sha256": sha256_of([file]),
        "bytes": file.stat().st_size,
        "parameters": parameters,
        "sample_rate_hz": resolver.sample_rate_hz,
        "steps": resolver.steps,
        "training": training,
        "figures": {
            name: measure_super_resolution(
                {count: resolver for count in steps}, folder, cutoff_hz, "nuwave2", clips, 4.0, unseen=True
            )
            for name, folder in measures.items()
        },
    }
    return write_card(out, card)
