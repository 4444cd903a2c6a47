"""A super-resolution run keeps the promises of any run; recipes/__init__ makes one of `stage` in a few lines."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from running import assert_same, cut_to_checkpoints, run, start, timeless
from safetensors.torch import load_file

from segue.pipeline import SuperResolver
from segue.process.noise import BatchDraws
from segue.tasks.degradation import degrade, protocol
from segue.training.build import build_model, make_accelerator, make_task
from segue.training.checkpoint import list_checkpoints
from segue.training.checks import check_before_training
from segue.training.config import from_json, override, to_json
from segue.training.log import read_log
from segue.training.measurements import Measurements, probe_rows
from segue.types import UserError

BAND = ["degradation.cutoff_min_hz=400", "degradation.cutoff_max_hz=500", "model.patch_frames=1"]


@pytest.fixture
def resolution(recipe):
    def make(name, *changes):
        return recipe(name, *BAND, *changes)

    return make


def prepared(config, cache, position, rank=0, world=1):
    """Of four clips, or of a rank's part of them."""
    task = make_task(config, cache)
    rows = cache.rows("train")[:4][rank * 4 // world : (rank + 1) * 4 // world]
    draws = None if position is None else BatchDraws(config.train.seed, position, len(rows), rank, world)
    return task.prepare(cache.batch(rows), draws)


def test_data_and_condition_are_two_parts_of_one_latent(hisses, resolution):
    x_0, condition, mask = prepared(resolution("sr-demo-static"), hisses, 5)
    given = condition.known_mask.expand_as(x_0)
    assert x_0[given].abs().max() == 0 and condition.audio[~given].abs().max() == 0
    assert 0 < condition.known_mask.sum() < condition.known_mask.numel()
    assert x_0[~given].std() > 0.5 and condition.audio[given].std() > 0.5
    assert (condition.cutoff <= 0.5).all() and (condition.cutoff >= 0.4).all()
    assert mask is not None and x_0.transpose(1, 2)[~mask].abs().max() == 0


def test_degradations_are_keyed_by_position_and_fixed_where_there_is_none(hisses, resolution):
    config = resolution("sr-demo-static")
    first, again, other = (prepared(config, hisses, n)[1] for n in (40, 40, 80))
    assert torch.equal(first.audio, again.audio) and not torch.equal(first.audio, other.audio)
    second = prepared(config, hisses, 40, rank=1, world=2)[1]
    assert second.cutoff.tolist() == first.cutoff[2:].tolist() and torch.equal(second.audio, first.audio[2:])
    assert prepared(config, hisses, None)[1].cutoff.tolist() == [0.5] * 4


def test_resumed_equals_uninterrupted_bit_for_bit(hisses, resolution, tmp_path):
    config = resolution("sr-demo")
    _, whole = run(config, hisses, tmp_path / "whole")
    run(replace(config, train=replace(config.train, keep_last=9)), hisses, tmp_path / "cut")
    cut_to_checkpoints(tmp_path / "cut", 1)
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
    missing = ~condition.known_mask[0, : task.space.codec.levels, 0]
    wanted, made = (x[:, : task.space.codec.levels][:, missing].transpose(1, 2)[batch.mask] for x in (x_0, made))
    assert (made - wanted).square().mean() < 0.5 * wanted.var()  # of 40 short clips
    assert model.config.audio_skip == task.space.codec.levels and made.abs().max() > 0


def test_a_run_learns_and_its_probe_measures_it(hisses, resolution, tmp_path):
    config = resolution(
        "sr-demo", "regime.signal=discrepancy", "train.total_examples=1200", "train.checkpoint_every=600",
        "optim.learning_rate=3e-3",
    )  # fmt: skip
    run(config, hisses, tmp_path)
    log = read_log(tmp_path / "log.jsonl")
    before, *_, after = [e["loss_by_t"] for e in log if e["event"] == "validation"]
    assert all(after[t] < 0.8 * before[t] for t in ("0.1", "0.3", "0.5", "0.7"))
    probes = [e["discrepancy"] for e in log if e["event"] == "stage"]
    assert probes[-1] < 0.9 * probes[0]


def test_where_nothing_is_left_to_hear_the_fallback_acts_and_says_so(hisses, resolution, tmp_path):
    """A rate of zero learns nothing, so the discrepancy never falls: r follows the time from 30 % of the run on."""
    config = resolution(
        "sr-demo", "regime.signal=discrepancy", "optim.learning_rate=1e-12", "train.total_examples=400",
        "train.patience=1000",
    )  # fmt: skip
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
    x_0, condition, _ = prepared(config, taught, 5)
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


def test_the_condition_gain_of_super_resolution_is_that_of_the_low_band(hisses, resolution):
    """The regression of the skip reads the low band before the first step; without it a fresh model reads nothing."""
    config = resolution("sr-demo")
    accelerator = make_accelerator(config, "cpu")
    task, model = make_task(config, hisses), build_model(config, hisses, 0)
    measurements = Measurements(config, task, hisses, model, model, accelerator, nullcontext())
    assert measurements()["condition_gain"].value == pytest.approx(0, abs=1e-6)
    task.initialise(model, hisses)
    gain = measurements()["condition_gain"]
    assert gain.value > 0.05 and gain.agreement > 0.5


def test_under_another_low_band_only_the_generated_band_differs(hisses, resolution):
    config = resolution("sr-demo")
    accelerator = make_accelerator(config, "cpu")
    task, model = make_task(config, hisses), build_model(config, hisses, 0)
    seen = []

    measurements = Measurements(config, task, hisses, model, model, accelerator, nullcontext())
    task.initialise(model, hisses)
    gain = measurements.gain
    features = gain._features
    gain._features = lambda latents: seen.append(latents) or features(latents)
    gain()
    own, other = seen[0], seen[1]
    differs = (own - other).abs().amax((0, 2)) > 1e-6
    rows = probe_rows(hisses, config.policy.probe.clips)
    known = task.prepare(hisses.batch(rows))[1].known_mask[0, :, 0]
    assert differs.any() and not (differs & known).any()
