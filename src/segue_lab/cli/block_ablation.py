"""`segue-lab block-ablation`: how much each block of a trained model drives its prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from segue.types import UserError
from segue_lab.block_ablation import block_scores, model_and_clips


def block_ablation(
    run: Annotated[Path, typer.Argument(help="Folder of a run; a short run is enough.")],
    data: Annotated[Path, typer.Option(help="Latent cache that the run was trained on.")],
    clips: Annotated[int, typer.Option(help="Number of held-out clips to measure on.")] = 32,
    t: Annotated[float, typer.Option(help="Noise level t, between 0 and 1; captions act at high noise.")] = 0.8,
) -> None:
    """Ablate the residual branches of each block in turn; print how far the velocity moves (after arXiv 2603.01006)."""
    if not 0 < t < 1:
        raise UserError(f"--t {t}: give a noise level between 0 and 1")
    scores = block_scores(*model_and_clips(run, data, clips), t)
    inner = range(1, len(scores) - 1) if len(scores) > 2 else range(len(scores))
    best = max(inner, key=lambda i: scores[i])
    table = Table("block", "change of the velocity", "", box=None, pad_edge=False)
    for index, score in enumerate(scores):
        bar = "#" * round(20 * score / max(max(scores), 1e-12))
        table.add_row(str(index), f"{score:.3f}", bar + ("  <- strongest inner block" if index == best else ""))
    Console(highlight=False).print(table)
    print(f"to align there: segue train stage --data {data} --out RUN --set alignment.tap={best}")
