"""Decayed SSL guidance: hidden tokens are pulled towards a frozen teacher's frames, less and less as semantics settle.

    loss = L_flow + lambda w(t) L_align        lambda = guidance_weight(...), w(t) = time_weight(...)

METHOD section 3 in docs/method.md. The alignment is REPA's (arXiv 2410.06940, eq. 8), its decay with the regime is our
definition. Teacher features of clean clips are cached, so that guidance costs one small projector and a cosine; once
lambda is latched to 0 it costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from segue.process.noise import keyed_generator
from segue.types import UserError

LAWS = ("decay", "constant", "cut", "time")
# Added to squared norms: a zero vector has cosine 0 with everything, and a gradient that stays below 1e3.
_NORM_EPS = 1e-6


@dataclass(frozen=True)
class GuidanceConfig:
    """How SSL guidance is given.

    Attributes:
        weight: lambda_0; 0 turns guidance off.
        law: "decay" = lambda_0 (1 - r_m)^2; "constant" (REPA); "cut" = constant, then nothing (HASTE, arXiv
            2505.16792); "time" = the decay driven by n / N in place of the regime (the control).
        cut_at: n / N at which the law "cut" stops.
        t_min: clean clips need no teacher: w(t) = 0 below this time.
        latch: lambda below this share of lambda_0 is exactly 0.
        tap: which block's tokens are aligned: a share of the depth below 1, or a block index from 1 upwards.
        projector: "mlp" (three layers, SiLU; REPA) or "conv" (one convolution of width 3; iREPA, arXiv 2512.10794).
        hidden: hidden width of the MLP; 0 = half the model's width. REPA's 2048 would cost half of dit-3m's step.
        space: "hidden" (the tap) or "output" (the decoded one-step prediction through the teacher).
        every: only every so many steps are guided, by so many times the weight: the same gradient on average, for that
            part of the cost.
    """

    weight: float = 0.0
    law: str = "decay"
    cut_at: float = 0.4
    t_min: float = 0.1
    latch: float = 0.02
    tap: float = 0.33
    projector: str = "mlp"
    hidden: int = 0
    space: str = "hidden"
    every: int = field(default=1, metadata={"later": True})  # configs from before it read as they were

    def __post_init__(self) -> None:
        _one_of("guidance.law", self.law, LAWS)
        _one_of("guidance.projector", self.projector, ("mlp", "conv"))
        _one_of("guidance.space", self.space, ("hidden", "output"))
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise UserError(f"guidance.weight is {self.weight}; give 0 (off) or a positive number")
        for name in ("cut_at", "t_min", "latch"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"guidance.{name} is {getattr(self, name)}; it lies in [0, 1]")
        if not (math.isfinite(self.tap) and self.tap >= 0) or (self.tap >= 1 and self.tap != int(self.tap)):
            raise UserError(f"guidance.tap is {self.tap}; give a share of the depth below 1 or a block index")
        if self.hidden < 0:
            raise UserError(f"guidance.hidden is {self.hidden}; give a width, or 0 for half the model's")
        if self.every < 1:
            raise UserError(f"guidance.every is {self.every}; give 1 (every step) or more")


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{option} is '{value}'; use {', '.join(choices[:-1])} or {choices[-1]}")


def guidance_weight(config: GuidanceConfig, regime_monotone: float, share: float) -> float:
    """lambda for the steps until the next decision (our definition; "cut" is HASTE's, "constant" REPA's).

    Below `config.latch` of lambda_0 it is exactly 0. The regime's running maximum and the share of the run never fall,
    so this is a latch without a memory.

    Args:
        config: the law and lambda_0.
        regime_monotone: r_m in [0, 1].
        share: n / N, examples seen over the planned total.

    Raises:
        ValueError: a regime outside [0, 1] or a negative share.
    """
    if not 0.0 <= regime_monotone <= 1.0:
        raise ValueError(f"regime_monotone is {regime_monotone}; it lies in [0, 1]")
    if not share >= 0.0:
        raise ValueError(f"share of the run is {share}; it is not negative")
    if config.law == "cut":
        part = 1.0 if share < config.cut_at else 0.0
    else:
        part = {"decay": 1.0 - regime_monotone, "time": 1.0 - min(share, 1.0), "constant": 1.0}[config.law] ** 2
    return 0.0 if part < config.latch else config.weight * part


def step_weight(config: GuidanceConfig, weight: float, step: int) -> float:
    """lambda of one step: of `config.every` steps the first is guided, that many times as hard; the others not at all.

    Args:
        config: `every`.
        weight: lambda in force (`guidance_weight`).
        step: optimiser steps taken so far.
    """
    return 0.0 if step % config.every else config.every * weight


def time_weight(t: Tensor, t_min: float) -> Tensor:
    """w(t) [B] float32: 0 for times [B] below t_min, else 1."""
    return (t >= t_min).float()


def tap_index(tap: float, depth: int) -> int:
    """The index of the block whose output is tapped.

    A share s < 1 is the block after which about s of the blocks are passed: 0.33 of 8 is the third, index 2. From 1
    upwards `tap` is the index itself.

    Raises:
        UserError: the tap lies outside the stack.
    """
    if depth < 1 or not 0 <= tap < max(depth, 1) or (tap >= 1 and tap != int(tap)):
        raise UserError(
            f"guidance.tap is {tap:g}, but the model has {depth} blocks; "
            f"give a share of the depth below 1 or a block index up to {depth - 1}"
        )
    return int(tap) if tap >= 1 else max(0, math.floor(tap * depth + 0.5) - 1)


def interpolation_matrix(tokens: int, frames: int, span: float = 1.0) -> Tensor:
    """[S, N] float64 weights that carry N tokens to S frames linearly, aligned by time; rows sum to 1.

    Token i covers [i, i + 1) / N of the clip and stands at its middle; frame j likewise covers [j, j + 1) / S of the
    first `span` of the clip. Beyond the first and last middle the end token's value holds.

    Args:
        tokens, frames: N and S.
        span: time that the frames cover over the time that the tokens cover; 1 where both span the clip.
    """
    position = ((torch.arange(frames, dtype=torch.float64) + 0.5) * (span * tokens / frames) - 0.5).clamp(0, tokens - 1)
    distance = (position[:, None] - torch.arange(tokens, dtype=torch.float64)).abs()
    return (1 - distance).clamp_min(0)


def interpolate(x: Tensor, frames: int, mask: Tensor | None = None, span: float = 1.0) -> Tensor:
    """[B, N, F] tokens -> [B, S, F] frames by `interpolation_matrix`.

    Args:
        x: tokens.
        frames: S.
        mask: [B, N] bool, True where a token is real: padded tokens lend nothing to the frames beside them, and a frame
            between padded tokens only is 0.
        span: see `interpolation_matrix`.
    """
    matrix = interpolation_matrix(x.shape[1], frames, span).to(x)
    if mask is None:
        return matrix @ x
    real = mask.to(x.dtype)[..., None]
    share = matrix @ real
    return (matrix @ (x * real)) / torch.where(share > 0, share, 1.0)


def resample_mask(mask: Tensor, frames: int) -> Tensor:
    """[B, L] bool mask -> [B, S]: a frame is real where the latent frame under its middle is."""
    under = (torch.arange(frames, device=mask.device, dtype=torch.float64) + 0.5) * (mask.shape[1] / frames)
    return mask[:, under.long()]


class Projector(nn.Module):
    """Hidden tokens to teacher features, then to the teacher's frame rate (our definition of the order).

    "mlp" is REPA's three layers with SiLU; "conv" is iREPA's one convolution over three tokens. Weights are drawn from
    a generator of their own, so that making a projector shifts no other draw.

    Args:
        width: D, of the model.
        features: F, of the teacher.
        kind: "mlp" or "conv".
        hidden: hidden width of the MLP; 0 = `width`. The convolution has none.
        seed: of the weights.
    """

    def __init__(self, width: int, features: int, kind: str = "mlp", hidden: int = 0, *, seed: int = 0) -> None:
        super().__init__()
        _one_of("guidance.projector", kind, ("mlp", "conv"))
        self.kind = kind
        hidden = hidden or width // 2
        if kind == "conv":
            layers = [nn.utils.skip_init(nn.Conv1d, width, features, 3, padding=1)]
        else:
            sizes = [width, hidden, hidden, features]
            layers = [nn.utils.skip_init(nn.Linear, a, b) for a, b in zip(sizes, sizes[1:])]
        generator = keyed_generator(seed, "projector")
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden: Tensor, frames: int, mask: Tensor | None = None, span: float = 1.0) -> Tensor:
        """hidden [B, N, D] -> [B, S, F], S = `frames`; mask and span as in `interpolate`."""
        if self.kind == "conv":
            real = hidden if mask is None else hidden * mask[..., None]
            x = self.layers[0](real.transpose(1, 2)).transpose(1, 2)
        else:
            x = hidden
            for layer in self.layers[:-1]:
                x = nn.functional.silu(layer(x))
            x = self.layers[-1](x)
        return interpolate(x, frames, mask, span)


def standardise(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Teacher features [..., F] with mean 0 and deviation 1 in each dimension; a dimension that never moves becomes 0.

    Raw cosines of SSL features are compressed by a few large, constant dimensions: an untrained projector already
    reads 0.9 there.

    Args:
        features: of the teacher.
        mean, std: [F], over the training set.
    """
    # In place and without a division by element: every step of a guided run does this to its largest tensor.
    return (features - mean).mul_(torch.where(std > 1e-8, 1 / std.clamp_min(1e-8), 0.0))


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine over the last dimension, at least float32; 0, with a finite gradient, where either vector is 0."""
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
    return torch.where(mask, distance, 0.0).sum(-1) / mask.sum(-1).clamp_min(1)


def output_alignment(
    x_0_hat: Tensor, decode_to_features: Callable[[Tensor], Tensor], target: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Per-example alignment [B] of the decoded one-step prediction, through codec and teacher (our definition).

    The gradient runs through both frozen networks: dearer than a tap, nearer to what is heard.

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
            "guidance.space=output: codec and teacher pass no gradient (they ran under inference_mode or no_grad); "
            "use a differentiable decode, or guidance.space=hidden"
        )
    return alignment_loss(features, target, mask)


def block_input(args: tuple, kwargs: dict) -> Tensor:
    """The residual stream among a block's arguments: its first tensor."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise UserError("a block was called without a tensor; attach to the list of transformer blocks")


