"""`segue export`: what a run has trained, as other libraries load it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segue.types import UserError
from segue.workflows.export import EXPORTS


def export(
    run: Annotated[Path, typer.Argument(help="Run folder, checkpoint folder, or model.safetensors.")],
    to: Annotated[str, typer.Option(help="Form of the result: diffusers (a whole pipeline) or peft (adapters alone).")],
    out: Annotated[Path, typer.Option(help="Folder of the result, which must be new.")],
    weights: Annotated[str, typer.Option(help="Weights to use: ema (averaged) or model (as trained).")] = "ema",
) -> None:
    """Save what a run has trained as other libraries load it, without segue."""
    if to not in EXPORTS:
        raise UserError(f"--to {to}: no such form; hint: {', '.join(EXPORTS)}")
    print(EXPORTS[to](run, out, weights))
