"""Memory of a training step, counted before there is a model: its weights, and what a forward pass keeps.

Counted, not estimated: the forward pass is done on tensors that have shapes and no values (torch's fake tensors), in
the precision of the run, with its adapters, and what autograd keeps is added up. The first such tensor of a process
takes a second or two, in which torch imports torch._dynamo; its first optimiser would do the same, so that a run that
trains pays nothing for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from segue.models.backbone import Backbone, BackboneConfig, backbone_of
from segue.models.lora import LoraConfig, add_lora, freeze_as_bfloat16
from segue.types import Condition

FLOAT = 4
ADAM = 8  # bytes of a weight's two moments


@dataclass(frozen=True)
class StepKind:
    """How a step is computed, as far as memory is concerned.

    Attributes:
        checkpointing: activations are recomputed in the backward pass.
        bfloat16: under autocast; frozen matrices are then held in it.
        lora: adapters that are trained in place of the weights; None where all are.
        moments: bytes that the optimiser keeps for a trained weight, and what else is kept for each.
    """

    checkpointing: bool = False
    bfloat16: bool = False
    lora: LoraConfig | None = None
    moments: int = ADAM


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a training step needs, by part.

    Attributes:
        frozen: of weights that are not trained.
        trained: of those that are, with their gradients, moments and averages.
        activations: that are kept for the backward pass.
    """

    frozen: int
    trained: int
    activations: int

    @property
    def weights(self) -> int:
        return self.frozen + self.trained

    @property
    def total(self) -> int:
        return self.weights + self.activations


def memory_need(
    config: BackboneConfig, batch: int, frames: int, text_tokens: int = 48, kind: StepKind | None = None
) -> MemoryNeed:
    """Memory of one training step.

    With checkpointing, twice one block's part of the activations is added: its recomputed tensors and their gradients.
    """
    kind = kind or StepKind()
    model = model_without_values(config, kind)
    activations = kept_bytes(model, config, batch, frames, text_tokens, kind, kind.checkpointing)
    if kind.checkpointing:
        activations += 2 * kept_bytes(model, config, batch, frames, text_tokens, kind, False) // config.depth
        if kind.bfloat16:  # autocast keeps its copies of trained matrices until the step's end, recomputed or not
            activations += sum(2 * p.numel() for p in model.parameters() if p.requires_grad and p.ndim == 2)
    # A weight, its gradient, its moments and its average.
    trained = sum(p.numel() * (3 * FLOAT + kind.moments) for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    return MemoryNeed(frozen, trained, activations)


def model_without_values(config: BackboneConfig, kind: StepKind) -> Backbone:
    """A model of this shape on torch's meta device, with the adapters and the types of the run's."""
    with torch.device("meta"):
        model = backbone_of(config).to("meta")  # libraries put some buffers elsewhere
        if kind.lora is not None:
            add_lora(model, kind.lora)
    if kind.lora is not None and kind.bfloat16:
        freeze_as_bfloat16(model)
    return model


def kept_bytes(
    model: Backbone,
    config: BackboneConfig,
    batch: int,
    frames: int,
    text_tokens: int,
    kind: StepKind,
    checkpointing: bool,
) -> int:
    """Bytes that autograd keeps between forward and backward of one batch, beside the weights."""
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(saved: torch.Tensor) -> torch.Tensor:
        # By storage: views of one tensor share its memory. It is held, since a freed one's address may be used again.
        kept[saved.untyped_storage()._cdata] = saved.untyped_storage()
        return saved

    # Fake tensors of a CPU, not those of the meta device: these know autocast, and attention as it is computed. In
    # bfloat16 a CPU keeps attention's weights, which kernels of GPUs do not: the need of these is overstated a little.
    with FakeTensorMode():
        _give_shapes(model)
        model.gradient_checkpointing = checkpointing
        model.train()
        drop = torch.empty(batch, dtype=torch.bool)
        x_t = torch.empty(batch, config.channels, frames)
        t = torch.empty(batch)
        if config.audio:
            known = torch.empty(batch, config.channels, 1, dtype=torch.bool)
            condition = Condition(drop=drop, audio=torch.empty_like(x_t), known_mask=known, cutoff=torch.empty(batch))
        else:
            mask = torch.empty(batch, text_tokens, dtype=torch.bool)
            tokens = torch.empty(batch, text_tokens, config.text_dim)
            condition = Condition(tokens, mask, drop, seconds=torch.empty(batch))
            if config.known:
                known = torch.empty(batch, 1, frames, dtype=torch.bool)
                condition = replace(condition, audio=torch.empty_like(x_t), known_mask=known)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=kind.bfloat16)
        with autocast, torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            model(x_t, t, condition, torch.empty(batch, frames, dtype=torch.bool))
        # Weights are saved for the backward pass as well, but they are counted elsewhere.
        for weight in model.parameters():
            kept.pop(weight.untyped_storage()._cdata, None)
        return sum(storage.nbytes() for storage in kept.values())


def _give_shapes(model: nn.Module) -> None:
    """Fake tensors in place of a model's weights and buffers, of the same shapes and types."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                empty = torch.empty(p.shape, dtype=p.dtype)
                module._parameters[name] = nn.Parameter(empty, requires_grad=p.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
