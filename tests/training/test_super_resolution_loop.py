"""A super-resolution run keeps the promises of any run; recipes/__init__ makes one of `stage` in a few lines."""

import json
from dataclasses import replace

import pytest
import torch
from running import assert_same, run, start, timeless
from safetensors.torch import load_file

from segue.pipeline import SuperResolver
from segue.tasks.degradation import degrade, protocol
from segue.training.build import build_model, make_task
from segue.training.checkpoint import list_checkpoints
from segue.training.checks import check_before_training
from segue.training.config import from_json, override, to_json
from segue.training.log import read_log
from segue.types import UserError

BAND = ["degradation.cutoff_min_hz=400", "degradation.cutoff_max_hz=500", "model.patch_frames=1"]


@pytest.fixture
def resolution(recipe):
    def make(name, *changes):
        return recipe(name, *BAND, *changes)

    return make


def prepared(config, cache, positions):
    task = make_task(config, cache)
    rows = cache.rows("train")[:4]
    return task.prepare(cache.batch(rows), positions)


def test_data_and_condition_are_two_parts_of_one_latent(hisses, resolution):
    x_0, condition, mask = prepared(resolution("sr-demo-static"), hisses, [5, 6, 7, 8])
    given = condition.known_mask[..., None].expand_as(x_0)
    assert x_0[given].abs().max() == 0 and condition.audio[~given].abs().max() == 0
    assert 0 < condition.known_mask.sum() < condition.known_mask.numel()
    assert x_0[~given].std() > 0.5 and condition.audio[given].std() > 0.5
    assert (condition.cutoff <= 0.5).all() and (condition.cutoff >= 0.4).all()
    assert mask is not None and x_0.transpose(1, 2)[~mask].abs().max() == 0


def test_degradations_are_keyed_by_position_and_fixed_where_there_is_none(hisses, resolution):
    config = resolution("sr-demo-static")
    first, again, other = (prepared(config, hisses, range(n, n + 4))[1] for n in (40, 40, 80))
    assert torch.equal(first.audio, again.audio) and not torch.equal(first.audio, other.audio)
    moved = prepared(config, hisses, [0, 1, 40, 41])[1]
    assert moved.cutoff[2:].tolist() == first.cutoff[:2].tolist()
    assert prepared(config, hisses, None)[1].cutoff.tolist() == [0.5] * 4


def test_resumed_equals_uninterrupted_bit_for_bit(hisses, resolution, tmp_path):
    config = resolution("sr-demo")
    _, whole = run(config, hisses, tmp_path / "whole")
    run(replace(config, train=replace(config.train, keep_last=9)), hisses, tmp_path / "cut")
    for later in list_checkpoints(tmp_path / "cut")[1:]:
        for file in later.iterdir():
            file.unlink()
        later.rmdir()
    _, resumed = run(config, hisses, tmp_path / "cut", resume=True)
    assert_same(whole, resumed)
    assert timeless(tmp_path / "cut" / "log.jsonl") == timeless(tmp_path / "whole" / "log.jsonl")


def test_accumulation_changes_nothing(hisses, resolution, tmp_path):
    config = resolution("sr-demo", "train.total_examples=32")
    _, whole = run(config, hisses, tmp_path / "1")
    _, pieces = run(override(config, ["train.accumulation=3"]), hisses, tmp_path / "3")
    assert_same(whole, pieces, atol=2e-4, rtol=1e-3)


def test_two_ranks_give_what_one_gives(hisses, resolution, tmp_path):
    config = resolution("sr-demo", "train.total_examples=32")
    _, one = run(config, hisses, tmp_path / "one")
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29613"]
    process = start(tmp_path / "two", config, hisses, *launcher)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-2000:]
    two = load_file(list_checkpoints(tmp_path / "two")[-1] / "model.safetensors")
    assert_same(one, two, atol=2e-4, rtol=1e-3)


def test_priming_predicts_missing_levels_from_given_ones(hisses, resolution):
    config = resolution("sr-demo-static")
    model, task = build_model(config, hisses, 0), make_task(config, hisses)
    task.initialise(model, hisses)
    rows = hisses.rows("valid")
    batch = hisses.batch(rows)
    x_0, condition, _ = task.prepare(batch)
    with torch.no_grad():
        made = model(torch.zeros_like(x_0), torch.ones(len(rows)), condition, batch.mask).prediction
    missing = ~condition.known_mask[0, : task.space.codec.levels]
    wanted, made = (x[:, : task.space.codec.levels][:, missing].transpose(1, 2)[batch.mask] for x in (x_0, made))
    assert (made - wanted).square().mean() < 0.5 * wanted.var()  # of 40 short clips
    assert model.config.audio_skip == task.space.codec.levels and made.abs().max() > 0


