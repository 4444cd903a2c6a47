"""AdamW, its learning-rate schedule, and the averaged weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from segue.training.config import OptimConfig
from segue.training.sharding import local, norm_of


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only; biases, norms and the null token are left alone."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim == 2]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


@torch.no_grad()
def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Scale the gradients to a global norm of at most `limit` (0 = leave them) and return the norm that they had.

    As torch.nn.utils.clip_grad_norm_, except that gradients which are not finite stay as they are: multiplied by a
    coefficient that is NaN, they would no longer say in which part of the model the trouble began.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = norm_of(gradients)
    if limit:
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(
            [local(g) for g in gradients], torch.where(torch.isfinite(norm), scale, torch.ones_like(scale))
        )
    return norm


def learning_rate(config: OptimConfig, progress: float) -> float:
    """The rate at a share `progress` in [0, 1] of the run: linear warm-up, then as `config.decay` says."""
    if config.warmup_fraction > 0 and progress < config.warmup_fraction:
        return config.learning_rate * progress / config.warmup_fraction
    if config.decay == "cosine":
        done = (progress - config.warmup_fraction) / max(1e-12, 1.0 - config.warmup_fraction)
        return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    if config.decay == "linear" and config.decay_fraction > 0:
        return config.learning_rate * min(1.0, max(0.0, 1.0 - progress) / config.decay_fraction)
    return config.learning_rate


@torch.no_grad()
def update_ema(average: dict[str, Tensor], model: nn.Module, decay: float, steps: int) -> None:
    """Move the averaged weights toward the model's, in place.

    Args:
        average: name -> tensor, as the model's state_dict.
        model: the trained model.
        decay: largest decay; a young run uses (1 + n) / (10 + n), so that its start is soon forgotten.
        steps: optimiser steps done.
    """
    decay = min(decay, (1 + steps) / (10 + steps))
    current = model.state_dict()
    names = list(average)
    torch._foreach_lerp_([local(average[n]) for n in names], [local(current[n]) for n in names], 1.0 - decay)
