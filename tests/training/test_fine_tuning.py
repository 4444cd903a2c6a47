"""Runs with low-rank adapters: what moves, what a checkpoint keeps, that they go on bit for bit, and what is refused."""

import json
import shutil

import pytest
import torch
from running import assert_same, run, timeless
from safetensors.torch import load_file

from segue.models.files import load_model
from segue.training import build
from segue.training.checkpoint import list_checkpoints
from segue.training.config import from_json, override, to_json
from segue.training.fine_tuning import with_lora
from segue.types import UserError


@pytest.fixture(scope="module")
def base(cache, tmp_path_factory):
    """A run of ten steps: what is adapted."""
    from conftest import SHORT
    from segue.recipes import load_recipe

    folder = tmp_path_factory.mktemp("base")
    run(override(load_recipe("semantic-timesteps"), [*SHORT, "train.checkpoint_every=80"]), cache, folder)
    return folder


@pytest.fixture
def adapted(config, base):
    """The config of a run with adapters on it."""

    def make(lora="rank=4", *changes):
        return override(
            with_lora(config, lora),
            [f"train.start_from={base}", "train.total_examples=32", "train.checkpoint_every=16", *changes],
        )

    return make


@pytest.mark.parametrize("lora", ["rank=4", "rank=4,dora"])
def test_a_checkpoint_keeps_adapters_alone_and_loads_merged(cache, adapted, base, tmp_path, lora):
    config = adapted(lora)
    _, tensors = run(config, cache, tmp_path)
    assert all(".lora_" in name or name.startswith("latents.") for name in tensors)
    assert not torch.equal(tensors["model.blocks.0.mlp_in.lora_B.default.weight"],
                           torch.zeros_like(tensors["model.blocks.0.mlp_in.lora_B.default.weight"]))  # fmt: skip
    start = load_model(list_checkpoints(base)[-1] / "model.safetensors").model.state_dict()
    merged = load_model(list_checkpoints(tmp_path)[-1] / "model.safetensors").model.state_dict()
    assert merged.keys() == start.keys()
    moved = {name for name in start if not torch.equal(start[name], merged[name])}
    assert moved and all(name.startswith("blocks.") and name.endswith(".weight") for name in moved)
    whole = (list_checkpoints(base)[-1] / "model.safetensors").stat().st_size
    assert (list_checkpoints(tmp_path)[-1] / "model.safetensors").stat().st_size < whole / 2
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_a_step_moves_adapters_alone(cache, adapted, tmp_path, monkeypatch):
    seen = {}
    real = build.build_model

    def kept(*arguments):
        model = real(*arguments)
        seen["model"], seen["start"] = model, {n: v.clone() for n, v in model.state_dict().items()}
        return model

    monkeypatch.setattr(build, "build_model", kept)
    run(adapted(), cache, tmp_path)
    for name, value in seen["model"].state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(value, seen["start"][name]), name
    assert all(p.grad is None for n, p in seen["model"].named_parameters() if ".lora_" not in n)


@pytest.mark.parametrize("changes", [(), ("train.precision=bf16",), ("model.gradient_checkpointing=true",)])
def test_resumed_equals_uninterrupted_bit_for_bit(cache, adapted, tmp_path, changes):
    config = adapted("rank=4", *changes)
    _, whole = run(config, cache, tmp_path / "whole")
    run(override(config, ["train.keep_last=9"]), cache, tmp_path / "cut")
    for later in list_checkpoints(tmp_path / "cut")[1:]:
        shutil.rmtree(later)
    _, resumed = run(config, cache, tmp_path / "cut", resume=True)
    assert_same(whole, resumed)
    assert timeless(tmp_path / "cut" / "log.jsonl") == timeless(tmp_path / "whole" / "log.jsonl")


def test_frozen_matrices_are_bfloat16_under_autocast(cache, adapted):
    model = build.build_model(adapted("rank=4", "train.precision=bf16"), cache, seed=0)
    kinds = {(p.requires_grad, p.dtype) for p in model.blocks.parameters() if p.ndim == 2}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    exact = build.build_model(adapted("rank=4"), cache, seed=0)
    x, t = torch.randn(2, cache.channels, cache.frames), torch.rand(2)
    torch.testing.assert_close(model(x, t).prediction, exact(x, t).prediction, atol=0.05, rtol=0.05)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.ndim != 2)


def test_adapters_with_another_base_are_refused(cache, adapted, base, tmp_path):
    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    run(override(adapted(), [f"train.start_from={moved}", "train.total_examples=16"]), cache, tmp_path / "run")
    file = list_checkpoints(tmp_path / "run")[-1] / "model.safetensors"
    theirs = list_checkpoints(moved)[-1] / "model.safetensors"
    tensors = load_file(theirs)
    theirs.write_bytes(theirs.read_bytes()[:-4] + b"\0\0\0\0")
    assert tensors.keys() == load_file(theirs).keys()
    with pytest.raises(UserError, match="not the weights that the adapters were trained on; hint: put those back"):
        load_model(file)
    build._hash_once.cache_clear()  # as in another process
    with pytest.raises(UserError, match="not the weights that"):
        run(
            override(adapted(), [f"train.start_from={moved}", "train.total_examples=32"]),
            cache,
            tmp_path / "run",
            resume=True,
        )
    shutil.rmtree(moved)
    with pytest.raises(UserError, match="these weights are gone"):
        load_model(file)


def test_what_cannot_be_adapted_is_refused(cache, config, adapted):
    for changed, complaint in (
        (with_lora(config, "rank=4"), "--lora adapts a trained model; hint: add --model"),
        (adapted("rank=4", "structure.enabled=true"), "the block term moves whole weights"),
        (adapted("rank=4", "train.sharding=fsdp2"), "adapters fit on every rank"),
        (adapted("rank=4", "optim.kind=muon"), "makes every update of full rank"),
        (
            adapted("rank=4", "lora.targets=to_q"),
            "lora.targets=to_q matches no linear layer of the blocks; there are attention.qkv",
        ),
    ):
        with pytest.raises(UserError, match=complaint):
            build.build_model(changed, cache, seed=0)
    with pytest.raises(UserError, match="need a rank"):
        override(config, ["lora.dora=true"])
