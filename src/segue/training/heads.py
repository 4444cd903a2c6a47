"""Small networks beside the model, each with an optimiser of its own.

The model's gradients, clipping and moments never meet theirs, so a head changes the model through the loss alone, and
dropping it needs no surgery on the model's optimiser. On several ranks a head is wrapped by itself: a step uses it on
all ranks or on none.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from segue.models.positions import Tables, sinusoid_frequencies, sinusoidal
from segue.training.config import OptimConfig
from segue.training.optim import clip_gradients, make_optimizer, set_rate, step_unless


class Head:
    """A module, its optimiser, and what a checkpoint keeps of both."""

    def __init__(self, name: str, module: nn.Module, optim: OptimConfig, accelerator) -> None:
        self.name = name
        self.plain = module
        self._clip = optim.grad_clip
        # AdamW, whatever the model's: Muon is for the matrices of blocks, and a head has none, nor a start to keep.
        optimizer = make_optimizer(module, replace(optim, kind="adamw", pull=0.0))
        self.module, self.optimizer = accelerator.prepare(module, optimizer)

    def step(self, rate: float, bad: Tensor) -> None:
        """Clip, step at this learning rate unless `bad` is 1, clear the gradients."""
        if self._clip:
            clip_gradients(self.module, self._clip)
        set_rate(self.optimizer, rate)
        step_unless(bad, self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Weights and moments, named head.NAME.*"""
        kept = {f"head.{self.name}.weights.{k}": v for k, v in self.plain.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            kept |= {f"head.{self.name}.adam.{index}.{k}": v for k, v in state.items()}
        return {k: v.detach().cpu().contiguous() for k, v in kept.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`.

        Raises:
            RuntimeError: the checkpoint has no such head, or one of another shape.
        """
        prefix = f"head.{self.name}."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        weights = {k.removeprefix("weights."): v for k, v in own.items() if k.startswith("weights.")}
        self.plain.load_state_dict(weights)
        data = self.optimizer.state_dict()
        data["state"] = {}
        for key, value in own.items():
            if key.startswith("adam."):
                index, name = key.removeprefix("adam.").split(".", 1)
                data["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(data)


class Uncertainty(nn.Module):
    """A learned log-variance u(t) of the loss at each time: L / exp(u) + u (EDM2, arXiv 2312.02696, section 2.2).

    Its minimum over u is log L + 1, so each noise level counts by its relative error.
    """

    def __init__(self, features: int = 64) -> None:
        super().__init__()
        self.features = features
        self._tables = Tables()
        self.out = nn.utils.skip_init(nn.Linear, features, 1)
        # u = 0 leaves the loss as it is, so that training begins like the plain one.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, t: Tensor) -> Tensor:
        """[B] times -> [B] log-variances, 0 before training."""
        # 10 in place of 10,000: u is smooth in t, and high frequencies would follow single batches.
        # The division undoes the factor in `sinusoidal`: the angles are of 8 t.
        frequencies = self._tables.get(sinusoid_frequencies, self.features, t.device, 10.0)
        return self.out(sinusoidal(t / 1000.0 * 8.0, frequencies)).squeeze(-1)


def weigh_by_uncertainty(loss: Tensor, u: Tensor) -> Tensor:
    """Per-example losses [B] under learned log-variances [B]."""
    return loss / torch.exp(u) + u
