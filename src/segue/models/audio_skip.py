"""The skip from audio, beside the transformer: band levels of a super-resolution model by one fixed convolution.

Levels are nearly a linear matter, and most of what a listener notices. A task fits the convolution in closed form
(tasks/super_resolution.py) and it is then left alone: steps of Adam, each as large as the learning rate in every one of
hundreds of correlated weights, undid the fit within a few hundred steps (docs/super-resolution.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from segue.types import Condition

SKIP_FRAMES = 5  # that the convolution sees
SKIP_KINKS = (-8.0, -4.0, 0.0, 4.0)  # of its features: levels have a standard deviation of 8 (tasks/super_resolution)


def skip_features(audio: Tensor, given: Tensor) -> Tensor:
    """What the skip sees of its channels: straight, and rectified at each kink.

    Where a channel is missing, the last given one before it stands in its place: with zeros there, a fit under several
    cutoffs is a fit of none.

    Args:
        audio: [B, C, L], the skip's channels.
        given: [B, C] bool, True up to some channel.

    Returns:
        [B, 5 C, L].
    """
    last = (given.sum(1, keepdim=True) - 1).clamp(min=0)
    index = torch.arange(audio.shape[1], device=audio.device).minimum(last)
    filled = audio.gather(1, index[..., None].expand_as(audio))
    return torch.cat([filled, *((filled - kink).relu() for kink in SKIP_KINKS)], dim=1)


def empty_skip(channels: int) -> tuple[Tensor, Tensor]:
    """Weight [channels, 5 channels, frames] and bias [channels] of a convolution that predicts nothing yet."""
    features = (1 + len(SKIP_KINKS)) * channels
    return torch.zeros(channels, features, SKIP_FRAMES), torch.zeros(channels)


def add_skip(out: Tensor, condition: Condition, weight: Tensor, bias: Tensor) -> Tensor:
    """`out` [B, C, L] with what the skip predicts from the condition's audio added to its first channels."""
    count = len(bias)
    seen = skip_features(condition.audio[:, :count], condition.given[:, :count])
    straight = F.conv1d(seen, weight, bias, padding=SKIP_FRAMES // 2)
    if condition.drop is not None:
        straight = straight.masked_fill(condition.drop[:, None, None], 0.0)
    return out + F.pad(straight, (0, 0, 0, out.shape[1] - count))
