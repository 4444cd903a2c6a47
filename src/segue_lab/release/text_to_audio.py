"""The release of a demo's text-to-audio model: averaged weights in float16, and a card with the demo's figures."""

from __future__ import annotations

import json
from pathlib import Path

from segue.files import make_folder, sha256_of
from segue.models.files import model_file
from segue.pipeline import Pipeline
from segue.types import UserError, first_line
from segue_lab.release.card import write_card
from segue_lab.release.halved import write_halved


def release_text_to_audio(demo: Path, variant: str, out: Path, sources: list[dict]) -> dict:
    """Write the averaged weights of one of a demo's runs in float16, and card.json beside them, into `out`.

    Args:
        demo: folder that `segue demo` left, with summary.json.
        variant: recipe of the run, such as "stage".
        sources: what it was trained on: {"name", "licence", "hours", ...} each, as the card says it.

    Returns:
        The card.

    Raises:
        UserError: no demo there, or no run of that recipe.
    """
    try:
        summary = json.loads((demo / "summary.json").read_text(encoding="utf-8"))
        figures = summary["variants"][variant]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{demo}: no finished demo with {variant} ({first_line(error)}); hint: name the --out of segue demo"
        ) from error
    run = demo / "runs" / variant
    make_folder(out)
    file, parameters = write_halved(run, out)
    # Loaded as it is released, so that a card is never written for a file that cannot be used.
    about = Pipeline.load(file).saved.card
    state = json.loads((model_file(run).parent / "state.json").read_text(encoding="utf-8"))
    card = {
        "name": "text-to-audio",
        "sha256": sha256_of([file]),
        "bytes": file.stat().st_size,
        "parameters": parameters,
        "codec": {"source": about.codec_source, **about.codec},
        "text": about.text,
        "seconds": about.seconds,
        "training": {
            **{name: summary[name] for name in ("command", "commit", "machine", "versions", "seed")},
            "recipe": about.recipe,
            "examples": about.examples_seen,
            "hours": round(state["seconds"] / 3600, 2),
            "config": json.loads((run / "config.json").read_text(encoding="utf-8"))["run"],
            "sources": sources,
        },
        "figures": {
            "sampling": summary["model"]["sampling"],
            "interval": "95 % bootstrap over clips, one seed",
            "model": figures,
            "references": summary["references"],
        },
    }
    return write_card(out, card)
