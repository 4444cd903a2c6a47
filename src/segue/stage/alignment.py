"""Alignment with a teacher: hidden tokens are drawn towards a frozen encoder's features, with a weight that decays.

    loss = L_flow + lambda w(t) L_align        lambda = alignment_weight(...), w(t) = time_weight(...)

The loss is REPA's (arXiv 2410.06940, eq. 8); its decay with the regime is our definition (docs/method.md, section 3).
Teacher features of clean clips are cached, so alignment costs one small projector and a cosine, and nothing once lambda
has reached 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn

from segue.process.noise import keyed_generator
from segue.stage.tap import Tap, attach, width_of
from segue.types import UserError

SCHEDULES = ("decay", "constant", "cut", "time")
TARGETS = ("teacher", "latents", "self")
ALL = slice(None)  # frames
T_MIN = 0.1  # w(t) = 0 below this time: nearly clean inputs need no teacher
LATCH = 0.02  # lambda below this share of lambda_0 is exactly 0
# Added to squared norms: a zero vector has cosine 0 with everything, and a gradient that stays below 1e3.
_NORM_EPS = 1e-6


@dataclass(frozen=True)
class AlignmentConfig:
    """How hidden states are aligned with a teacher.

    Attributes:
        weight: lambda_0; 0 turns alignment off.
        schedule: "decay" = lambda_0 (1 - r_m)^2; "constant" (REPA); "cut" = constant, then nothing (HASTE, arXiv
            2505.16792); "time" = the decay driven by n / N in place of the regime (the control).
        cut_at: n / N at which the schedule "cut" stops.
        tap: which block's tokens are aligned: a share of the depth below 1, or a block index from 1 upwards.
        second_tap: another block that is aligned as well, by a projector of its own, at half the weight each; 0 = none.
        space: "hidden" (the tap) or "output" (the decoded one-step prediction through the teacher).
        target: "teacher" (a self-supervised encoder's features), "latents" (the clean latents; SRA 2, arXiv 2601.17830)
            or "self" (hidden states of the averaged model at lower noise; Self-Flow, arXiv 2603.06507, simplified).
        every: one of every so many steps is aligned, with so many times the weight: the same gradient on average, at
            a fraction of the cost.
        frames_every: of the teacher's frames an aligned step compares one of every so many, and the next one those
            beside them: neighbours say next to the same, so that the gradient is nearly that of all frames. In output
            space all are compared.
    """

    weight: float = 0.0
    schedule: str = "decay"
    cut_at: float = 0.4
    tap: float = 0.33
    space: str = "hidden"
    # Not written at their defaults: older hashes hold.
    every: int = field(default=1, metadata={"later": True})
    frames_every: int = field(default=1, metadata={"later": True})
    second_tap: float = field(default=0.0, metadata={"later": True})
    target: str = field(default="teacher", metadata={"later": True})

    def __post_init__(self) -> None:
        _one_of("alignment.schedule", self.schedule, SCHEDULES)
        _one_of("alignment.space", self.space, ("hidden", "output"))
        _one_of("alignment.target", self.target, TARGETS)
        if self.space == "output" and (self.target != "teacher" or self.second_tap):
            raise UserError(
                "alignment.space 'output' has no tap and decodes to a teacher; hint: alignment.space=hidden"
            )
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise UserError(f"alignment.weight is {self.weight}; give 0 (off) or a positive number")
        if not 0 <= self.cut_at <= 1:
            raise UserError(f"alignment.cut_at is {self.cut_at}; it lies in [0, 1]")
        for name in ("tap", "second_tap"):
            tap = getattr(self, name)
            if not (math.isfinite(tap) and tap >= 0) or (tap >= 1 and tap != int(tap)):
                raise UserError(f"alignment.{name} is {tap}; give a share of the depth below 1 or a block index")
        for name, words in (("every", "every step"), ("frames_every", "every frame")):
            if getattr(self, name) < 1:
                raise UserError(f"alignment.{name} is {getattr(self, name)}; give 1 ({words}) or more")


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{option} is '{value}'; use {', '.join(choices[:-1])} or {choices[-1]}")


def alignment_weight(config: AlignmentConfig, regime_monotone: float, share: float) -> float:
    """lambda for the steps until the next decision (our definition; "cut" is HASTE's, "constant" REPA's).

    Below the share LATCH of lambda_0 it is exactly 0, and stays so without any state: the regime's running maximum and
    the share of the run never fall.

    Args:
        config: the schedule and lambda_0.
        regime_monotone: r_m in [0, 1].
        share: n / N, examples seen over the planned total.

    Raises:
        ValueError: a regime outside [0, 1] or a negative share.
    """
    if not 0.0 <= regime_monotone <= 1.0:
        raise ValueError(f"regime_monotone is {regime_monotone}; it lies in [0, 1]")
    if not share >= 0.0:
        raise ValueError(f"share of the run is {share}; it is not negative")
    if config.schedule == "cut":
        part = 1.0 if share < config.cut_at else 0.0
    else:
        # (1 - r_m)^2 (docs/method.md, section 3); "time" has n / N in place of r_m, REPA has 0.
        part = {"decay": 1.0 - regime_monotone, "time": 1.0 - min(share, 1.0), "constant": 1.0}[config.schedule] ** 2
    # Exactly 0, so that features are no longer read and the projector no longer runs.
    return 0.0 if part < LATCH else config.weight * part


def step_weight(config: AlignmentConfig, weight: float, step: int) -> float:
    """lambda of one step: of every `config.every` steps the first is aligned, with `config.every` times the weight.

    Args:
        config: `every`.
        weight: lambda in force (`alignment_weight`).
        step: optimiser steps taken so far.
    """
    return 0.0 if step % config.every else config.every * weight


def frames_of_step(config: AlignmentConfig, step: int, frames: int) -> slice:
    """Which of a teacher's frames a step compares: all of them in turn, over `config.frames_every` aligned steps.

    Args:
        config: `every` and `frames_every`.
        step: optimiser steps taken so far.
        frames: S.
    """
    apart = max(1, min(config.frames_every, frames))
    return slice(step // config.every % apart, None, apart)


def time_weight(t: Tensor) -> Tensor:
    """w(t) [B] float32: 0 for times [B] below T_MIN, else 1."""
    return (t >= T_MIN).float()


@lru_cache(maxsize=4)  # the same at every step of a run, and as much work as what it serves
def interpolation_matrix(tokens: int, frames: int, span: float = 1.0) -> Tensor:
    """[S, N] float64 weights of linear interpolation in time from N tokens to S frames; rows sum to 1.

    Token i covers [i, i + 1) / N of the clip and lies at the middle of that; frame j likewise covers [j, j + 1) / S of
    the first `span` of the clip. Before the first and after the last token its value is held.

    Args:
        tokens, frames: N and S.
        span: time that the frames cover over the time that the tokens cover; 1 where both span the clip.
    """
    position = ((torch.arange(frames, dtype=torch.float64) + 0.5) * (span * tokens / frames) - 0.5).clamp(0, tokens - 1)
    distance = (position[:, None] - torch.arange(tokens, dtype=torch.float64)).abs()
    # A tent over each middle: at most two tokens have a weight, and the weights add up to 1.
    return (1 - distance).clamp_min(0)


@lru_cache(maxsize=64)  # every offset of `frames_of_step`, again and again
def used_tokens(tokens: int, frames: int, span: float, chosen: range) -> tuple[Tensor, Tensor]:
    """The N' tokens [N'] that S' chosen frames are made of, and the weights [S', N'] on them.

    Args:
        tokens, frames, span: as in `interpolation_matrix`.
        chosen: which of the S frames.
    """
    matrix = interpolation_matrix(tokens, frames, span)[list(chosen)]
    used = matrix.any(0).nonzero().squeeze(1)
    return used, matrix[:, used]


def interpolate(x: Tensor, matrix: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, N, F] tokens -> [B, S, F] frames.

    Args:
        x: tokens.
        matrix: [S, N] weights, of `interpolation_matrix`.
        mask: [B, N] bool, True where a token is real: padded tokens contribute nothing to the frames beside them, and a
            frame with padded tokens alone is 0.
    """
    matrix = matrix.to(x)
    if mask is None:
        return matrix @ x
    real = mask.to(x.dtype)[..., None]
    # What padded tokens leave of a frame's weights; divided by it, they add up to 1 again.
    share = matrix @ real
    return (matrix @ (x * real)) / torch.where(share > 0, share, 1.0)


