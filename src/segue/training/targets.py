"""Other targets than a teacher's features: clean latents, the averaged model itself, another clip's target."""

from __future__ import annotations

import torch
from torch import Tensor

from segue.models.backbone import Backbone
from segue.process.noise import BatchDraws
from segue.process.path import cosine_target, sample_path, velocity_target
from segue.stage.tap import attach
from segue.training.features import FrameGrid
from segue.training.step import Example

OWN_TAP = 0.7  # share of the depth (Self-Flow, arXiv 2603.06507)


class LatentTargets:
    """The clean latents themselves (SRA 2, arXiv 2601.17830): whether a teacher adds anything to them."""

    def __call__(self, example: Example, draws: BatchDraws) -> tuple[Tensor, Tensor]:
        """Features [B, L, C] of a batch, and which of their frames are real, [B, L] bool."""
        x_0 = example.x_0
        mask = example.mask
        real = torch.ones(len(x_0), x_0.shape[-1], dtype=torch.bool, device=x_0.device) if mask is None else mask
        return x_0.transpose(1, 2), real


class OwnTargets:
    """Hidden states of the averaged model at lower noise (after Self-Flow, arXiv 2603.06507).

    The paper gives each clip two noise levels, mixes them by tokens for the model that learns, and shows the averaged
    one the lower. Here the model that learns sees t, as in every other run, and the averaged one s, evenly drawn below
    t. That simplification is ours: it leaves the model and its times as they are.
    """

    def __init__(self, ema: Backbone, grid: FrameGrid, bfloat16: bool = False) -> None:
        """
        Args:
            ema: the model of averaged weights.
            grid: of its tokens.
            bfloat16: whether the run computes in it.
        """
        self._ema = ema
        self._grid = grid
        self._bfloat16 = bfloat16

    @torch.no_grad()
    def __call__(self, example: Example, draws: BatchDraws) -> tuple[Tensor, Tensor]:
        """Features [B, N, D] of a batch, each token normalised, and which tokens are real, [B, N] bool."""
        s = example.t * draws.uniform("own targets")
        x_s = sample_path(example.x_0, example.eps, s)
        prepended = getattr(self._ema.config, "prepended", 0)
        with (
            attach(self._ema.blocks, OWN_TAP, prepended) as tap,
            torch.autocast(x_s.device.type, torch.bfloat16, enabled=self._bfloat16),
        ):
            self._ema(x_s, s, example.condition, example.mask)
            hidden = tap.hidden.float()
        # A few large, constant dimensions would dominate raw cosines.
        hidden = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:])
        real = self._grid.tokens_mask(example.mask)
        return hidden, torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if real is None else real


def other_targets(example: Example, predicts: str) -> Tensor:
    """[B, C, L] what the neighbour of each clip in the batch asks the model to predict; neighbours are pairs.

    Args:
        example: of an even number of clips.
        predicts: what the model returns: "velocity", "clean" or "v".
    """
    swapped = torch.arange(len(example.t), device=example.t.device) ^ 1
    x_0, eps, t = example.x_0[swapped], example.eps[swapped], example.t
    if predicts == "clean":
        return x_0
    # At the clip's own time, so that the two differ by the clips alone.
    return velocity_target(x_0, eps) if predicts == "velocity" else cosine_target(x_0, eps, t)
