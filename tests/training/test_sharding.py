"""FSDP2 on two gloo processes: what one process gives, in files that one process reads."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from running import assert_same, run, start, two_ranks
from safetensors.torch import load_file

from segue.training.checkpoint import list_checkpoints
from segue.training.log import read_log
from segue.training.sharding import check_sharding, distribute_like, full_tensor, full_tensors, norm_of, to_local
from segue.types import UserError

# Guidance that ends, probes, pieces of a batch, recomputed activations, block structure (of too few blocks to form groups).
ALL_OF_IT = [
    "model.gradient_checkpointing=true", "train.accumulation=2", "train.total_examples=48", "train.checkpoint_every=24",
    "train.keep_last=9", "train.log_every=8", "probe.run=always", "structure.enabled=true",
]  # fmt: skip
CLOSE = {"atol": 2e-4, "rtol": 1e-3}


def test_a_sharded_run_is_the_run_of_one_process_and_either_goes_on_as_the_other(taught, recipe, tmp_path):
    config = recipe("time-ramp", *ALL_OF_IT)
    sharded = replace(config, train=replace(config.train, sharding="fsdp2"))
    _, one = run(config, taught, tmp_path / "one")
    out, err = start(tmp_path / "two", sharded, taught, *two_ranks(29651)).communicate(timeout=300)
    assert out.count("finished 48") == 2, err
    assert_same(one, load_file(list_checkpoints(tmp_path / "two")[-1] / "model.safetensors"), **CLOSE)
    decided = stages(tmp_path / "one")
    assert any(e["groups"] is None for e in decided) and len({e["alignment_weight"] for e in decided}) > 2
    assert decided == stages(tmp_path / "two")
    norms = [[e["grad_norm"] for e in read_log(tmp_path / name / "log.jsonl") if e["event"] == "train"] for name in ("one", "two")]  # fmt: skip
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    for file in ("model.safetensors", "optimizer.safetensors"):
        first, second = (load_file(list_checkpoints(tmp_path / name)[0] / file) for name in ("one", "two"))
        assert {k: (v.shape, v.dtype) for k, v in first.items()} == {k: (v.shape, v.dtype) for k, v in second.items()}
    # One process goes on where two sharded ones stopped, and two sharded ones where one stopped.
    for folder in (tmp_path / "one", tmp_path / "two"):
        for later in list_checkpoints(folder)[1:]:
            (later / "state.json").unlink()
    _, resumed = run(config, taught, tmp_path / "two", resume=True)
    assert_same(one, resumed, **CLOSE)
    out, err = start(tmp_path / "one", sharded, taught, *two_ranks(29653)).communicate(timeout=300)
    assert out.count("finished 48") == 2, err
    last = [list_checkpoints(tmp_path / name)[-1] for name in ("one", "two")]
    assert_same(one, load_file(last[0] / "model.safetensors"), **CLOSE)
    states = [json.loads((folder / "state.json").read_text()) for folder in last]
    assert states[0]["loader"] == states[1]["loader"] and states[0]["steps"] == states[1]["steps"] == 6


def stages(folder):
    """What was decided, once for each moment: a resumed run writes the same again."""
    keys = ("regime", "alignment_weight", "timestep_mean", "structure_active", "groups", "signal")
    lines = [e for e in read_log(folder / "log.jsonl") if e["event"] == "stage"]
    return [{"examples_seen": e["examples_seen"], **{k: e[k] for k in keys}} for e in lines]


PARTS = """
import copy, torch
from types import SimpleNamespace
from accelerate import Accelerator
from segue.models.dit import DiT, DiTConfig
from segue.stage.variants.block_step import BlockStep
from segue.stage.variants.block_structure import StructureConfig, StructureState, measure_structure
from segue.training.optim import clip_gradients
from segue.training.sharding import is_sharded, to_local, norm_of, shard_models, full_tensor, gathered_blocks, full_tensors
accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
model = DiT(DiTConfig(channels=3, width=16, depth=8, heads=2, text_dim=5))
twin, averaged = copy.deepcopy(model), copy.deepcopy(model)
shard_models(SimpleNamespace(train=SimpleNamespace(sharding="fsdp2")), accelerator, model, averaged)
assert is_sharded(model) and is_sharded(averaged) and not is_sharded(twin)
held, all_of_it = sum(to_local(p).numel() for p in model.parameters()), sum(p.numel() for p in twin.parameters())
assert held < 0.6 * all_of_it, (held, all_of_it)
torch.testing.assert_close(norm_of(list(model.parameters())), norm_of(list(twin.parameters())))
rank = accelerator.process_index
x, t = torch.randn(4, 3, 8), torch.rand(4)
mine = slice(2 * rank, 2 * rank + 2)
(model(x[mine], t[mine]).prediction - 1).square().mean().backward()
(twin(x, t).prediction - 1).square().mean().backward()
torch.testing.assert_close(clip_gradients(model, 0.01)[0], clip_gradients(twin, 0.01)[0])
for (name, p), q in zip(model.named_parameters(), twin.parameters()):
    assert (p.grad is None) == (q.grad is None), name
    if q.grad is not None:
        torch.testing.assert_close(full_tensor(p.grad), q.grad, atol=1e-6, rtol=1e-4)
