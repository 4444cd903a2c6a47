"""The release of a super-resolution model: averaged weights in float16, and a card with figures."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from segue.files import make_folder, sha256_of
from segue.models.files import model_file, read_tensors
from segue.pipeline import SuperResolver
from segue.provenance import machine
from segue.workflows.measure_super_resolution import measure_super_resolution
from segue_lab.release.card import write_card


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
    tensors, metadata = read_tensors(model_file(run))
    # The averaged weights alone: the trained ones are of no use but to resume.
    kept = {name: value.half() for name, value in tensors.items() if name.startswith("ema.")}
    # Statistics stay in float32: they are few, and everything is scaled by them.
    kept |= {name: value for name, value in tensors.items() if name.startswith("latents.")}
    make_folder(out)
    file = out / "model.safetensors"
    save_file({name: value.contiguous() for name, value in kept.items()}, file, metadata)
    # Measured as released, from the file just written.
    resolver = SuperResolver.load(file)
    about = resolver.saved.card
    cutoff_hz = about.degradation["cutoff_max_hz"]
    state = json.loads((model_file(run).parent / "state.json").read_text())
    training = {
        "command": command,
        "commit": commit,
        "recipe": about.recipe,
        "examples": about.examples_seen,
        "hours": round(state["seconds"] / 3600, 2),
        "machine": f"{machine()}, one thread used",
        "torch": torch.__version__,
        "config": json.loads((run / "config.json").read_text())["run"],
        "sources": sources,
    }
    card = {
        "name": "super-resolution",
        "sha256": sha256_of([file]),
        "bytes": file.stat().st_size,
        "parameters": sum(value.numel() for name, value in kept.items() if name.startswith("ema.")),
        "sample_rate_hz": resolver.sample_rate_hz,
        "steps": resolver.steps,
        "training": training,
        "figures": {
            # Whoever releases a model names sets that were no part of its training, or have a split "test".
            name: measure_super_resolution(resolver, folder, cutoff_hz, "nuwave2", steps, clips, 4.0, unseen=True)
            for name, folder in measures.items()
        },
    }
    return write_card(out, card)