def test_a_run_learns_and_its_probe_measures_it(hisses, resolution, tmp_path):
    config = resolution(
        "sr-demo", "train.total_examples=1200", "train.checkpoint_every=600", "optim.learning_rate=3e-3"
    )
    run(config, hisses, tmp_path)
    log = read_log(tmp_path / "log.jsonl")
    before, *_, after = [e["loss_by_t"] for e in log if e["event"] == "validation"]
    assert all(after[t] < 0.8 * before[t] for t in ("0.1", "0.3", "0.5", "0.7"))
    probes = [e["discrepancy"] for e in log if e["event"] == "stage"]
    assert probes[-1] < 0.9 * probes[0]


def test_where_nothing_is_left_to_hear_the_fallback_acts_and_says_so(hisses, resolution, tmp_path):
    """A rate of zero learns nothing, so the discrepancy never falls: r follows the time from 30 % of the run on."""
    config = resolution("sr-demo", "optim.learning_rate=1e-12", "train.total_examples=400", "train.patience=1000")
    run(config, hisses, tmp_path)
    stages = [e for e in read_log(tmp_path / "log.jsonl") if e["event"] == "stage"]
    assert "fall" in stages[-1]["reason"] and stages[-1]["regime"] > 0.5 > stages[0]["regime"]


def test_checks_say_what_is_taken_away_and_that_a_teacher_is_blind(hisses, resolution):
    lines = check_before_training(resolution("sr-demo"), hisses)
    assert any("cutoffs 400 to 500 Hz; generated up to 1,000 Hz" in line for line in lines)
    deaf = {**hisses.meta["teacher"], "sample_rate_hz": 1400}
    changed = type(hisses)(hisses.path, {**hisses.meta, "teacher": deaf}, hisses._index)
    (warning,) = [line for line in check_before_training(resolution("sr-demo"), changed) if "warning" in line]
    assert "500 to 1000 Hz, teacher bands covers 500 to 700 Hz" in warning


def test_latents_without_bands_are_generated_whole_and_the_low_band_is_kept_all_the_same(taught, resolution, tmp_path):
    config = resolution("sr-demo", "train.total_examples=32")
    assert any("warning: the codec spectral does not keep" in line for line in check_before_training(config, taught))
    x_0, condition, _ = prepared(config, taught, [5, 6, 7, 8])
    assert not condition.known_mask.any() and torch.equal(condition.fill_known(x_0), x_0)
    assert (condition.audio != 0).any() and x_0[:, :, 0].abs().min() > 0  # both whole
    run(config, taught, tmp_path)
    resolver = SuperResolver.load(tmp_path)
    low = degrade(torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0)), 2000, protocol("nuwave2", 500.0))
    made = resolver.resolve(low, torch.tensor([500.0]), resolver.noise(resolver.frames(4000), 0)[None])
    added, kept = (torch.fft.rfft(x[0, 0] * torch.hann_window(4000)).abs().square() for x in (made - low, low))
    assert added[:800].sum() < 1e-3 * kept[:800].sum()  # up to 400 Hz
    assert added[1100:].sum() > 100 * kept[1100:].sum()  # from 550 Hz


def test_a_cutoff_that_leaves_nothing_is_refused(hisses, resolution):
    with pytest.raises(UserError, match="nothing would be missing"):
        check_before_training(resolution("sr-demo", "degradation.cutoff_max_hz=1000"), hisses)


def test_settings_go_to_json_and_back_and_are_set_by_name(resolution, recipe):
    config = resolution("sr-48k", "degradation.families=bessel,fft", "train.task=super-resolution")
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
    assert config.degradation.families == "bessel,fft" and config.model.attention_window == 5
    older = to_json(resolution("sr-48k", "train.task=generation", "model.attention_window=0"))
    assert "task" not in older["train"] and "attention_window" not in older["model"]
    assert from_json(older).train.task == "generation"
    assert "degradation" not in to_json(recipe("stage"))  # hashes of older runs hold
