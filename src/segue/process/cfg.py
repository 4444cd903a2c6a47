"""Classifier-free guidance on the velocity, with rescaling and an interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor

from segue.process.path import clean_of, expand
from segue.types import Condition

Combine = Callable[[Tensor, Tensor, float], Tensor]  # conditional, unconditional, scale -> guided
VelocityFn = Callable[[Tensor, Tensor, Condition], Tensor]


def combine(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """v = v_u + s (v_c - v_u) (arXiv 2207.12598, eq. 6). Scale 1 is the conditional."""
    return unconditional + scale * (conditional - unconditional)


def rescale_clean(guided_v: Tensor, conditional: Tensor, x_t: Tensor, t: Tensor, share: float) -> Tensor:
    """Pull the guided clean sample's standard deviation back to the conditional one's (arXiv 2305.08891, eq. 15-16).

    Done on the clean sample, where over-guidance shows as over-loud sound; the result is a velocity again. Below
    t = 0.001 it is computed as if t stood there: at 0 itself the clean sample says nothing of the velocity.

    Args:
        guided_v, conditional: [B, C, L] velocities.
        x_t: [B, C, L].
        t: [B].
        share: 0 = no rescaling, 1 = all of it.
    """
    t = t.clamp(min=1e-3)
    clean_guided, clean_conditional = clean_of(x_t, guided_v, t), clean_of(x_t, conditional, t)
    axes = tuple(range(1, x_t.ndim))
    # A guided sample of digital silence has no deviation to divide by.
    ratio = clean_conditional.std(axes, keepdim=True) / clean_guided.std(axes, keepdim=True).clamp(min=1e-8)
    return (x_t - clean_guided * (share * ratio + 1 - share)) / expand(t, x_t)


def guided(
    velocity: VelocityFn,
    condition: Condition,
    scale: float,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
    combine: Combine = combine,
    negative: Condition | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """A field (x_t, t [B]) -> velocity that steers `velocity` by its condition.

    Conditional and unconditional are evaluated in one batch. With scale 1, or outside the interval (arXiv 2404.07724),
    the conditional alone is evaluated.

    Args:
        velocity: called as velocity(x_t, t, condition).
        condition: what to steer by; its dropped form is the unconditional.
        scale: guidance scale.
        rescale: share of the rescaling, 0 to 1.
        interval: times (low, high), both included, in which guidance acts.
        combine: makes one velocity of the two.
        negative: what to steer away from, in place of the dropped form.
    """

    def field(x: Tensor, t: Tensor) -> Tensor:
        # A solver takes all examples to the same time, so that the first one's is everyone's.
        inside = interval[0] <= float(t[0]) <= interval[1]
        if scale == 1.0 or not inside:
            return velocity(x, t, condition)
        both = velocity(torch.cat([x, x]), torch.cat([t, t]), _doubled(condition, negative))
        conditional, unconditional = both.chunk(2)
        out = combine(conditional, unconditional, scale)
        return rescale_clean(out, conditional, x, t, rescale) if rescale > 0 else out

    return field


def _doubled(condition: Condition, negative: Condition | None) -> Condition:
    """The condition, followed by its dropped form or by the negative one."""
    if negative is not None:
        pairs = ((f.name, getattr(condition, f.name), getattr(negative, f.name)) for f in fields(condition))
        return Condition(**{name: None if one is None else _joined(one, other) for name, one, other in pairs})
    null = condition.dropped()
    if null.drop is None:
        return condition
    drop = torch.zeros_like(null.drop) if condition.drop is None else condition.drop
    return replace(condition.map(lambda x: torch.cat([x] * 2)), drop=torch.cat([drop, null.drop]))


def _joined(one: Tensor, other: Tensor) -> Tensor:
    """Rows of both; captions of fewer tokens than the other's get padding, which their mask leaves out."""
    if one.ndim < 2 or one.shape[1:] == other.shape[1:]:
        return torch.cat([one, other])
    longest = max(one.shape[1], other.shape[1])
    pads = ([0, 0] * (x.ndim - 2) + [0, longest - x.shape[1]] for x in (one, other))
    return torch.cat([torch.nn.functional.pad(x, pad) for x, pad in zip((one, other), pads)])