with gathered_blocks(model.blocks):
    for block in model.blocks:
        assert not hasattr(block.mlp_in.weight, "device_mesh")
        for p in block.parameters():
            p.data += 1
before, after = (dict(m.named_parameters()) for m in (twin, model))
before_step = {name: p.detach().clone() for name, p in before.items()}
for name in before:
    torch.testing.assert_close(full_tensor(after[name]), before[name] + name.startswith("blocks."))
config = StructureConfig(strength=0.1, every=1)
with gathered_blocks(model.blocks):
    measured = measure_structure(config, StructureState(), model.blocks)
with torch.no_grad():
    for p in twin.blocks.parameters():
        p.data += 1
assert measured.groups == measure_structure(config, StructureState(), twin.blocks).groups
state = StructureState(active_at=0, labels=measured.groups, margin=0.0)
for net in (model, twin):
    term = BlockStep(config, net.blocks, whole=gathered_blocks, norm=norm_of)
    term.keep(state, 0.1, 0)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.99)
    term.follow(state, 0.1)
moved = 0.0
for (name, p), q in zip(model.named_parameters(), twin.parameters()):
    torch.testing.assert_close(full_tensor(p), q, atol=1e-5, rtol=1e-4)
    moved += float((q - 0.99 * (before_step[name] + name.startswith("blocks."))).norm())
assert moved > 0.01
kept = full_tensors(model.state_dict(), keep=rank == 0)
assert list(kept) == (list(before) if rank == 0 else [])
print("fine")
"""


def test_norms_clipping_and_whole_blocks_over_two_ranks(tmp_path):
    (tmp_path / "parts.py").write_text(PARTS)
    command = [sys.executable, *two_ranks(29655), str(tmp_path / "parts.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.stdout.count("fine") == 2, done.stderr


def test_ordinary_tensors_are_left_as_they_are():
    tensor = torch.randn(3, 2)
    assert (
        to_local(tensor) is tensor
        and full_tensor(tensor) is tensor
        and distribute_like(tensor, torch.zeros(3, 2)) is tensor
    )
    assert norm_of([tensor, torch.ones(2)]) == pytest.approx(float((tensor.square().sum() + 2).sqrt()))
    assert full_tensors({"a": tensor}, keep=True)["a"] is not None and full_tensors({"a": tensor}, keep=False) == {}


@pytest.mark.parametrize(
    ("change", "processes", "kind", "says"),
    [
        ("train.sharding=fsdp2", 1, "NO", "on a single process"),
        ("regime.signal=gradient-cosine", 2, "MULTI_CPU", "gradient-cosine"),
        ("optim.kind=muon", 2, "MULTI_CPU", r"take optim\.kind=adamw"),
        ("train.sharding=none", 2, "FSDP", "answer no to FSDP"),
    ],
)
def test_what_cannot_be_sharded_is_refused_in_a_line(recipe, change, processes, kind, says):
    config = recipe("stage", "train.sharding=fsdp2", change)
    handle = SimpleNamespace(num_processes=processes, distributed_type=f"DistributedType.{kind}")
    with pytest.raises(UserError, match=says):
        check_sharding(config, handle)
    with pytest.raises(UserError, match=r"train\.sharding is 'zero'"):
        recipe("stage", "train.sharding=zero")


def test_a_single_process_is_refused_before_anything_is_written(cache, recipe, tmp_path):
    with pytest.raises(UserError, match="on a single process"):
        run(recipe("static-uniform", "train.sharding=fsdp2"), cache, tmp_path)
    assert not list_checkpoints(tmp_path)
