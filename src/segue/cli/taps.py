"""`segue taps`: how much each block of a trained model drives its prediction; the best place for guidance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from segue.data.cache import LatentCache
from segue.models.files import load_model, model_file
from segue.process.noise import keyed_noise
from segue.process.path import sample_path, velocity_of
from segue.stage.ssl_guidance import causal_scores
from segue.tasks.degradation import DegradationConfig
from segue.training.build import named_task
from segue.types import UserError


def taps(
    run: Annotated[Path, typer.Argument(help="Run folder; a short run is enough.")],
    data: Annotated[Path, typer.Option(help="The cache that it was trained on.")],
    clips: Annotated[int, typer.Option(help="Held-out clips.")] = 32,
    t: Annotated[float, typer.Option(help="Noise level; high noise is where the caption acts.")] = 0.8,
) -> None:
    """Cut each block's residual branches out in turn and print how far the velocity moves (after arXiv 2603.01006)."""
    if not 0 < t < 1:
        raise UserError(f"--t {t}: give a noise level between 0 and 1")
    scores = block_scores(run, data, clips, t)
    inner = range(1, len(scores) - 1) if len(scores) > 2 else range(len(scores))
    best = max(inner, key=lambda i: scores[i])
    table = Table("block", "change of the velocity", "", box=None, pad_edge=False)
    for index, score in enumerate(scores):
        bar = "#" * round(40 * score / max(max(scores), 1e-12))
        table.add_row(str(index), f"{score:.3f}", bar + ("  <- strongest inner block" if index == best else ""))
    Console(highlight=False).print(table)
    print(f"to guide there: segue train stage --data {data} --out RUN --set guidance.tap={best}")


@torch.no_grad()
def block_scores(run: Path, data: Path, clips: int, t: float) -> list[float]:
    """`causal_scores` of a run's averaged weights on held-out clips.

    Raises:
        UserError: no model or cache there, or a cache without held-out clips.
    """
    saved, cache = load_model(model_file(run)), LatentCache.open(data)
    model, task = saved.model.eval(), named_task(saved.card.task, DegradationConfig(**saved.card.degradation), cache)
    rows = cache.rows("valid")[:clips]
    if not rows:
        raise UserError(f"{data}: no clip has split 'valid'")
    x_0, condition, mask = task.prepare(cache.batch(rows), (saved.mean, saved.std))
    times = torch.full((len(rows),), t)
    x_t = sample_path(x_0, keyed_noise(x_0.shape[1:], 0, "taps", range(len(rows))), times)

    def velocity() -> torch.Tensor:
        return velocity_of(model(x_t, times, condition, mask).prediction, model.predicts, x_t, times)

    return causal_scores(velocity, model.blocks)