def resample_mask(mask: Tensor, frames: int) -> Tensor:
    """[B, L] bool mask -> [B, S]: a frame is real where the latent frame under its middle is."""
    under = (torch.arange(frames, device=mask.device, dtype=torch.float64) + 0.5) * (mask.shape[1] / frames)
    return mask[:, under.long()]


class Projector(nn.Module):
    """Maps hidden tokens to teacher features, and then to the teacher's frame rate (that order is our definition).

    Three layers with SiLU as in REPA, but half as wide as the model: REPA's 2048 would take half the time of a step of
    dit-3m. The weights come from a generator of their own, so that making a projector changes no other draw.

    Args:
        width: D, of the model.
        features: F, of the teacher.
        seed: of the weights.
        stream: of their draws: two projectors of one seed differ by it.
    """

    def __init__(self, width: int, features: int, *, seed: int = 0, stream: str = "projector") -> None:
        super().__init__()
        sizes = [width, width // 2, width // 2, features]
        # skip_init: torch's own initialisers would draw from the global generator.
        layers = [nn.utils.skip_init(nn.Linear, a, b) for a, b in zip(sizes, sizes[1:])]
        generator = keyed_generator(seed, stream)
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)

    def forward(
        self, hidden: Tensor, frames: int, mask: Tensor | None = None, span: float = 1.0, chosen: slice = ALL
    ) -> Tensor:
        """hidden [B, N, D] -> [B, S, F], those of S = `frames` frames that are `chosen`.

        A frame with padded tokens alone is the last layer's bias; no mask of frames counts it.

        Args:
            hidden: tokens.
            frames: S.
            mask: as in `interpolate`.
            span: as in `interpolation_matrix`.
            chosen: of the S frames, those that are made.
        """
        # A frame is made of two tokens at most; those of no chosen frame need not pass through the layers.
        used, matrix = used_tokens(hidden.shape[1], frames, span, range(frames)[chosen])
        used = used.to(hidden.device)
        x = hidden.index_select(1, used)
        for layer in self.layers[:-1]:
            x = nn.functional.silu(layer(x))
        # A mean of tokens passes through a linear layer: before it there are fewer numbers to interpolate.
        return self.layers[-1](interpolate(x, matrix, None if mask is None else mask[:, used]))


