"""The linear path between data and noise, what can be read off a point of it, and the cosine path beside it.

x_t = (1 - t) x_0 + t eps, velocity v = eps - x_0 (flow matching with the linear path, arXiv 2210.02747; rectified flow,
arXiv 2209.03003). t = 0 is data, t = 1 is noise.

t stands for a noise level, not for a path: its log-SNR is 2 ln((1 - t) / t) on every path. A point of the cosine path
(v-prediction, arXiv 2202.00512: z = alpha x_0 + sigma eps, alpha^2 + sigma^2 = 1) of the same log-SNR is the point of
the linear path, scaled. So all of segue works on the linear path, and a model of the cosine path scales what it gets.
"""

from __future__ import annotations

import math

import torch
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


def log_snr(t: Tensor) -> Tensor:
    """ln(SNR) = 2 ln((1 - t) / t): what t means on every path; falls from infinity (data) to minus infinity (noise)."""
    return 2 * (torch.log1p(-t) - torch.log(t))


def time_of_log_snr(value: Tensor) -> Tensor:
    """The inverse of `log_snr`: t = sigmoid(-value / 2)."""
    return torch.sigmoid(-value / 2)


def cosine_norm(t: Tensor) -> Tensor:
    """sqrt((1 - t)^2 + t^2): a point of the linear path over it is the point of the cosine path at the same log-SNR."""
    return torch.hypot(1 - t, t)


def cosine_angle(t: Tensor) -> Tensor:
    """The cosine path's own time in [0, 1], alpha = cos(pi u / 2): u = (2 / pi) atan(t / (1 - t))."""
    return torch.atan2(t, 1 - t) * (2 / math.pi)


def cosine_target(x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What a model of the cosine path predicts: v = alpha eps - sigma x_0 (arXiv 2202.00512, appendix D)."""
    alpha, sigma = (1 - t) / cosine_norm(t), t / cosine_norm(t)
    return expand(alpha, eps) * eps - expand(sigma, x_0) * x_0


def velocity_of(prediction: Tensor, predicts: str, x_t: Tensor, t: Tensor, floor: float = T_FLOOR) -> Tensor:
    """A model's prediction as a velocity.

    Args:
        prediction: [B, C, L].
        predicts: "velocity", "clean", or "v" (of the cosine path; with n = cosine_norm(t), the velocity of the linear
            path is v / n + (2 t - 1) x_t / n^2).
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
    if predicts == "v":
        norm = expand(cosine_norm(t), x_t)
        return prediction / norm + expand(2 * t - 1, x_t) * x_t / norm**2
    raise ValueError(f"predicts is '{predicts}'; use 'velocity', 'clean' or 'v'")
