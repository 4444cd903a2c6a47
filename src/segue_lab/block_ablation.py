"""How much each block of a trained model drives its prediction: the best place for alignment."""

from __future__ import annotations

from pathlib import Path

import torch

from segue.data.open_cache import open_cache
from segue.models.backbone import Backbone
from segue.models.files import load_model, model_file
from segue.process.noise import keyed_noise
from segue.process.path import sample_path, velocity_of
from segue.stage.tap import causal_scores
from segue.tasks.degradation import DegradationConfig
from segue.training.build import named_task, space_of
from segue.training.step import Example
from segue.types import UserError


def model_and_clips(run: Path, data: Path, clips: int) -> tuple[Backbone, Example]:
    """A run's averaged model, and held-out clips with noise of their own; the times of the example are 0.

    The noise is keyed by the row: every ablation meets the same.

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
    eps = keyed_noise(x_0.shape[1:], 0, "taps", range(len(rows)))
    return model, Example(x_0, eps, torch.zeros(len(rows)), condition, mask)


@torch.no_grad()
def block_scores(model: Backbone, held_out: Example, t: float) -> list[float]:
    """`causal_scores` of a model on held-out clips at the noise level t."""
    times = torch.full((len(held_out.x_0),), t)
    x_t = sample_path(held_out.x_0, held_out.eps, times)

    def velocity() -> torch.Tensor:
        prediction = model(x_t, times, held_out.condition, held_out.mask).prediction
        return velocity_of(prediction, model.predicts, x_t, times)

    return causal_scores(velocity, model.blocks)
