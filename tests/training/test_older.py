"""Runs of commit ed41533, before names and settings changed, are read and go on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from segue.models.dit import DiTConfig
from segue.models.files import current_tensors, load_model
from segue.models.presets import PRESETS
from segue.recipes import load_recipe
from segue.stage.policy import stage_policy
from segue.training.checkpoint import list_checkpoints
from segue.training.config import from_json, override, to_json
from segue.training.log import read_log
from segue.training.loop import train
from segue.training.older import RECIPES, first_json
from segue.types import UserError

OLD = Path(__file__).parent / "old_run"  # ten steps of time-ramp on the fixture `taught`, its first checkpoint kept
STORED = json.loads((OLD / "config.json").read_text())["run"]


@pytest.fixture
def nano(monkeypatch):
    """The size of the stored run."""
    monkeypatch.setitem(PRESETS, "dit-nano", DiTConfig(width=8, depth=2, heads=2, adaln_rank=2))


def test_an_old_config_is_read_and_hashes_as_it_did():
    config = from_json(STORED)
    assert config.policy.alignment.schedule == "decay" and config.policy.timesteps.distribution == "stage"
    wanted = replace(load_recipe("time-ramp"), model=config.model, optim=config.optim, train=config.train)
    settings = ["probe.clips=8", "probe.space=latent", "probe.spacing=1.3", "probe.first=0.1"]
    # The recipe of that day compared all frames, and had the block term.
    blocks = ["structure.enabled=true", "structure.strength=0.015", "structure.max_drift_p=0.05"]
    assert config == override(wanted, [*settings, *blocks, "alignment.frames_every=1", "probe.closest=0.01"])
    assert json.loads(json.dumps(first_json(to_json(config)))) == STORED


@pytest.mark.parametrize(
    "recipe", ["static-shifted", "curriculum", "haste", "stage-per-time", "sr-48k", *RECIPES.values()]
)
def test_configs_survive_the_way_back_and_forth(recipe):
    config = load_recipe(recipe)
    first = first_json(json.loads(json.dumps(to_json(config))))
    assert "guidance" in first["policy"] and "alignment" not in json.dumps(first["policy"])
    assert from_json(first) == config


@pytest.mark.parametrize("old", RECIPES)
def test_a_recipe_is_understood_by_its_old_name_and_hashes_under_it(old):
    assert load_recipe(old).recipe == RECIPES[old]
    assert first_json(to_json(load_recipe(old)))["recipe"] == old


@pytest.mark.parametrize(
    ("section", "name", "value", "says"),
    [
        ("regime", "window", 3.0, r"regime\.window is 3\.0, but this setting was removed and is always 2\.0"),
        ("guidance", "projector", "conv", r"alignment\.projector is 'conv', but this setting was removed"),
        ("timesteps", "clusters", 4, r"timesteps\.clusters is 4, but this setting was removed"),
    ],
)
def test_a_setting_that_is_gone_is_refused_where_it_was_set(section, name, value, says):
    data = json.loads(json.dumps(STORED))
    data["policy"][section][name] = value
    with pytest.raises(UserError, match=says):
        from_json(data)


def test_old_names_are_understood_on_the_command_line():
    old = ["guidance.weight=0.7", "guidance.law=constant", "timesteps.law=static"]
    new = ["alignment.weight=0.7", "alignment.schedule=constant", "timesteps.distribution=static"]
    assert override(load_recipe("stage"), old) == override(load_recipe("stage"), new)
    with pytest.raises(UserError, match=r"--set regime\.window: this setting was removed; it is always 2\.0"):
        override(load_recipe("stage"), ["regime.window=3"])


def test_an_old_checkpoint_goes_on_with_new_draws_and_says_so(taught, nano, tmp_path, capsys):
    shutil.copytree(OLD / "checkpoints", tmp_path / "checkpoints")
    shutil.copy(OLD / "log.jsonl", tmp_path)
    result = train(from_json(STORED), taught, tmp_path, resume=True, device="cpu")
    assert result.finished and result.examples_seen == 80
    assert "new draws from here on" in capsys.readouterr().err
    # Other noise, but the same examples in the same order: what was learned is alike.
    tensors = load_file(list_checkpoints(tmp_path)[-1] / "model.safetensors")
    then = current_tensors(load_file(OLD / "final.safetensors"))
    assert tensors.keys() == then.keys()
    learned = {n: [t[f"{n}.patch_in.weight"] for t in (tensors, then)] for n in ("model", "ema")}
    assert all(not torch.equal(*pair) for pair in learned.values())
    assert_close(*learned["ema"], atol=0.02, rtol=0.1)
    ours, theirs = read_log(tmp_path / "log.jsonl"), read_log(OLD / "log.jsonl")
    assert [(e["event"], e["examples_seen"]) for e in ours] == [(e["event"], e["examples_seen"]) for e in theirs]
    losses = [[e["loss"] for e in log if e["event"] == "train"] for log in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=0.5)


def test_an_old_model_file_is_read(nano):
    saved = load_model(OLD / "final.safetensors")
    assert saved.card.model["norm"] == "layer" and saved.card.recipe == "time-ramp"


def test_strangers_get_the_recipe():
    assert stage_policy() == load_recipe("stage").policy


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("timesteps.mu_0=0.9", "timesteps.mu_start=0.9"),
        ("timesteps.lean_back=0.25", "timesteps.mu_end_ratio=0.25"),
        ("structure.readers=a", "structure.in_proj=a"),
        ("structure.writers=b", "structure.out_proj=b"),
    ],
)
def test_settings_renamed_since_are_set_and_hashed_by_their_former_names(old, new):
    config = override(load_recipe("stage"), [old])
    assert config == override(load_recipe("stage"), [new])
    section, name = old.partition("=")[0].split(".")
    first = first_json(json.loads(json.dumps(to_json(config))))
    assert name in first["policy"][section] and from_json(first) == config
