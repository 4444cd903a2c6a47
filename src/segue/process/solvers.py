"""From noise to data: integrate dx/dt = v(x, t) from t = 1 down to t = 0."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]
SOLVERS = ("euler", "heun", "multistep", "dpm")


def time_grid(steps: int, shift: float = 1.0) -> Tensor:
    """[steps + 1] times from 1 to 0, float64; shift > 1 puts more of them at high noise (arXiv 2403.03206, eq. 23)."""
    t = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    return shift * t / (1 + (shift - 1) * t)


def below(times: Tensor, start: float) -> Tensor:
    """The part of a grid of times below `start`, which it begins with."""
    return torch.cat([times.new_tensor([start]), times[times < start]])


def solve(field: Field, x: Tensor, times: Tensor, method: str = "multistep") -> Tensor:
    """Integrate the velocity field along `times`.

    Args:
        field: called as field(x, t [B]) -> velocity of the shape of x.
        x: [B, ...] at times[0], standard normal noise for t = 1.
        times: descending, from 1 to 0.
        method: "euler" (first order), "heun" (second order, two evaluations a step; one on a step that ends at t = 0,
            as in arXiv 2206.00364, algorithm 1: a clean-sample prediction has no velocity there), "multistep" (second
            order, one evaluation a step: Adams-Bashforth for steps of any size, started by an Euler step), or "dpm"
            (second order, one evaluation a step: DPM-Solver++(2M), arXiv 2211.01095, algorithm 2, which is linear in
            the clean sample and in the log-SNR; the first step and one that ends at t = 0 are Euler steps).

    Returns:
        x at times[-1].

    Raises:
        ValueError: an unknown method, or times that do not descend.
    """
    if method not in SOLVERS:
        raise ValueError(f"solver '{method}'; use one of {', '.join(SOLVERS)}")
    if not bool((times[1:] < times[:-1]).all()):
        raise ValueError("times must descend")
    previous: tuple[Tensor, float] | None = None
    for now, then in zip(times[:-1].tolist(), times[1:].tolist()):
        # Negative: time runs from noise down to data.
        step = then - now
        velocity = field(x, _batch(x, now))
        if method == "heun" and then > 0:
            ahead = field(x + step * velocity, _batch(x, then))
            x = x + step * (velocity + ahead) / 2
        elif method == "dpm":
            clean = x - now * velocity
            ahead = _extrapolated(clean, previous, now, then)
            # An Euler step is this very line with the clean sample itself, on any path (DDIM).
            x = (then / now) * x + (1 - then / now) * ahead
            velocity, step = clean, now
        elif method == "multistep" and previous is not None:
            ratio = step / previous[1]  # the integral over this step of the line through the last two velocities
            x = x + step * ((1 + ratio / 2) * velocity - ratio / 2 * previous[0])
        else:
            x = x + step * velocity
        previous = (velocity, step)
    return x


def _extrapolated(clean: Tensor, previous: tuple[Tensor, float] | None, now: float, then: float) -> Tensor:
    """The clean sample at the middle, in log-SNR, of the step from `now` to `then`, from this and the last one.

    Args:
        previous: the last clean sample and its time; None at the first step.
    """
    if previous is None or previous[1] == 1.0 or then == 0.0:  # an end of the path lies infinitely far in log-SNR
        return clean
    before, now_, then_ = (math.log((1 - t) / t) for t in (previous[1], now, then))
    return clean + (then_ - now_) / (2 * (now_ - before)) * (clean - previous[0])


def _batch(x: Tensor, t: float) -> Tensor:
    return torch.full((x.shape[0],), t, dtype=x.dtype, device=x.device)