@torch.no_grad()
def causal_scores(model_forward: Callable[[], Tensor], blocks: Sequence[nn.Module]) -> list[float]:
    """How much each block drives the prediction: relative change when its residual branches are cut out.

    Block l is replaced by the identity on its residual stream and the prediction compared with the whole model's:
    ||v_l - v|| / ||v||. Blocks with high scores are the better taps in audio flow matching (AG-REPA, arXiv 2603.01006);
    one forward pass a block, no gradient. A model that predicts nothing yet scores 0 everywhere.

    Args:
        model_forward: the prediction [B, C, L] on a fixed batch, without dropout.
        blocks: blocks whose first tensor argument and (first) output are the residual stream.

    Raises:
        UserError: a block's output has another shape than its input.
    """

    def skip(_block: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> Tensor | tuple:
        stream = block_input(args, kwargs)
        first = output[0] if isinstance(output, tuple) else output
        if first.shape != stream.shape:
            raise UserError(f"a block maps {list(stream.shape)} to {list(first.shape)}; no residual stream to restore")
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    whole = model_forward().double()
    scale = float(whole.norm())
    scores = []
    for block in blocks:
        handle = block.register_forward_hook(skip, with_kwargs=True)
        try:
            change = float((model_forward().double() - whole).norm())
        finally:
            handle.remove()
        scores.append(change / scale if scale > 0 else 0.0)
    return scores
