"""What the stage machinery must not change, and what it must: in the whole loop, on a cache with a teacher."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from running import assert_same, cut_to_checkpoints, run, start, timeless, two_ranks
from safetensors.torch import load_file

from segue.process.timesteps import Uniform
from segue.recipes import RECIPES
from segue.training import build
from segue.training.checkpoint import list_checkpoints
from segue.training.log import read_log
from segue.types import UserError


def stages(folder: Path) -> list[dict]:
    return [e for e in read_log(folder / "log.jsonl") if e["event"] == "stage"]


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("sr-")])
def test_every_recipe_takes_three_steps(taught, recipe, tmp_path, name):
    result, tensors = run(recipe(name, "train.total_examples=24"), taught, tmp_path)
    assert result.finished and all(bool(torch.isfinite(v).all()) for v in tensors.values())


def test_probing_changes_no_weight_where_nobody_reads_it(taught, recipe, tmp_path):
    _, without = run(recipe("repa"), taught, tmp_path / "without")
    _, probed = run(recipe("repa", "probe.run=always"), taught, tmp_path / "probed")
    assert_same(without, probed)
    assert stages(tmp_path / "probed") and not stages(tmp_path / "without")


@pytest.mark.parametrize("change", ["alignment.weight=0", "alignment.cut_at=0"])
def test_alignment_of_no_weight_is_no_alignment(taught, recipe, tmp_path, change):
    _, baseline = run(recipe("static-uniform"), taught, tmp_path / "baseline")
    _, without = run(recipe("haste", change), taught, tmp_path / "without")
    assert_same(baseline, without)
    _, guided = run(recipe("haste"), taught, tmp_path / "guided")
    assert any(not torch.equal(v, guided[n]) for n, v in baseline.items())


def test_a_controller_that_is_off_is_the_baseline(taught, recipe, tmp_path):
    _, baseline = run(recipe("static-uniform"), taught, tmp_path / "baseline")
    off = recipe(
        "stage",
        "regime.signal=constant",
        "timesteps.distribution=static",
        "alignment.weight=0",
        "structure.enabled=false",
    )
    assert off.policy.static_timesteps == Uniform()
    _, stage = run(off, taught, tmp_path / "stage")
    assert_same(baseline, stage)


def test_alignment_aligns(taught, recipe, tmp_path):
    run(recipe("repa", "train.total_examples=640", "optim.learning_rate=3e-3"), taught, tmp_path)
    aligned = [e["alignment"] for e in read_log(tmp_path / "log.jsonl") if e["event"] == "train"]
    assert aligned[-1] < 0.75 * aligned[0]


def test_one_step_of_three_is_guided_three_times_as_hard(taught, recipe, tmp_path):
    """Its first step is that of three times the weight; of five steps two are guided, and the log counts those."""
    last, one_step = {}, ("train.total_examples=8", "optim.warmup_fraction=0")
    for name, change in {"thrice": "weight=1.5", "sparse": "every=3", "plain": "weight=0"}.items():
        _, last[name] = run(recipe("repa", f"alignment.{change}", *one_step), taught, tmp_path / name)
    assert_same(last["thrice"], last["sparse"])
    assert any(not torch.equal(v, last["plain"][n]) for n, v in last["sparse"].items())
    run(recipe("repa", "alignment.every=3", "train.total_examples=40", "train.log_every=8"), taught, tmp_path / "five")
    aligned = [e["alignment"] for e in read_log(tmp_path / "five" / "log.jsonl") if e["event"] == "train"]
    assert [a is not None for a in aligned] == [True, False, False, True, False]


def test_the_time_ramp_walks_through_all_stages(taught, recipe, tmp_path):
    run(recipe("time-ramp", "train.total_examples=800"), taught, tmp_path)
    log = stages(tmp_path)
    regimes = [e["regime"] for e in log]
    assert regimes[0] == 0 and regimes == sorted(regimes) and regimes[-1] == 1
    assert log[0]["alignment_weight"] == 0.5 and log[-1]["alignment_weight"] == 0
    assert log[0]["timestep_mean"] > 0.55 and log[-1]["timestep_mean"] < 0.45
    keys = {"examples_seen", "discrepancy", "discrepancy_by_t", "slope", "regime", "regime_monotone", "alignment_weight",
            "timestep_mean", "structure_active", "groups", "signal", "reason"}  # fmt: skip
    assert keys <= log[0].keys()
    assert re.search(r"semantic stage .* alignment 0\.\d\d, .*next probe at \d+ examples", log[0]["reason"])


def test_the_probe_measures_the_weights_that_it_is_told_to(taught, recipe, tmp_path):
    def readings(name, *changes):
        run(recipe("stage-by-level", *changes), taught, tmp_path / name)
        lines = [e for e in read_log(tmp_path / name / "log.jsonl") if e["event"] == "stage"]
        return [e["discrepancy"] for e in lines if e["discrepancy"] is not None]

    averaged, online = readings("averaged"), readings("online", "probe.weights=online")
    assert averaged[0] == online[0] and averaged[1:] != online[1:]
    alike = [readings(w, f"probe.weights={w}", "optim.ema_decay=0") for w in ("averaged", "online")]
    assert alike[0] == alike[1]  # an average without memory is the online weights


def test_the_discrepancy_falls_as_the_model_learns(taught, recipe, tmp_path):
    run(
        recipe("stage-by-level", "train.total_examples=3200", "optim.learning_rate=6e-3", "probe.spacing=1.6"),
        taught,
        tmp_path,
    )
    log = stages(tmp_path)
    assert log[-1]["discrepancy"] < 0.9 * log[0]["discrepancy"]
    assert list(log[0]["discrepancy_by_t"]) == ["0.5", "0.7", "0.85", "0.95"]


@pytest.mark.parametrize(
    "name",
    [
        "stage",
        "stage-by-level",
        "time-ramp",
        "time-ramp alignment.every=3",
        "haste",
        "uncertainty",
        "stage-per-time",
    ],
)
def test_resumed_equals_uninterrupted_across_every_latch(taught, recipe, tmp_path, name):
    """Cut at each checkpoint in turn: alignment goes off or sits out a step, probes fall due, heads have moments."""
    config = recipe(*name.split(), "train.total_examples=96", "train.checkpoint_every=16", "train.keep_last=9")
    _, whole = run(config, taught, tmp_path / "whole")
    for cut in (1, 4):
        folder = tmp_path / f"cut{cut}"
        run(config, taught, folder)
        cut_to_checkpoints(folder, cut)
        _, resumed = run(config, taught, folder, resume=True)
        assert_same(whole, resumed)
        assert timeless(folder / "log.jsonl") == timeless(tmp_path / "whole" / "log.jsonl")


def test_two_ranks_decide_what_one_decides(taught, recipe, tmp_path):
    config = recipe("time-ramp", "train.total_examples=64", "probe.run=always", "alignment.every=2")
    out, err = start(tmp_path / "one", config, taught).communicate(timeout=120)
    assert "finished 64" in out, err
    launcher = two_ranks(29633)
    out, err = start(tmp_path / "two", config, taught, *launcher).communicate(timeout=180)
    assert out.count("finished") == 2, err
    one, two = (load_file(list_checkpoints(tmp_path / n)[-1] / "model.safetensors") for n in ("one", "two"))
    assert_same(one, two, atol=2e-4, rtol=1e-3)
    first, second = stages(tmp_path / "one"), stages(tmp_path / "two")
    assert len(first) == len(second) > 4
    for a, b in zip(first, second):
        assert a["discrepancy"] == pytest.approx(b["discrepancy"], abs=2e-3)
        same = ("examples_seen", "regime", "alignment_weight", "timestep_mean", "signal")
        assert {k: a[k] for k in same} == {k: b[k] for k in same}


def gains(folder: Path) -> list[dict]:
    return [e for e in stages(folder) if "condition_gain" in e]


def test_two_ranks_measure_the_condition_gain_that_one_measures(taught, recipe, tmp_path):
    config = recipe("stage", "train.total_examples=64", "optim.learning_rate=3e-3")
    out, err = start(tmp_path / "one", config, taught).communicate(timeout=120)
    assert "finished 64" in out, err
    out, err = start(tmp_path / "two", config, taught, *two_ranks(29637)).communicate(timeout=180)
    assert out.count("finished") == 2, err
    first, second = gains(tmp_path / "one"), gains(tmp_path / "two")
    assert len(first) == len(second) > 4 and first[0] != first[-1]
    for key in ("condition_gain", "condition_gain_se", "regime"):
        assert [e[key] for e in first] == pytest.approx([e[key] for e in second], abs=1e-3)


@pytest.mark.slow
def test_captions_that_were_learned_are_known_from_the_start_of_the_next_run(taught, recipe, tmp_path):
    """The gain rises from 0; a run that begins with those weights reads r = 1 and no features of the teacher."""
    changes = ("train.total_examples=3200", "optim.learning_rate=6e-3", "probe.spacing=1.6")
    _, tensors = run(recipe("stage", *changes), taught, tmp_path / "first")
    log = gains(tmp_path / "first")
    assert log[0]["condition_gain"] == pytest.approx(0, abs=0.01) and log[0]["discrepancy"] is None
    assert log[-1]["condition_gain"] > 0.1 and log[-1]["agreement"] == 1
    make = build.build_model

    def pretrained(*args):
        model = make(*args)
        model.load_state_dict({n.removeprefix("ema."): t for n, t in tensors.items() if n.startswith("ema.")})
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_model", pretrained)
        run(recipe("stage", "optim.learning_rate=1e-6"), taught, tmp_path / "next")
    found = stages(tmp_path / "next")
    assert {e["alignment_weight"] for e in found} == {0.0} and {e["regime"] for e in found} == {1.0}
    assert "conditions are followed at the start" in found[0]["reason"]


def test_a_replaced_probe_is_refused(taught, recipe, tmp_path):
    config = recipe("stage")
    run(config, taught, tmp_path)
    state = list_checkpoints(tmp_path)[-1] / "state.json"
    stored = json.loads(state.read_text())
    stored["controller"]["fingerprint"][0] += 1
    state.write_text(json.dumps(stored))
    longer = replace(config, train=replace(config.train, total_examples=160))
    with pytest.raises(UserError, match="probe's targets are not those"):
        run(longer, taught, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [("stage", "regime.signal=loudness", "regime.signal"), ("repa", "alignment.tap=99", "alignment.tap"),
     ("stage", "probe.clips=4", "probe.clips"), ("stage", "alignment.schedule=never", "alignment.schedule"),
     ("stage", "alignment.every=0", "alignment.every"), ("stage", "timesteps.distribution=late", "timesteps.distribution"), ("stage-no-alignment", "regime.signal=gradient-cosine", "alignment.weight")],
)  # fmt: skip
def test_a_policy_that_cannot_work_is_refused(taught, recipe, tmp_path, name, change, named):
    with pytest.raises(UserError, match=named):
        run(recipe(name, change), taught, tmp_path)


def test_a_recipe_that_follows_a_teacher_needs_one_in_the_cache(cache, recipe, tmp_path):
    with pytest.raises(UserError, match="--teacher compact"):
        run(recipe("stage"), cache, tmp_path)


def test_a_small_sets_probe_is_filled_up_from_its_training_clips(taught):
    from segue.training.measurements import probe_rows

    class Few:
        path = "few"

        def __init__(self, valid, train):
            self.split = {"valid": list(range(valid)), "train": list(range(valid, valid + train))}

        def rows(self, split):
            return self.split[split]

    assert probe_rows(Few(3, 9), 64) == list(range(8))
    assert probe_rows(Few(40, 9), 10) == list(range(0, 40, 4))
    with pytest.raises(UserError, match="7 clips, a probe needs 8"):
        probe_rows(Few(3, 4), 64)


def test_alignment_in_output_space_reaches_the_model_through_the_ears(taught, recipe, tmp_path):
    """Without a tap and without a projector."""
    changes = ("alignment.space=output", "train.total_examples=640", "optim.learning_rate=3e-3")
    _, guided = run(recipe("repa", *changes), taught, tmp_path / "guided")
    _, plain = run(recipe("static-uniform", *changes[1:]), taught, tmp_path / "plain")
    assert any(not torch.equal(v, plain[n]) for n, v in guided.items())
    aligned = [e["alignment"] for e in read_log(tmp_path / "guided" / "log.jsonl") if e["event"] == "train"]
    assert aligned[-1] < 0.9 * aligned[0]


def test_a_run_that_goes_on_for_longer_counts_its_stages_by_the_new_length(taught, recipe, tmp_path):
    """Its old length kept, r would be 1 from there on, and something would be measured at every step."""
    run(recipe("time-ramp", "structure.enabled=false"), taught, tmp_path)
    run(recipe("time-ramp", "structure.enabled=false", "train.total_examples=160"), taught, tmp_path, resume=True)
    log = [(e["examples_seen"], e["regime"]) for e in stages(tmp_path)]
    assert dict(log)[160] == 1.0 and all(r == n / 160 for n, r in log if n > 80)
    assert sum(n > 80 for n, _ in log) < 10  # steps
