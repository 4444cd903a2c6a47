"""The linear path between data and noise, and what can be read off a point of it.

x_t = (1 - t) x_0 + t eps, velocity v = eps - x_0 (flow matching with the linear path, arXiv 2210.02747; rectified flow,
arXiv 2209.03003). t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

from torch import Tensor

# Dividing a clean-sample error by t blows up as t -> 0; below this the error is measured as if t stood here.
T_FLOOR = 0.05


def expand(t: Tensor, like: Tensor) -> Tensor:
    """[B] times shaped to broadcast over `like` [B, ...]."""
    return t.view(-1, *([1] * (like.ndim - 1))).to(like.dtype)


def sample_path(x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t of the same shape as x_0 and eps, at times t [B]."""
    t = expand(t, x_0)
    return (1 - t) * x_0 + t * eps


def velocity_target(x_0: Tensor, eps: Tensor) -> Tensor:
    """v = eps - x_0, constant along the path."""
    return eps - x_0


def clean_of(x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """One-step prediction of the clean sample: x_0 = x_t - t v."""
    return x_t - expand(t, x_t) * velocity


def noise_of(x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The noise that the velocity implies: eps = x_t + (1 - t) v."""
    return x_t + (1 - expand(t, x_t)) * velocity


def velocity_from_clean(x_t: Tensor, clean: Tensor, t: Tensor, floor: float = T_FLOOR) -> Tensor:
    """The velocity that a predicted clean sample implies: v = (x_t - x_0) / max(t, floor).

    Exact for t >= floor. Below, the clamp keeps the velocity finite, as JiT does (arXiv 2511.13720).
    """
    return (x_t - clean) / expand(t, x_t).clamp(min=floor)


def velocity_of(prediction: Tensor, predicts: str, x_t: Tensor, t: Tensor, floor: float = T_FLOOR) -> Tensor:
    """A model's prediction as a velocity.

    Args:
        prediction: [B, C, L].
        predicts: "velocity" or "clean".
        x_t: [B, C, L].
        t: [B].
        floor: of `velocity_from_clean`. The default bounds a loss's weight; a sampler passes a floor below its
            last step, or it stops short of the clean sample and leaves noise in it (-40 dB at 24 even steps).

    Raises:
        ValueError: another word for `predicts`.
    """
    if predicts == "velocity":
        return prediction
    if predicts == "clean":
        return velocity_from_clean(x_t, prediction, t, floor)
    raise ValueError(f"predicts is '{predicts}'; use 'velocity' or 'clean'")
