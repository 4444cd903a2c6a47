"""LoRA on a stack of blocks: what it targets, that it starts as nothing, merged = unmerged, and that peft reads it."""

import copy

import peft
import pytest
import torch
from torch import nn

from segue.models.dit import DiT
from segue.models.lora import (
    LoraConfig,
    add_lora,
    averaged_copy,
    has_lora,
    lora_config,
    merge_lora,
    save_peft,
    target_layers,
    trained_tensors,
)
from segue.models.presets import preset
from segue.types import Condition, UserError

KINDS = [LoraConfig(4), LoraConfig(4, dora=True)]


@pytest.fixture
def base():
    """A DiT whose every weight matters: a fresh one has zeros where branches end."""
    torch.manual_seed(0)
    model = DiT(preset("dit-tiny", channels=4, text_dim=8)).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    return model


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, 3, 8, generator=g)
    condition = Condition(tokens, torch.ones(2, 3, dtype=torch.bool))
    return torch.randn(2, 4, 9, generator=g), torch.rand(2, generator=g), condition


def stirred(model):
    """Adapters that do something."""
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)
    return model


@pytest.mark.parametrize("config", KINDS, ids=["lora", "dora"])
def test_adapters_begin_as_nothing_and_merge_into_the_same_model(base, inputs, config):
    before = base(*inputs).prediction
    names = set(base.state_dict())
    add_lora(base, config)
    torch.testing.assert_close(base(*inputs).prediction, before, atol=1e-5, rtol=1e-5)
    apart = stirred(base)(*inputs).prediction
    assert (apart - before).abs().max() > 1e-2
    merged = merge_lora(base)
    assert not has_lora(merged) and set(merged.state_dict()) == names
    torch.testing.assert_close(merged(*inputs).prediction, apart, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", KINDS, ids=["lora", "dora"])
def test_only_adapters_are_trained_and_kept(base, config):
    add_lora(base, config)
    trained = {name for name, p in base.named_parameters() if p.requires_grad}
    assert trained == set(trained_tensors(base)) and all(".lora_" in name for name in trained)
    layers = 9 * len(base.blocks)
    assert len(trained) == (3 if config.dora else 2) * layers


def test_the_average_shares_frozen_weights(base):
    add_lora(base, LoraConfig(2))
    average = averaged_copy(base)
    for (name, p), q in zip(base.named_parameters(), average.parameters()):
        assert (p.data_ptr() == q.data_ptr()) == (".lora_" not in name), name
        assert not q.requires_grad


def test_targets_are_ends_of_names(base):
    assert target_layers(base, "attention.qkv, mlp_in") == [
        f"blocks.{i}.{n}" for i in range(3) for n in ("attention.qkv", "mlp_in")
    ]
    assert not any("patch" in n or "time" in n for n in target_layers(base, ""))
    with pytest.raises(
        UserError,
        match=r"lora.targets=to_q matches no linear layer of the blocks; there are attention.qkv, attention.out",
    ):
        add_lora(base, LoraConfig(2, targets="mlp_in,to_q"))
    assert not has_lora(base)


def test_dora_refuses_rows_without_a_norm(base):
    nn.init.zeros_(base.blocks[1].mlp_in.weight[3])
    with pytest.raises(
        UserError, match=r"dora: blocks.1.mlp_in has rows of zeros, which have no norm; hint: leave dora"
    ):
        add_lora(base, LoraConfig(2, dora=True))


def test_peft_loads_what_is_saved_onto_the_same_model(base, inputs, tmp_path):
    plain = copy.deepcopy(base)
    add_lora(base, LoraConfig(4, targets="attention.qkv,cross.kv"))
    wanted = stirred(base)(*inputs).prediction
    save_peft(base, tmp_path / "adapter", base="runs/base")
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(*inputs).prediction, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("16", "'16' is none of its parts"),
        ("rank=0", "none of its parts"),
        ("dora", "no rank"),
        ("rank=4,x", "'x' is none"),
    ],
)
def test_what_lora_may_say(text, complaint):
    with pytest.raises(UserError, match=complaint):
        lora_config(text)
    assert lora_config("rank=16") == LoraConfig(16) and lora_config("dora, rank=8") == LoraConfig(8, True)
