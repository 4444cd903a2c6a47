"""What a compact teacher learns from: its networks during training, and its three losses.

teacher_run.py explains what each loss is for.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.ssl.compact import Block, CompactConfig, CompactEncoder, normalise, rotations
from segue.training.small_run import add_up


class Predictor(nn.Module):
    """Visible frames -> the target's features of all frames."""

    def __init__(self, width: int, inner: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, inner)
        self.leave = nn.Linear(inner, width)
        self.mask = nn.Parameter(0.02 * torch.randn(inner))
        self.blocks = nn.ModuleList(Block(inner, 4, 2) for _ in range(depth))
        self.norm = nn.LayerNorm(inner)

    def forward(self, x: Tensor, visible: Tensor, frames: int) -> Tensor:
        """[B, V, F] -> [B, S, F]."""
        inner = self.mask.shape[0]
        y = self.mask.expand(len(x), frames, inner).scatter(1, visible[..., None].expand(-1, -1, inner), self.enter(x))
        turns = rotations(torch.arange(frames, device=x.device)[None], inner // 4)
        for block in self.blocks:
            y = block(y, turns)
        return self.leave(self.norm(y))


class EncoderWithHeads(nn.Module):
    """An encoder and the two heads of the clip loss, for equal and for different speeds; the target is a copy of it."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.encoder = CompactEncoder(config)
        width = config.width
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(2)
        )

    def names(self, outputs: list[Tensor]) -> list[Tensor]:
        """Vectors [B/2, F] that identify the crops of every second sound, and then those of the others."""
        # The time mean of the last block: a name has no place in time.
        pairs = outputs[-1].mean(1).unflatten(0, (2, -1))
        return [head(pairs[:, k::2].flatten(0, 1)) for k, head in enumerate(self.heads)]


class Student(nn.Module):
    """Everything that is trained: the encoder with its heads, and the predictors of the three losses."""

    def __init__(self, config: CompactConfig, predictor_width: int, predictor_depth: int) -> None:
        super().__init__()
        width = config.width
        self.network = EncoderWithHeads(config)
        self.predictor = Predictor(width, predictor_width, predictor_depth)
        self.names = nn.ModuleList(nn.Sequential(nn.GELU(), nn.Linear(width, width)) for _ in range(2))
        self.pitch = nn.Linear(width, 1)


@torch.no_grad()
def make_targets(target: EncoderWithHeads, patches: Tensor, layers: int) -> tuple[Tensor, list[Tensor]]:
    """Features [B, S, F], whitened over the batch, and names."""
    outputs = target.encoder(patches)
    # Several upper layers, normalised, so that none of them outweighs the rest.
    mean = add_up(normalise(x) for x in outputs[-layers:]) / layers
    return whiten(mean), target.names(outputs)


def whiten(x: Tensor, shrink: float = 0.02) -> Tensor:
    """Decorrelate the dimensions of [B, S, F] over the batch (ZCA), without turning them; then to unit variance.

    `shrink` times the mean eigenvalue is added to each, lest noise be raised to the level of what can be predicted.
    """
    # Centred over the batch and all frames: whitening is about directions, not the mean.
    flat = x.flatten(0, 1) - x.mean((0, 1))
    values, axes = torch.linalg.eigh(flat.T @ flat / len(flat))
    scale = (values.clamp_min(0) + shrink * values.mean()).rsqrt()
    # Back along the same axes, so that dimensions keep their meaning from batch to batch.
    flat = flat @ (axes * scale) @ axes.T
    return (flat / flat.std(0)).view_as(x)


def masked_loss(predicted: Tensor, wanted: Tensor, visible: Tensor) -> Tensor:
    """Mean squared error over the masked frames; 1 is what a constant reaches."""
    # Only masked frames count: the visible ones are in the encoder's input.
    hidden = torch.ones(predicted.shape[:2], device=predicted.device).scatter(1, visible, 0.0)
    return ((predicted - wanted).square().mean(2) * hidden).sum() / hidden.sum()


def clip_loss(names: Tensor, wanted: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of finding the other crop of each sound, and how often it is found.

    Rows k and B/2 + k of both [B, F] belong to one sound. A crop's own target is no candidate.
    """
    count = len(names) // 2
    scores = F.normalize(names, dim=1) @ F.normalize(wanted, dim=1).T / temperature
    # A crop would find itself first.
    scores = scores.masked_fill(torch.eye(len(names), dtype=torch.bool, device=names.device), -math.inf)
    right = torch.arange(len(names), device=names.device).roll(count)
    return F.cross_entropy(scores, right), (scores.argmax(1) == right).float().mean()


def pitch_loss(readings: Tensor, semitones: Tensor, width: float) -> Tensor:
    """Huber distance of the difference of two crops' readings [B] from that of their speeds, in units of `width`."""
    # The difference alone is known: nobody says which pitch a recording has.
    difference, wanted = (x[: len(x) // 2] - x[len(x) // 2 :] for x in (readings, semitones / width))
    return F.huber_loss(difference, wanted, delta=0.25)
