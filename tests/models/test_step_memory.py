"""The count of a step's memory against a step that was taken: what autograd kept, and what weights hold."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from segue.models.backbone import backbone_of
from segue.models.lora import LoraConfig, add_lora, freeze_as_bfloat16
from segue.models.presets import preset
from segue.models.step_memory import StepKind, kept_bytes, memory_need
from segue.types import Condition

BATCH, FRAMES, TOKENS = 2, 16, 5
CONFIG = preset("dit-tiny", channels=4, text_dim=8)
KINDS = {
    "plain": StepKind(),
    "checkpointing": StepKind(checkpointing=True),
    "bfloat16": StepKind(bfloat16=True),
    "lora": StepKind(lora=LoraConfig(4)),
    "lora in bfloat16": StepKind(bfloat16=True, lora=LoraConfig(4)),
    "dora": StepKind(lora=LoraConfig(4, dora=True)),
}


def taken(kind):
    """What autograd keeps in a forward pass on real tensors."""
    torch.manual_seed(0)
    model = backbone_of(CONFIG)
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    if kind.lora:
        add_lora(model, kind.lora)
        if kind.bfloat16:
            freeze_as_bfloat16(model)
    model.gradient_checkpointing = kind.checkpointing
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    tokens_mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    condition = Condition(torch.randn(BATCH, TOKENS, 8), tokens_mask, torch.zeros(BATCH, dtype=torch.bool))
    x, t = torch.randn(BATCH, 4, FRAMES), torch.rand(BATCH)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=kind.bfloat16)
    with autocast, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(x, t, condition, torch.ones(BATCH, FRAMES, dtype=torch.bool))
    for p in model.parameters():
        kept.pop(p.untyped_storage().data_ptr(), None)
    return model, sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_autograd_keeps_is_counted(kind):
    model, bytes_kept = taken(kind)
    counted = kept_bytes(CONFIG, BATCH, FRAMES, TOKENS, kind, kind.checkpointing)
    assert counted == pytest.approx(bytes_kept, rel=0.02)
    need = memory_need(CONFIG, BATCH, FRAMES, TOKENS, kind)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert need.frozen == sum(p.numel() * p.element_size() for p in frozen)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert need.trained == 20 * trained and need.total == need.weights + need.activations
    assert memory_need(CONFIG, BATCH, FRAMES, TOKENS, replace(kind, moments=2)).trained == 14 * trained


def test_what_saves_memory_does():
    def of(**kind):
        return memory_need(preset("dit-3m", channels=8, text_dim=8), 8, 64, 8, StepKind(**kind))

    plain, again, half = of(), of(checkpointing=True), of(bfloat16=True)
    lora = of(bfloat16=True, lora=LoraConfig(8))
    assert again.activations < 0.4 * plain.activations and half.activations < 0.8 * plain.activations
    assert lora.weights < 0.25 * plain.weights and lora.activations < half.activations
