"""The discrepancy: how far one-step predictions lie from the truth in the space of a self-supervised encoder.

A fixed probe of held-out clips, conditions, noise and times t_k. d_k is one minus the mean cosine between the encoder's
frames of the prediction and of the true clip, both standardised by the true clips' statistics; it is divided by the
same distance to *other* clips, so that the scale of encoder, layer and t cancels. D is the mean over k (our
definition; METHOD section 1 in docs/method.md). D = 1 says that predictions are no nearer to their own clip than to any
other, D = 0 that they are it.

Everything here is arithmetic on features. Who makes them is the loop's business (training/probe.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.types import UserError

SMALLEST_PROBE = 8  # clips: below it a shuffled distance says little, and D moves with single clips
SHIFTS = 4  # other clips that each prediction is compared with


@dataclass(frozen=True)
class ProbeConfig:
    """The fixed probe.

    Attributes:
        run: "auto" (where the regime's signal needs it), "always", or "never".
        clips: M, held-out clips.
        times: t_k. Low noise saturates first: any denoiser keeps what it is given (docs/method.md).
        spacing: probes stand at examples n, spacing * n, spacing^2 * n ...; the slope is read against ln n.
        first: the first probe after the one at n = 0, as a share of the run.
        closest: least distance of two probes, as a share of the run: before r can move, few of them are enough.
        space: what the encoder hears. "waveform": decoded predictions, through the teacher itself. "latent": a
            regression from latents to the teacher's cached features, fitted before the first step: blunter, and much
            cheaper where the model is as small as its codec.
        weights: "averaged" (the moving average, whose window is a fixed share of a young run and so moves the curve by
            a constant in ln n), or "online" (as they train: noisier, and moved by the learning-rate schedule).
    """

    run: str = "auto"
    clips: int = 64
    times: tuple[float, ...] = (0.5, 0.7, 0.85, 0.95)
    spacing: float = 1.06
    first: float = 0.02
    closest: float = 0.01
    space: str = "waveform"
    weights: str = "averaged"

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(self.times))
        spaces, weights = ("waveform", "latent"), ("averaged", "online")
        for name, allowed in (("run", ("auto", "always", "never")), ("space", spaces), ("weights", weights)):
            if getattr(self, name) not in allowed:
                raise UserError(f"probe.{name} is '{getattr(self, name)}'; use {' or '.join(allowed)}")
        if self.clips < SMALLEST_PROBE:
            raise UserError(f"probe.clips is {self.clips}; a probe needs at least {SMALLEST_PROBE} held-out clips")
        if not self.times or not all(0 < t < 1 for t in self.times):
            raise UserError(f"probe.times is {self.times}; give times between 0 and 1, such as 0.5,0.7,0.85,0.95")
        if self.spacing <= 1:
            raise UserError(f"probe.spacing is {self.spacing}; give a factor above 1, such as 1.06")
        if not 0 < self.first < 1:
            raise UserError(f"probe.first is {self.first}; give a share of the run between 0 and 1")
        if not 0 <= self.closest < 1:
            raise UserError(f"probe.closest is {self.closest}; give a share of the run from 0 to below 1")


@dataclass(frozen=True)
class Discrepancy:
    """A reading of the probe.

    Attributes:
        value: D.
        by_time: ((t_k, d_k over its shuffled value), ...).
    """

    value: float
    by_time: tuple[tuple[float, float], ...]


def next_probe(config: ProbeConfig, examples_seen: int, total_examples: int) -> int:
    """Where the probe after one at `examples_seen` stands; beyond the run's end after the one at its end."""
    seen, total = examples_seen, total_examples
    if seen >= total:
        return seen + 1
    apart = max(seen * config.spacing, seen + config.closest * total, seen + 1, config.first * total)
    return min(math.ceil(apart), total)


def probes_in(config: ProbeConfig, total_examples: int, batch_size: int = 1) -> int:
    """How many probes a run takes, those at its start and end included; they fall on whole batches."""
    count, seen = 1, 0
    while seen < total_examples:
        seen = next_probe(config, seen, total_examples)
        seen = min(-(-seen // batch_size) * batch_size, max(seen, total_examples))
        count += 1
    return count


def target_statistics(targets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [F] over the real frames of targets [M, S, F], mask [M, S] bool."""
    frames = targets[mask].double()
    mean, std = frames.mean(0), frames.std(0, correction=0)
    return mean.to(targets.dtype), std.clamp_min(1e-6).to(targets.dtype)


def probe_sums(predicted: Tensor, rows: list[int], targets: Tensor, mask: Tensor) -> Tensor:
    """Distances of one part of the probe (a rank's), summed in float64, so that parts add up to the whole.

    Args:
        predicted: [K, R, S, F] standardised features of the predictions at each time, for the clips `rows`.
        rows: which clips these are.
        targets: [M, S, F] standardised features of all true clips.
        mask: [M, S] bool, True where a frame is real.

    Returns:
        [K, 3]: distance to the own clip, distance to other clips, clips counted.
    """
    predicted, targets = _unit(predicted), _unit(targets)
    own = _distance(predicted, targets[rows], mask[rows])
    others = torch.zeros_like(own)
    clips = len(targets)
    for shift in range(1, SHIFTS + 1):
        partner = [(row + shift * clips // (SHIFTS + 1)) % clips for row in rows]
        others += _distance(predicted, targets[partner], mask[rows] & mask[partner]) / SHIFTS
    return torch.stack([own.sum(1), others.sum(1), torch.full_like(own[:, 0], len(rows))], dim=1)


def discrepancy_of(sums: Tensor, times: tuple[float, ...]) -> Discrepancy:
    """The reading that [K, 3] sums over all clips stand for; NaN where a model's features are not finite."""
    own, others, _ = sums.double().cpu().unbind(1)
    ratios = (own / others.clamp_min(1e-12)).tolist()
    return Discrepancy(sum(ratios) / len(ratios), tuple(zip(times, ratios)))


def _unit(x: Tensor) -> Tensor:
    """Features [..., F] of length 1, at least float32."""
    return torch.nn.functional.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def _distance(predicted: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """1 - mean cosine over real frames: unit features [K, R, S, F] against [R, S, F] -> [K, R] float64."""
    # Single cosines in float32: in float64 they took a third of a probe. Sums are in float64.
    cosine = torch.linalg.vecdot(predicted, targets[None]).double()
    weight = mask.double()[None]
    # Two short clips may share no frame; such a pair says nothing and counts as unrelated.
    return 1 - (cosine * weight).sum(-1) / weight.sum(-1).clamp_min(1.0)
