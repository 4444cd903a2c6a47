import json

import pytest

from segue.recipes import DEFAULT_RECIPE, RECIPES, load_recipe
from segue.training.config import from_json, override, to_json
from segue.types import UserError


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name):
    config = load_recipe(name)
    assert config.recipe == name
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_recipes_differ_from_the_baseline_in_what_they_say_and_nothing_else():
    parent = to_json(load_recipe("static-uniform"))
    changed = {
        name: {k for k, v in to_json(load_recipe(name)).items() if v != parent.get(k)} - {"recipe"} for name in RECIPES
    }
    assert changed.pop("static-uniform") == set()
    assert changed.pop("static-checkpoint") == set()  # its times come with --model
    for name in ("sr-demo", "sr-predicted", "sr-48k"):
        assert {"model", "train"} <= changed.pop(name) <= {"model", "train", "policy", "degradation"}
        assert {"model", "train"} <= changed.pop(f"{name}-static") <= {"model", "train", "degradation"}
    assert changed.pop("min-snr") == changed.pop("uncertainty") == {"train"}
    assert changed.pop("static-muon") == {"optim"} and changed.pop("stage-muon") == {"optim", "policy"}
    assert all(keys == {"policy"} for keys in changed.values())
    assert load_recipe("stage-muon").policy == load_recipe("stage").policy
    assert load_recipe("stage-muon").optim == load_recipe("static-muon").optim
    assert DEFAULT_RECIPE in RECIPES


def test_overrides():
    config = override(
        load_recipe("static-uniform"),
        [
            "optim.learning_rate=3e-4",
            "train.total_examples=1e4",
            "model.gradient_checkpointing=true",
            "model.preset=dit-10m",
        ],
    )
    assert config.optim.learning_rate == 3e-4
    assert config.train.total_examples == 10_000
    assert config.model.gradient_checkpointing is True
    assert config.model.preset == "dit-10m"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("optim.learning_rat=1", "did you mean optim.learning_rate"),
        ("optim.lr=1", "did you mean optim.learning_rate"),
        ("nonsense", "section.name=value"),
        ("train.batch_size=many", "whole number"),
        ("train.batch_size=2.5", "whole number"),
        ("train.batch_size=0", "at least 1"),
        ("train.tensorboard=maybe", "true or false"),
        ("train.precision=fp8", "fp32"),
        ("optim.decay=never", "constant"),
    ],
)
def test_bad_overrides_name_the_setting(change, says):
    with pytest.raises(UserError, match=says):
        override(load_recipe("static-uniform"), [change])


def test_unknown_recipe_offers_the_nearest():
    with pytest.raises(UserError, match="did you mean static-uniform"):
        load_recipe("static-unifrm")


def test_a_config_of_another_version_is_refused():
    data = to_json(load_recipe("static-uniform"))
    data["train"]["new_knob"] = 1
    with pytest.raises(UserError, match="another version"):
        from_json(data)
