"""How much each block of a trained model drives its prediction: the best place for alignment."""

from __future__ import annotations

from pathlib import Path

import torch

from segue.data.open_cache import open_cache
from segue.models.files import load_model, model_file
from segue.process.noise import keyed_noise
from segue.process.path import sample_path, velocity_of
from segue.stage.tap import causal_scores
from segue.tasks.degradation import DegradationConfig
from segue.training.build import named_task, space_of
from segue.types import UserError


@torch.no_grad()
def block_scores(run: Path, data: Path, clips: int, t: float) -> list[float]:
    """`causal_scores` of a run's averaged weights on held-out clips.

    Raises:
        UserError: no model or cache there, or a cache without held-out clips.
    """
    saved = load_model(model_file(run))
    cache = open_cache(data)
    space = space_of(cache, saved.mean, saved.std)
    # The degradation of the run itself: held-out clips lose what they lost in its validation.
    degradation = DegradationConfig.from_json(saved.card.degradation)
    model = saved.model.eval()
    task = named_task(saved.card.task, degradation, cache, space=space)
    # Of its own state the task needs what the model was trained with.
    task.initialise(model, cache, model.state_dict())
    rows = cache.rows("valid")[:clips]
    if not rows:
        raise UserError(f"{data}: no clip has split 'valid'")
    x_0, condition, mask = task.prepare(cache.batch(rows))
    times = torch.full((len(rows),), t)
    # Noise keyed by the row: every ablation meets the same.
    x_t = sample_path(x_0, keyed_noise(x_0.shape[1:], 0, "taps", range(len(rows))), times)

    def velocity() -> torch.Tensor:
        return velocity_of(model(x_t, times, condition, mask).prediction, model.predicts, x_t, times)

    return causal_scores(velocity, model.blocks)
