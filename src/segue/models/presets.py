"""Sizes of the backbone by name, with the memory that each needs.

`segue recipes --presets` prints this table with counted parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from segue.models.dit import DiT, DiTConfig
from segue.types import Condition, UserError

PRESETS: dict[str, DiTConfig] = {
    "dit-tiny": DiTConfig(width=48, depth=3, heads=4, adaln_rank=4),  # for tests and first tries
    # Shallow: at twelve CPU minutes it learned more than dit-3m did in the same time (docs/log.md).
    "dit-1m": DiTConfig(width=128, depth=4, heads=4),
    "dit-3m": DiTConfig(width=160, depth=8, heads=5),
    "dit-10m": DiTConfig(width=256, depth=10, heads=8, adaln_rank=32),
    "dit-35m": DiTConfig(width=448, depth=12, heads=7, adaln_rank=32),
    "dit-120m": DiTConfig(width=768, depth=14, heads=12, adaln_rank=64),
    "dit-350m": DiTConfig(width=1152, depth=18, heads=18, adaln_rank=96),
    "dit-1b": DiTConfig(width=1664, depth=25, heads=26, adaln_rank=128),
}


def preset(name: str, *, channels: int, text_dim: int, **changes) -> DiTConfig:
    """The named size for a codec of `channels` and a text encoder of `text_dim` features.

    Raises:
        UserError: no preset of that name.
    """
    if name not in PRESETS:
        raise UserError(f"no model preset '{name}'; choose one of {', '.join(PRESETS)}")
    return replace(PRESETS[name], channels=channels, text_dim=text_dim, **changes)


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def parameters_of(config: DiTConfig) -> int:
    """Trainable parameters of a config, counted on a model that holds no memory."""
    with torch.device("meta"):
        return count_parameters(DiT(config))


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a training step needs, by part."""

    weights: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.activations


def memory_need(
    config: DiTConfig,
    batch: int,
    frames: int,
    text_tokens: int = 48,
    checkpointing: bool = False,
    precision: str = "fp32",
) -> MemoryNeed:
    """Memory of one training step: float32 weights, gradients, two Adam moments and EMA; activations for backward.

    The activations are counted, not estimated: a forward pass on tensors that hold no memory, adding up what autograd
    keeps. The first such tensor of a process takes a second or two, in which torch imports torch._dynamo; its first
    optimiser would do the same, so a run that trains pays nothing for the count. With checkpointing, twice one block's
    part is added: its recomputed tensors and their gradients. A compiled model keeps less.

    Args:
        precision: "fp32", or "bf16" (autocast): activations of 2 bytes, and a copy of each matrix in 2 bytes.
    """
    parameters = parameters_of(config)
    activations = kept_bytes(config, batch, frames, text_tokens, checkpointing, precision)
    if checkpointing:
        activations += 2 * kept_bytes(config, batch, frames, text_tokens, False, precision) // config.depth
    # 20 bytes: weight, gradient, two moments and average, 4 bytes each.
    return MemoryNeed(weights=20 * parameters, activations=activations)


def kept_bytes(
    config: DiTConfig, batch: int, frames: int, text_tokens: int, checkpointing: bool, precision: str = "fp32"
) -> int:
    """Bytes that autograd keeps between forward and backward of one batch, beside the weights."""
    # Fake tensors take the paths of a CPU's kernels, attention's among them, which keep what a GPU's fused ones do.
    from torch._subclasses.fake_tensor import FakeTensorMode

    kept: dict[int, torch.UntypedStorage] = {}

    def pack(saved: torch.Tensor) -> torch.Tensor:
        # By storage: views of one tensor share its memory. It is held, since a freed one's address may be used again.
        kept[saved.untyped_storage()._cdata] = saved.untyped_storage()
        return saved

    with FakeTensorMode():
        model = DiT(config)
        model.gradient_checkpointing = checkpointing
        drop = torch.empty(batch, dtype=torch.bool)
        x_t = torch.empty(batch, config.channels, frames)
        t = torch.empty(batch)
        if config.audio:
            known = torch.empty(batch, config.channels, dtype=torch.bool)
            condition = Condition(drop=drop, audio=torch.empty_like(x_t), known_mask=known, cutoff=torch.empty(batch))
        else:
            mask = torch.empty(batch, text_tokens, dtype=torch.bool)
            condition = Condition(torch.empty(batch, text_tokens, config.text_dim), mask, drop)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved), autocast:
            model(x_t, t, condition, torch.empty(batch, frames, dtype=torch.bool))
    # Weights are saved for the backward pass as well, but they are counted elsewhere.
    for weight in model.parameters():
        kept.pop(weight.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in kept.values())
