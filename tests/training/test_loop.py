import copy
import json
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from running import assert_same, cut_to_checkpoints, run, start, timeless, two_ranks
from safetensors.torch import load_file

from segue.training.build import build_model
from segue.training.checkpoint import list_checkpoints
from segue.training.config import OPTIMIZERS, override
from segue.training.log import read_log
from segue.types import UserError


def test_a_run_learns_and_leaves_what_it_promises(cache, config, tmp_path):
    config = override(config, ["train.total_examples=1600", "train.checkpoint_every=400", "optim.learning_rate=3e-3"])
    result, tensors = run(config, cache, tmp_path)
    log = read_log(tmp_path / "log.jsonl")
    validations = [e for e in log if e["event"] == "validation"]
    assert result.finished and result.examples_seen == 1600
    assert validations[0]["examples_seen"] == 0 and validations[-1]["examples_seen"] == 1600
    for t, before in validations[0]["loss_by_t"].items():
        assert validations[-1]["loss_by_t"][t] < 0.8 * before, t
    trained = [e for e in log if e["event"] == "train"]
    assert {"loss", "examples_per_sec", "learning_rate", "grad_norm", "timestep_mean"} <= trained[-1].keys()
    assert trained[-1]["timestep_mean"] > 0.55  # static-semantic leans to noise
    assert len(list_checkpoints(tmp_path)) == config.train.keep_last
    assert any(not torch.equal(tensors[f"model.{n[4:]}"], v) for n, v in tensors.items() if n.startswith("ema."))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_resumed_equals_uninterrupted_bit_for_bit(cache, config, tmp_path, kind):
    config = override(config, [f"optim.kind={kind}"])
    _, whole = run(config, cache, tmp_path / "whole")
    # The same run, stopped after its first checkpoint.
    keep = replace(config, train=replace(config.train, keep_last=9))
    run(keep, cache, tmp_path / "cut")
    cut_to_checkpoints(tmp_path / "cut", 1)
    _, resumed = run(config, cache, tmp_path / "cut", resume=True)
    assert_same(whole, resumed)
    assert timeless(tmp_path / "cut" / "log.jsonl") == timeless(tmp_path / "whole" / "log.jsonl")


def test_a_run_begins_with_anothers_averaged_weights(cache, config, tmp_path):
    config = override(config, ["train.total_examples=16"])
    _, tensors = run(config, cache, tmp_path / "first")
    further = override(config, [f"train.start_from={tmp_path / 'first'}"])
    model = build_model(further, cache, seed=5)
    assert all(torch.equal(p, tensors[f"ema.{n}"]) for n, p in model.named_parameters())
    checkpoint = list_checkpoints(tmp_path / "first")[-1]
    for source in (checkpoint, checkpoint / "model.safetensors"):
        same = build_model(override(further, [f"train.start_from={source}"]), cache, seed=6)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), same.parameters()))
    with pytest.raises(
        UserError, match="does not exist; hint: give a run folder of `segue train`, a checkpoint folder"
    ):
        build_model(override(further, ["train.start_from=nowhere"]), cache, seed=6)
    with pytest.raises(UserError, match="a model of another shape"):
        build_model(override(further, ["model.patch_frames=4"]), cache, seed=5)


def test_seed_decides_the_run(cache, config, tmp_path):
    _, first = run(config, cache, tmp_path / "a")
    _, again = run(config, cache, tmp_path / "b")
    _, other = run(override(config, ["train.seed=1"]), cache, tmp_path / "c")
    assert_same(first, again)
    assert not torch.equal(first["model.patch_in.weight"], other["model.patch_in.weight"])


