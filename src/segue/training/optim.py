"""The optimiser, its learning-rate schedule, and the averaged weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segue.training.config import OptimConfig
from segue.training.sharding import norms_of, to_local
from segue.types import UserError, import_extra


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser `config.kind`, with weight decay on matrices only, not on biases, norms and the null token.

    Where `config.pull` is set, it moves weights toward where they are now, after each of its steps.

    Raises:
        UserError: a torch without Muon, or schedulefree or bitsandbytes is not installed.
    """
    optimizer = _optimizer(model, config)
    if config.pull > 0:
        pull_to_start(optimizer, config.pull)
    return optimizer


def _optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim == 2]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim != 2]
    if config.kind == "muon":
        return MuonAndAdamW(model, matrices, others, config)
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    betas = (config.beta1, config.beta2)
    if config.kind == "schedule-free":
        return _schedule_free(groups, config.learning_rate, betas)
    if config.kind == "adamw-8bit":
        return _adamw_8bit(groups, config.learning_rate, betas)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon on the matrices inside `model.blocks` and AdamW on the rest, as one optimiser.

    An orthogonal update is scaled to the rms of Adam's (arXiv 2502.16982, section 2.2), so that rate and weight decay
    mean the same to both. Muon's rate is config.muon_rate times the other's.

    Raises:
        UserError: a torch without Muon.
    """

    def __init__(
        self, model: nn.Module, matrices: Sequence[Tensor], others: Sequence[Tensor], config: OptimConfig
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(
                f"optim.kind=muon needs torch 2.9 or newer, this is {torch.__version__}; hint: the recipe stage trains "
                "by AdamW"
            )
        blocks = {id(p) for p in getattr(model, "blocks", nn.Module()).parameters()}
        inside = [p for p in matrices if id(p) in blocks]
        outside = [p for p in matrices if id(p) not in blocks]
        rate = config.learning_rate
        decay = config.weight_decay
        own_decay = decay if config.muon_weight_decay < 0 else config.muon_weight_decay
        groups = [{"params": outside, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
        fused = {id(p) for name, p in model.named_parameters() if name.endswith("attention.qkv.weight")}
        self.parts = (
            _muon(inside, fused, lr=rate, weight_decay=own_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(groups, lr=rate, betas=(config.beta1, config.beta2), fused=True),
        )
        self.parts[0].param_groups[0]["rate_scale"] = config.muon_rate
        # One list of groups: whoever sets a rate or saves the state sees one optimiser.
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        muon, adamw = self.parts
        # Both parts read and write the groups and the state of the whole; Muon's group is the first.
        muon.param_groups = self.param_groups[:1]
        adamw.param_groups = self.param_groups[1:]
        muon.state = adamw.state = self.state

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)  # at the end of load_state_dict: groups and state are new
        self._share()

    def step(self, closure: Any = None) -> Any:
        """One step of both."""
        for part in self.parts:
            part.step()


def _muon(params: Sequence[Tensor], fused: set[int], **options: Any) -> torch.optim.Optimizer:
    """torch's Muon, for which the q and kv of a fused layer are matrices of their own: each gets an orthogonal update.

    Args:
        params: matrices.
        fused: ids of those that hold q and kv.
        options: of torch.optim.Muon.
    """

    class Muon(torch.optim.Muon):
        def _init_group(self, group: Any, params: list, grads: list, buffers: list) -> bool:
            found: tuple[list[Tensor], ...] = ([], [], [])
            super()._init_group(group, *found)
            for whole in zip(*found):
                width = whole[0].shape[1]
                rows = [width, 2 * width] if id(whole[0]) in fused else [len(whole[0])]
                for kept, tensor in zip((params, grads, buffers), whole):
                    kept.extend(tensor.split(rows))  # views: what is done to them is done to the whole
            return False

    return Muon(params, **options)


def _schedule_free(groups: list[dict], rate: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    optimizer = import_extra("schedulefree", "optimizers").AdamWScheduleFree(groups, lr=rate, betas=betas)
    optimizer.train()  # it stays in this mode: `update_average` takes the averaged weights from its state
    return optimizer


def _adamw_8bit(groups: list[dict], rate: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """AdamW by bitsandbytes: moments of 8 bits (arXiv 2110.02861), in main memory where an accelerator's is short."""
    optim = import_extra("bitsandbytes", "optimizers").optim
    # Its paging is CUDA's; on a CPU there is nowhere to move to, and it would say so at every start.
    kind = optim.PagedAdamW8bit if torch.cuda.is_available() else optim.AdamW8bit
    return kind(groups, lr=rate, betas=betas)


