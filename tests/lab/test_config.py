"""Study files: what they may hold, and one line for what they may not."""

import json
import re
from pathlib import Path

import pytest

from segue.types import UserError
from segue_lab.study.study_config import (
    EvaluationSettings,
    read_study,
    run_key,
    runs_of,
    snapshot_step,
    study_from_json,
)


def test_a_study_names_its_runs_seed_by_seed(description):
    study = study_from_json(description, "s.json")
    runs = runs_of(study, "data", "set")
    assert [(r.variant, r.seed) for r in runs] == [
        ("static-uniform", 0),
        ("decayed", 0),
        ("static-uniform", 1),
        ("decayed", 1),
    ]
    assert len({r.key for r in runs}) == 4 and len({r.folder for r in runs}) == 4
    config = runs[1].config
    assert config["optim"]["weight_decay"] == 0.1 and config["train"]["total_examples"] == 64
    assert config["train"]["checkpoint_every"] == 32 and not config["train"]["tensorboard"]
    assert study.baseline == "static-uniform"
    assert all(run.config["train"]["precision"] == "fp32" for run in runs)  # no machine chooses: figures are compared


def test_the_key_knows_all_that_decides_the_figures(description):
    def keys(data="data", eval_set="set", **changes):
        return [c.key for c in runs_of(study_from_json(description | changes, "s.json"), data, eval_set)]

    same = keys()
    assert keys() == same and keys(name="other") == same and keys(baseline="decayed") == same
    assert keys(seeds=[0, 1, 2])[:4] == same  # more seeds leave what is done alone
    for changes in (
        {"examples": 128},
        {"steps": 3},
        {"guidance": 1.0},
        {"evaluate_at": [1.0]},
        {"set": []},
        {"clips": 12},
    ):
        assert not set(keys(**changes)) & set(same), changes
    assert not set(keys(data="x")) & set(same) and not set(keys(eval_set="x")) & set(same)


def test_a_variant_may_have_a_length_of_its_own(description):
    short = {"recipe": "static-uniform", "name": "half", "examples": 32}
    study = study_from_json(description | {"variants": ["static-uniform", short]}, "s.json")
    trains = [c.config["train"] for c in runs_of(study, "data", "set")[:2]]
    assert [t["total_examples"] for t in trains] == [64, 32]
    assert [t["checkpoint_every"] for t in trains] == [32, 16]  # the same shares of each


def test_a_variant_may_run_with_fewer_seeds(description):
    wide = {"recipe": "static-shifted", "seeds": [1]}
    study = study_from_json(description | {"variants": ["static-uniform", wide], "seeds": [0, 1]}, "s.json")
    runs = [(c.variant, c.seed) for c in runs_of(study, "data", "set")]
    assert runs == [("static-uniform", 0), ("static-uniform", 1), ("static-shifted", 1)]


def test_the_names_of_earlier_versions_are_read_and_give_the_same_keys(description):
    names = {"variants": "arms", "clips": "judge_clips"}
    first = {names.get(key, key): value for key, value in description.items()}
    assert study_from_json(first, "s.json") == study_from_json(description, "s.json")
    with pytest.raises(UserError, match="'arms' is an earlier name of 'variants'"):
        study_from_json(description | {"arms": []}, "s.json")


def test_the_key_of_a_finished_run_stays():
    """It is hashed from the names that the settings had at first."""
    assert run_key({"a": 1}, "data", "set", EvaluationSettings()) == "98642fdc01b6"


@pytest.mark.parametrize(
    ("shares", "every"),
    [([0.5, 1.0], 8000), ([0.25, 0.375, 1.0], 2000), ([1.0], 16000), ([0.3, 1.0], 1600), ([0.2, 0.5], 1600)],
)
def test_snapshots_fall_on_every_share(description, shares, every):
    study = study_from_json(description | {"examples": 16000, "evaluate_at": shares}, "s.json")
    assert int(16000 * snapshot_step(study)) == every and study.evaluation.evaluate_at[-1] == 1.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"variantz": []}, "unknown key 'variantz'; did you mean 'variants'?"),
        ({"variants": ["static-unifrm"]}, "did you mean static-uniform"),
        ({"variants": []}, "'variants' is a list"),
        ({"variants": ["static-uniform", "static-uniform"]}, "two variants are called 'static-uniform'"),
        ({"variants": [{"recipe": "static-uniform", "nme": "x"}]}, "did you mean 'name'"),
        ({"variants": [{"name": "x"}]}, "a variant without a recipe"),
        ({"variants": [{"recipe": "static-uniform", "name": "a/b"}]}, "cannot name a variant"),
        ({"variants": [{"recipe": "static-uniform", "set": ["optim.lr=1"]}]}, "did you mean"),
        ({"variants": [{"recipe": "static-uniform", "seeds": [7]}]}, "seed 7 is none of the study's"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [0, 0]}, "each once"),
        ({"seeds": ["0"]}, "list of whole numbers"),
        ({"examples": "many"}, "examples is 'many'"),
        ({"baseline": "static-refine"}, "baseline 'static-refine'"),
        ({"data": {}}, "data is either"),
        ({"data": {"demo_clips": 6000, "cache": "x"}}, "data is either"),
        ({"data": {"demo_clips": 6000, "manifest": "x"}}, "data.manifest does not go with demo_clips"),
        ({"data": {"demo_clips": 20}}, "at least 200"),
        ({"evaluate_at": [0.5, 1.2]}, "shares of the run"),
        ({"evaluate_at": [0.501, 1.0]}, "rounder shares"),
        ({"evaluate_at": [0.05, 1.0]}, "less than a batch"),
        ({"clips": 3}, "at least 8"),
        ({"rescale": 2}, "from 0 to 1"),
        ({"steps": 0}, "at least 1"),
        ({"guidance": "x"}, "give a number"),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_is_named(description, changes, says):
    with pytest.raises(UserError, match="(?s)" + says.replace("?", r"\?").replace("(", r"\(")):
        study_from_json(description | changes, "s.json")


def test_files_that_are_no_studies(tmp_path, description):
    with pytest.raises(UserError, match="no such study file"):
        read_study(tmp_path / "none.json")
    for text in ("{", "[]", json.dumps({k: v for k, v in description.items() if k != "seeds"})):
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(UserError, match=r"s\.json"):
            read_study(tmp_path / "s.json")


def test_the_page_of_studies_tells_the_defaults():
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()
    row = re.search(r"`clips`, `steps`, `guidance`, `rescale` .*\| ([\d, .]+) \|", page)
    settings = EvaluationSettings()
    assert [float(x) for x in row[1].split(",")] == [
        settings.clips,
        settings.steps,
        settings.guidance,
        settings.rescale,
    ]
