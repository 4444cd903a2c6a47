"""Training with known parts: what it must leave alone, and what it promises as every run does."""

import json

import pytest
import torch
from running import assert_same, run, timeless

from segue.pipeline import Pipeline
from segue.process.noise import BatchDraws
from segue.training.build import build_model, make_task
from segue.training.checkpoint import list_checkpoints
from segue.training.config import from_json, override, to_json
from segue.training.log import read_log
from segue.training.step import draw_example, run_model
from segue.types import UserError

SHARE = "train.known_share=0.7"


def test_a_run_learns_with_known_parts_and_measures_as_before(taught, recipe, tmp_path):
    config = recipe("stage", SHARE, "train.keep_last=9", "train.checkpoint_every=24", "train.total_examples=48")
    _, whole = run(config, taught, tmp_path / "whole")
    assert whole["ema.known_in"].abs().max() > 0
    # Validation and probe are given nothing: before the first step they are those of a run without.
    run(override(config, ["train.known_share=0", "train.total_examples=8"]), taught, tmp_path / "plain")
    first = [
        [next(e for e in read_log(tmp_path / name / "log.jsonl") if e["event"] == event)[key] for name in ("whole", "plain")]
        for event, key in (("validation", "loss_by_t"), ("stage", "discrepancy"))
    ]  # fmt: skip
    assert all(with_share == without for with_share, without in first)
    # Cut and resumed, bit for bit; test_loop.py has two ranks with a share.
    log = timeless(tmp_path / "whole" / "log.jsonl")
    for later in list_checkpoints(tmp_path / "whole")[1:]:
        (later / "state.json").unlink()
    _, resumed = run(config, taught, tmp_path / "whole", resume=True)
    assert_same(whole, resumed)
    assert timeless(tmp_path / "whole" / "log.jsonl") == log


def test_what_is_known_counts_for_nothing_in_the_loss(taught, recipe):
    config = recipe("static-uniform", "train.known_share=1")
    task, model = make_task(config, taught), build_model(config, taught, 0)
    rows = taught.rows("train")[:8]
    draws = BatchDraws(0, 16, 8)
    x_0, condition, mask = task.prepare(taught.batch(rows), draws)
    assert condition.known_mask.any() and task.prepare(taught.batch(rows))[1].audio is None
    example = draw_example(x_0, condition, mask, torch.full((8,), 0.5), draws)
    # A fresh model predicts 0: the loss is the mean square of its target over the frames that are not known.
    target = x_0 if model.predicts == "clean" else example.eps - x_0
    missing = (mask & ~condition.known_mask[:, 0])[:, None].expand_as(x_0)
    wanted = torch.stack([row[some].square().mean() for row, some in zip(target, missing)])
    torch.testing.assert_close(run_model(model, example, model.predicts).loss, wanted)


def test_a_model_without_known_parts_can_go_on_with_them(taught, recipe, tmp_path):
    _, first = run(recipe("static-uniform", "train.total_examples=16"), taught, tmp_path / "first")
    config = recipe("static-uniform", SHARE, f"train.start_from={tmp_path / 'first'}", "train.total_examples=16")
    model = build_model(config, taught, 0)
    assert model.known_in.abs().max() == 0
    assert torch.equal(model.patch_in.weight, first["ema.patch_in.weight"])
    _, second = run(config, taught, tmp_path / "second")
    assert second["model.known_in"].abs().max() > 0


def test_the_setting_is_written_where_it_is_set_and_refused_where_it_cannot_be(taught, recipe, hisses):
    assert "known_share" not in to_json(recipe("stage"))["train"]
    config = recipe("stage", SHARE)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
    for share in ("-0.1", "1.5"):
        with pytest.raises(UserError, match="give a share from 0 to 1"):
            recipe("stage", f"train.known_share={share}")
    with pytest.raises(UserError, match="not for super-resolution"):
        make_task(recipe("sr-demo", SHARE), hisses)
    with pytest.raises(UserError, match="hint: train without --lora"):
        build_model(recipe("stage", SHARE, "train.start_from=x", "lora.rank=2"), taught, 0)


def test_a_pipeline_says_how_it_keeps_what_is_known(taught, recipe, tmp_path):
    from conftest import Letters
    from segue.codecs import load_codec
    from segue.models.files import load_model, model_file

    for share, how in (("0", "replacement"), ("0.5", "training")):
        run(recipe("static-uniform", f"train.known_share={share}", "train.total_examples=8"), taught, tmp_path / how)
        saved = load_model(model_file(tmp_path / how))
        pipeline = Pipeline(saved, load_codec("spectral", 2000), Letters())
        assert pipeline.keeps_by == how
        wave = 0.1 * torch.randn(1, 1024, generator=torch.Generator().manual_seed(0))
        out = pipeline.replace(wave, "tone 1", start_sec=0.2, end_sec=0.3)
        assert torch.equal(out[0, :, :320], wave[:, :320]) and torch.isfinite(out).all()