def test_rows_in_memory_train_the_same_model(taught, recipe, tmp_path):
    config = recipe("repa", "train.total_examples=32")
    _, read = run(config, taught, tmp_path / "read", cache_on_device="no")
    _, kept = run(config, taught, tmp_path / "kept", cache_on_device="yes")
    assert_same(read, kept)
    assert timeless(tmp_path / "read" / "log.jsonl") == timeless(tmp_path / "kept" / "log.jsonl")
    assert not [t for t in threading.enumerate() if t.name.startswith("segue-batches")]


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulation_changes_nothing(cache, config, tmp_path, parts):
    config = override(config, ["train.total_examples=32"])
    _, whole = run(config, cache, tmp_path / "1")
    _, pieces = run(override(config, [f"train.accumulation={parts}"]), cache, tmp_path / str(parts))
    assert_same(whole, pieces, atol=2e-4, rtol=1e-3)


def test_validating_or_logging_more_often_changes_nothing(cache, config, tmp_path):
    _, seldom = run(config, cache, tmp_path / "seldom")
    _, often = run(override(config, ["train.validate_every=8", "train.log_every=8"]), cache, tmp_path / "often")
    assert_same(seldom, often)


def test_bf16_losses_agree_with_fp32(cache, config, tmp_path):
    full, _ = run(config, cache, tmp_path / "full")
    half, _ = run(override(config, ["train.precision=bf16"]), cache, tmp_path / "half")
    for t, loss in full.validation.items():
        assert half.validation[t] == pytest.approx(loss, rel=0.05)


def test_a_run_goes_on_with_its_own_cache_only(cache, config, tmp_path):
    run(config, cache, tmp_path)
    other = copy.copy(cache)
    other.meta = {**cache.meta, "codec": {**cache.meta["codec"], "compression": 0.5}}
    with pytest.raises(UserError, match="another codec"):
        run(config, other, tmp_path, resume=True)


def test_a_full_disk_keeps_the_older_checkpoint(cache, config, tmp_path, monkeypatch):
    from segue.training import checkpoint

    real, saved = checkpoint.save_file, []

    def full_after_one(tensors, path):
        if saved:
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        saved.append(path)
        return real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full_after_one)
    with pytest.raises(UserError, match=r"cannot write the checkpoint.*free some disk, then resume"):
        run(config, cache, tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["examples-0000000032"]
    monkeypatch.undo()
    result, _ = run(config, cache, tmp_path, resume=True)
    assert result.finished


def test_two_ranks_give_what_one_gives(cache, config, tmp_path):
    config = override(config, ["train.total_examples=40", "train.known_share=0.7"])
    out, err = start(tmp_path / "one", config, cache).communicate(timeout=120)
    assert "finished 40" in out, err
    launcher = two_ranks(29631)
    out, err = start(tmp_path / "two", config, cache, *launcher).communicate(timeout=180)
    assert out.count("finished") == 2, err
    one, two = (load_file(list_checkpoints(tmp_path / n)[-1] / "model.safetensors") for n in ("one", "two"))
    assert_same(one, two, atol=2e-4, rtol=1e-3)
    losses = [
        [e["loss"] for e in read_log(tmp_path / n / "log.jsonl") if e["event"] == "train"] for n in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_stopped_from_outside_goes_on_as_if_nothing_happened(cache, config, tmp_path, number):
    config = override(config, ["train.total_examples=480", "train.checkpoint_every=40", "train.log_every=8"])
    start(tmp_path / "whole", config, cache).communicate(timeout=120)
    process = start(tmp_path / "cut", config, cache)
    deadline = time.monotonic() + 60
    while not list_checkpoints(tmp_path / "cut") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert "stopped" in out, err  # the step at hand is finished and saved
        seen = json.loads((list_checkpoints(tmp_path / "cut")[-1] / "state.json").read_text())["examples_seen"]
        assert f"stopped {seen}" in out and seen < 480
    out, err = start(tmp_path / "cut", config, cache).communicate(timeout=120)
    assert "finished 480" in out, err
    whole, cut = (load_file(list_checkpoints(tmp_path / n)[-1] / "model.safetensors") for n in ("whole", "cut"))
    assert_same(whole, cut)
