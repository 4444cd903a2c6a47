"""The skip beside a super-resolution transformer: it predicts band levels from the known ones by a fixed convolution.

Missing levels are nearly a linear function of the known ones, and most of the audible error. A task fits the
convolution in closed form (tasks/super_resolution.py), and training leaves it alone: steps of Adam, each as large as
the learning rate in every one of hundreds of correlated weights, undid the fit within a few hundred steps
(docs/super-resolution-method.md).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segue.types import Condition, ModelOutput

SKIP_FRAMES = 5  # width of the convolution
SKIP_KINKS = (-8.0, -4.0, 0.0, 4.0)  # of the features: levels have a standard deviation of 8 (tasks/super_resolution)


class _Config(Protocol):
    @property
    def audio_skip(self) -> int: ...


class SkipModel(Protocol):
    """The parts of a DiT that whoever fits its skip needs."""

    config: _Config
    patch_out: nn.Linear
    skip_weight: Tensor
    skip_bias: Tensor

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition, mask: Tensor, /) -> ModelOutput: ...


def skip_features(audio: Tensor, known: Tensor) -> Tensor:
    """Inputs of the skip's convolution: its channels as they are, and rectified at each kink. Our definition.

    Where a channel is missing, the last known one below it stands in its place. With zeros instead, one linear fit
    could not serve several cutoffs.

    Args:
        audio: [B, C, L], the skip's channels.
        known: [B, C] bool, True up to some channel.

    Returns:
        [B, 5 C, L].
    """
    last = (known.sum(1, keepdim=True) - 1).clamp(min=0)
    index = torch.arange(audio.shape[1], device=audio.device).minimum(last)
    filled = audio.gather(1, index[..., None].expand_as(audio))
    return torch.cat([filled, *((filled - kink).relu() for kink in SKIP_KINKS)], dim=1)


def register_fitted(model: nn.Module, skip: int, guessed: int) -> None:
    """Give a model the buffers that its task fits, as zeros; they are saved with its weights.

    Args:
        skip: channels of the skip: weight [skip, 5 skip, SKIP_FRAMES] and bias [skip] of its convolution; 0: none.
        guessed: channels of a guess, of which a share is the mean of the path: guess_share [guessed]; 0: none.
    """
    if skip:
        model.register_buffer("skip_weight", torch.zeros(skip, (1 + len(SKIP_KINKS)) * skip, SKIP_FRAMES))
        model.register_buffer("skip_bias", torch.zeros(skip))
    if guessed:
        model.register_buffer("guess_share", torch.zeros(guessed))


def add_skip(out: Tensor, condition: Condition, weight: Tensor, bias: Tensor) -> Tensor:
    """Add the skip's prediction to the first channels of the transformer's.

    Args:
        out: [B, C, L] prediction of the transformer.
        condition: its audio and known_mask are read; dropped examples get nothing.
        weight, bias: of the convolution (`register_fitted`).

    Returns:
        [B, C, L].
    """
    count = len(bias)
    audio, known = condition.known_audio()
    features = skip_features(audio[:, :count], known[:, :count, 0])
    levels = F.conv1d(features, weight, bias, padding=SKIP_FRAMES // 2)
    if condition.drop is not None:
        levels = levels.masked_fill(condition.drop[:, None, None], 0.0)
    return out + F.pad(levels, (0, 0, 0, out.shape[1] - count))
