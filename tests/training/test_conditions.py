"""Runs that know more than the caption: crops with their times, silence behind a sound's end, tempo and key."""

import json

import pytest
import torch
from running import assert_same, run, timeless

from segue.models.files import load_model, read_card
from segue.process.noise import BatchDraws
from segue.tasks.super_resolution import SuperResolution
from segue.training.build import build_model, condition_fields, make_task, model_card, silence_of
from segue.training.checkpoint import list_checkpoints
from segue.training.checks import check_before_training
from segue.training.config import override
from segue.types import UserError


def test_silence_behind_the_end_is_learned_as_any_other_sound(takes, config):
    task = make_task(config, takes)
    rows = [row for row in range(len(takes)) if takes.row(row)["frames"] < takes.frames][:4]
    x_0, condition, mask = task.prepare(takes.batch(rows))
    assert mask is None
    silence = silence_of(task.space, takes.meta["seconds"])
    for n, row in enumerate(rows):
        frames = takes.row(row)["frames"]
        assert torch.equal(x_0[n, :, frames:], silence[:, frames:])
        assert not torch.equal(x_0[n, :, frames - 1], silence[:, frames - 1])
    # Held-out rows hide nothing; of training rows what the list says is hidden now and then, and times never are.
    assert condition.numbers.shape == (4, 3) and bool(condition.numbers_known.all())
    assert bool((condition.labels > 0).all())
    known = [task.prepare(takes.batch(rows), BatchDraws(0, 4 * n, 4))[1] for n in range(100)]
    shown = torch.cat([c.numbers_known for c in known]).float().mean(0)
    assert shown[:2].tolist() == [1.0, 1.0] and 0.7 < float(shown[2]) < 0.9
    assert 0.7 < float(torch.cat([c.labels for c in known]).bool().float().mean()) < 0.9


def test_a_run_of_crops_in_buckets_goes_on_bit_for_bit(takes, recipe, tmp_path):
    config = recipe("stage", "train.seconds=0.7", "train.buckets=true", "train.keep_last=9")
    _, whole = run(config, takes, tmp_path / "whole")
    run(config, takes, tmp_path / "cut")
    for later in list_checkpoints(tmp_path / "cut")[1:]:
        (later / "state.json").unlink()
    _, resumed = run(config, takes, tmp_path / "cut", resume=True)
    assert_same(whole, resumed)
    assert timeless(tmp_path / "cut" / "log.jsonl") == timeless(tmp_path / "whole" / "log.jsonl")
    last = list_checkpoints(tmp_path / "cut")[-1]
    assert json.loads((last / "state.json").read_text())["loader"]["bucketed"]
    # The card says what the model knows: fields with ranges and labels, length of crops, lengths of sounds.
    card = read_card(last / "model.safetensors")
    assert card.seconds == 0.7 and card.lengths["fitted"] and len(card.lengths["captions"]) == 5
    saved = load_model(last / "model.safetensors")
    assert [f.name for f in saved.model.config.numbers] == ["seconds_start", "seconds_total", "bpm"]
    assert saved.model.config.labels[0].values == ("C", "D", "E")
    moved = [n for n in whole if n.startswith("model.fields") and not torch.equal(whole[n], whole["ema" + n[5:]])]
    assert len(moved) > 6
    kept = run(config, takes, tmp_path / "kept", cache_on_device="yes")[1]
    assert_same(whole, kept)


def test_a_start_keeps_its_own_fields(takes, taught, config, tmp_path):
    short = override(config, ["train.total_examples=8"])
    run(short, taught, tmp_path / "plain")
    run(short, takes, tmp_path / "fields")
    # Without fields: new ones begin at nothing. With fields: these stay, also on a cache that says nothing.
    further = override(short, [f"train.start_from={tmp_path / 'plain'}"])
    model, start = build_model(further, takes, 0), build_model(further, taught, 0)
    assert hasattr(model, "fields") and not hasattr(start, "fields")
    x, t = torch.randn(2, takes.channels, 8), torch.tensor([0.3, 0.8])
    _, condition, _ = make_task(further, takes).prepare(takes.batch([0, 1]))
    torch.testing.assert_close(model(x, t, condition).prediction, start(x, t, condition).prediction)
    kept = override(short, [f"train.start_from={tmp_path / 'fields'}"])
    assert condition_fields(kept, taught) == condition_fields(short, takes)
    lines = check_before_training(kept, taught)
    assert any("the cache does not say seconds_start, seconds_total, bpm, key" in line for line in lines)
    run(kept, taught, tmp_path / "further")
    adapters = override(further, ["lora.rank=2"])
    assert condition_fields(adapters, takes) == ((), ())


def test_a_plain_cache_changes_nothing(taught, config):
    assert condition_fields(config, taught) == ((), ())
    assert make_task(config, taught).prepare(taught.batch([0, 1, 2]))[2] is not None
    model = build_model(config, taught, 0)
    assert model_card(config, taught, model, 0).lengths == {} and not hasattr(model, "fields")


def test_what_cannot_have_crops_says_so(taught, hisses, recipe, config):
    with pytest.raises(UserError, match="do not know where in their sound they start"):
        check_before_training(override(config, ["train.seconds=0.3"]), taught)
    with pytest.raises(UserError, match="not for super-resolution; hint: segue encode --seconds"):
        check_before_training(recipe("sr-demo", "train.buckets=true", "degradation.cutoff_min_hz=400",
                                     "degradation.cutoff_max_hz=500", "model.patch_frames=1"), hisses)  # fmt: skip
    with pytest.raises(UserError, match="give a length in seconds"):
        override(config, ["train.seconds=-1"])
    assert SuperResolution.name == "super-resolution"