class Projectors(nn.Module):
    """Two projectors, of two tapped blocks."""

    def __init__(self, first: Projector, second: Projector) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, hidden: Tensor, *options) -> Tensor:
        """hidden [2B, N, D], those of the first block before those of the second -> [2B, S, F]; as `Projector`."""
        first, second = hidden.chunk(2)
        return torch.cat([self.first(first, *options), self.second(second, *options)])


def standardise(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Teacher features [..., F] with mean 0 and deviation 1 in each dimension; a dimension that never moves becomes 0.

    A few large, constant dimensions dominate raw cosines of self-supervised features: with them even an untrained
    projector has a cosine of 0.9.

    Args:
        features: [..., F] of the teacher.
        mean, std: [F], over the training set.
    """
    # In place, and by a product rather than a division: this is the largest tensor of an aligned step.
    return (features - mean).mul_(torch.where(std > 1e-8, 1 / std.clamp_min(1e-8), 0.0))


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine over the last dimension, at least float32; 0, with a finite gradient, where either vector is 0."""
    # Half precision has too few bits for sums over F features.
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, y = x.to(dtype), y.to(dtype)
    dot, xx, yy = (torch.linalg.vecdot(a, b) for a, b in ((x, y), (x, x), (y, y)))
    return dot / ((xx + _NORM_EPS) * (yy + _NORM_EPS)).sqrt()


def alignment_loss(projected: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Per-example L_align [B] = mean over real frames of 1 - cosine (arXiv 2410.06940, eq. 8).

    Args:
        projected: [B, S, F] from the projector.
        target: [B, S, F] standardised teacher frames; no gradient reaches them.
        mask: [B, S] bool, True where a frame is real; None where all are. An example without a real frame loses 0.

    Raises:
        ValueError: the shapes differ.
    """
    if projected.shape != target.shape:
        raise ValueError(f"projected is {list(projected.shape)}, the target {list(target.shape)}; they must be equal")
    distance = 1 - cosine(projected, target.detach())
    if mask is None:
        return distance.mean(-1)
    # A product with the mask would let a NaN in a padded frame through.
    return torch.where(mask, distance, 0.0).sum(-1) / mask.sum(-1).clamp_min(1)


def output_alignment(
    x_0_hat: Tensor, decode_to_features: Callable[[Tensor], Tensor], target: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Per-example alignment [B] of the decoded one-step prediction, through codec and teacher (our definition).

    The gradient passes through both frozen networks, which costs more than a tap on hidden tokens.

    Args:
        x_0_hat: [B, C, L] one-step prediction of the clean latents.
        decode_to_features: [B, C, L] -> [B, S, F]: decode, encode by the teacher, standardise; differentiable.
        target, mask: as in `alignment_loss`.

    Raises:
        UserError: no gradient comes through, as under torch.inference_mode, where codecs decode by default.
    """
    features = decode_to_features(x_0_hat)
    if x_0_hat.requires_grad and torch.is_grad_enabled() and not features.requires_grad:
        raise UserError(
            "alignment.space=output: codec and teacher pass no gradient (they ran under inference_mode or no_grad); "
            "use a differentiable decode, or alignment.space=hidden"
        )
    return alignment_loss(features, target, mask)


class Aligner:
    """The alignment loss of one model, on its tapped tokens or its decoded predictions.

    Attributes:
        projector: from tokens to features; None in output space.
        tap: on the model's blocks; None in output space.
        second: another tap, where the config has one.
    """

    def __init__(
        self,
        config: AlignmentConfig,
        blocks: Sequence[nn.Module],
        statistics: tuple[Tensor, Tensor],
        features: Callable[[Tensor], Tensor] | None = None,
        prepended: int = 0,
        seed: int = 0,
    ) -> None:
        """
        Args:
            config: which block, and in which space.
            blocks: the stack.
            statistics: mean and standard deviation [F] of the teacher's features over the training set.
            features: latents -> standardised features, differentiable; for output space.
            prepended: tokens before the clip's own (`segue.attach`).
            seed: of the projector.

        Raises:
            UserError: a tap outside the stack.
        """
        self._config = config
        self._mean, self._std = statistics
        self._features = features
        self.tap: Tap | None = None
        self.second: Tap | None = None
        self.projector: nn.Module | None = None
        if config.space == "hidden":
            self.tap = attach(blocks, config.tap, prepended)
            projector = Projector(width_of(blocks[self.tap.index]), len(self._mean), seed=seed)
            self.projector = projector
            if config.second_tap:
                self.second = attach(blocks, config.second_tap, prepended)
                width = width_of(blocks[self.second.index])
                second = Projector(width, len(self._mean), seed=seed, stream="second projector")
                self.projector = Projectors(projector, second)
            self.projector.to(next(blocks[0].parameters()).device)

    def distance(
        self,
        features: Tensor,
        t: Tensor,
        *,
        mask: Tensor | None = None,
        tokens_mask: Tensor | None = None,
        span: float = 1.0,
        x_0_hat: Tensor | None = None,
        step: int | None = None,
    ) -> Tensor:
        """w(t) L_align [B], before lambda.

        Args:
            features: [B, S, F] teacher features of the clean clips, not standardised.
            t: [B] times of the batch.
            mask: [B, S] bool, True where a teacher frame is real.
            tokens_mask: [B, N] bool, True where a token is real.
            span: time that the S frames cover over the time that the N tokens cover; 1 where both span the clip.
            x_0_hat: [B, C, L] one-step prediction of the clean latents, for alignment.space "output".
            step: optimiser steps taken so far, which decide the frames that are compared; None: all are.

        Raises:
            UserError: the model has not been run, the tapped tokens carry no gradient, or features of another shape.
        """
        if features.ndim != 3 or len(features) != len(t) or features.shape[-1] != len(self._mean):
            raise UserError(
                f"Stage: alignment() got features {list(features.shape)} and {len(t)} times; hint: give it the teacher "
                f"features of the batch, [{len(t)}, frames, {len(self._mean)}]"
            )
        mean, std = self._mean.to(features.device), self._std.to(features.device)
        # Output space: the prediction itself is decoded and encoded by the teacher; there is nothing to project.
        if self.projector is None or self.tap is None:
            if x_0_hat is None or self._features is None:
                raise UserError("alignment.space=output needs x_0_hat= and the features of latents (Stage's features=)")
            target = standardise(features, mean, std)
            return time_weight(t) * output_alignment(x_0_hat, self._features, target, mask)
        # Hidden space (REPA, arXiv 2410.06940, eq. 8). Under autocast the tokens may be of a shorter type.
        chosen = ALL if step is None else frames_of_step(self._config, step, features.shape[1])
        target, real = standardise(features[:, chosen], mean, std), None if mask is None else mask[:, chosen]
        # One tap, as mostly: no copy, neither of the tokens nor of their gradient.
        tokens = [tap.hidden for tap in self.taps]
        hidden = (tokens[0] if len(tokens) == 1 else torch.cat(tokens)).to(target.dtype)
        projected = self.projector(hidden, features.shape[1], tokens_mask, span, chosen)
        losses = [alignment_loss(part, target, real) for part in projected.chunk(len(tokens))]
        return time_weight(t) * torch.stack(losses).mean(0)

    @property
    def taps(self) -> list[Tap]:
        """The taps that there are."""
        return [tap for tap in (self.tap, self.second) if tap is not None]

    def clear(self) -> None:
        """Drop the last tokens, and with them their graph."""
        for tap in self.taps:
            tap.clear()

    def remove(self) -> None:
        """Remove the hooks from the model."""
        for tap in self.taps:
            tap.remove()