def pull_to_start(optimizer: torch.optim.Optimizer, strength: float) -> None:
    """Move every weight toward where it is now, by a share rate * strength, after each step (L2-SP, arXiv 1802.01483).

    Decoupled, as AdamW's weight decay is: weight decay with the start in the place of zero. Of adapters the start is
    the base model itself. Costs one copy of what is trained.
    """
    start = {p: p.detach().clone() for group in optimizer.param_groups for p in group["params"]}

    @torch.no_grad()
    def pull(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # A faulty step moves no weight; a fused optimiser knows on the device alone that it is one.
        fault = getattr(optimizer, "found_inf", None)
        for group in optimizer.param_groups:
            share = group["lr"] * strength
            for p in group["params"]:
                # The model may have moved to another device since.
                start[p] = start[p].to(p.device)
                weight = share if fault is None else torch.where(fault > 0, 0.0, share).to(p.dtype)
                to_local(p).lerp_(to_local(start[p]), weight)

    optimizer.register_step_post_hook(pull)


@torch.no_grad()
def clip_gradients(model: nn.Module, limit: float) -> tuple[Tensor, Tensor]:
    """Scale the gradients to a global norm of at most `limit` (0 = leave them).

    As torch.nn.utils.clip_grad_norm_, except that gradients stay as they are where the norm is not finite: times NaN,
    they would no longer show in which part of the model the fault began.

    Returns:
        The norm that they had together, and the norm [n] of each.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm, each = norms_of(gradients)
    if limit:
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(
            [to_local(g) for g in gradients], torch.where(torch.isfinite(norm), scale, torch.ones_like(scale))
        )
    return norm, each


def step_unless(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """A step of the optimiser, unless `bad` is 1: then weights, moments and counts stay as they are, bit for bit.

    A fused optimiser finds that out on the device, by what torch gives it for a gradient scaler. For another one the
    host waits.

    Args:
        bad: 0.0 or 1.0, on the device.
        optimizer: as accelerate has wrapped it, or not.
    """
    own: Any = getattr(optimizer, "optimizer", optimizer)
    if getattr(own, "_step_supports_amp_scaling", False):
        own.grad_scale, own.found_inf = None, bad
        optimizer.step()
    elif not bool(bad):
        optimizer.step()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> float:
    """The rate of the coming step, for all groups; returns it. A group may have a multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_scale", 1.0)
    return rate


def learning_rate(config: OptimConfig, progress: float) -> float:
    """The rate at a share `progress` in [0, 1] of the run: linear warm-up, then as `config.decay` says."""
    if config.warmup_fraction > 0 and progress < config.warmup_fraction:
        return config.learning_rate * progress / config.warmup_fraction
    # A schedule-free optimiser's averaged weights take the place of a decaying rate.
    if config.kind == "schedule-free":
        return config.learning_rate
    if config.decay == "linear" and config.decay_fraction > 0:
        return config.learning_rate * min(1.0, max(0.0, 1.0 - progress) / config.decay_fraction)
    return config.learning_rate


@torch.no_grad()
def update_average(
    average: nn.Module,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: OptimConfig,
    steps: int,
    bad: Tensor | None = None,
) -> None:
    """Move the averaged weights, in place, after an optimiser's step: an EMA, or what a schedule-free one averages.

    Args:
        average: the same network with averaged weights.
        model: the trained model.
        optimizer: what stepped.
        config: its kind, and the EMA's decay.
        steps: optimiser steps done.
        bad: 1.0 on the device where the step was none, and the averages stay as they are.
    """
    # Frozen weights are shared by both, and stay as they are.
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    weights = {name: value for name, value in average.state_dict().items() if name in trained}
    update_ema(weights, model, config.ema_decay, steps, bad)
    if config.kind == "schedule-free":  # the model holds y = (1 - beta1) z + beta1 x; x is the average
        for name, y in model.named_parameters():
            if "z" in optimizer.state[y]:
                weights[name].copy_(y.lerp(optimizer.state[y]["z"], 1.0 - 1.0 / config.beta1))


@torch.no_grad()
def update_ema(
    average: dict[str, Tensor], model: nn.Module, decay: float, steps: int, bad: Tensor | None = None
) -> None:
    """Move the averaged weights toward the model's, in place.

    Args:
        average: name -> tensor, as the model's state_dict.
        model: the trained model.
        decay: largest decay; a young run uses (1 + n) / (10 + n), so that its start is soon forgotten.
        steps: optimiser steps done.
        bad: as `update_average`.
    """
    share = 1.0 - min(decay, (1 + steps) / (10 + steps))
    current = model.state_dict()
    names = list(average)
    moved = [to_local(average[n]) for n in names]
    toward = [to_local(current[n]) for n in names]
    if bad is None:
        torch._foreach_lerp_(moved, toward, share)
    else:
        # A number on the device: by how much they move is known there alone.
        torch._foreach_lerp_(moved, toward, [torch.where(bad > 0, 0.0, share).to(moved[0].dtype)] * len(names))
