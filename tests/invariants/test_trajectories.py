"""The numerics of seven recipes stand where they were recorded (trajectories.py says how, and records anew)."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

spec = importlib.util.spec_from_file_location("trajectories", Path(__file__).with_name("trajectories.py"))
trajectories = importlib.util.module_from_spec(spec)
sys.modules["trajectories"] = trajectories
spec.loader.exec_module(trajectories)

RECORDED = json.loads(trajectories.RECORD.read_text())
SAME_MACHINE = RECORDED["machine"] == trajectories.machine()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    threads = torch.get_num_threads()
    try:
        return trajectories.measure(tmp_path_factory.mktemp("trajectories"))
    finally:
        torch.set_num_threads(threads)


def numbers(value):
    """The numbers of nested lists and dictionaries, in order."""
    if isinstance(value, dict):
        return [n for key in value for n in numbers(value[key])]
    if isinstance(value, list):
        return [n for part in value for n in numbers(part)]
    return [] if isinstance(value, str) else [value]


@pytest.mark.parametrize("way", trajectories.WAYS)
@pytest.mark.parametrize("recipe", trajectories.RECIPES)
def test_a_recipe_does_what_it_did(found, recipe, way):
    now, then = found[way][recipe], RECORDED["runs"][way][recipe]
    if SAME_MACHINE:
        assert now == then
    else:
        assert numbers(now) == pytest.approx(numbers(then), rel=trajectories.TOLERANCE, abs=1e-3)


@pytest.mark.parametrize("recipe", trajectories.RECIPES)
def test_a_resumed_run_is_the_uninterrupted_one(found, recipe):
    assert found["resumed"][recipe] == found["one process"][recipe]


def test_the_record_has_all_runs_and_they_differ():
    assert list(RECORDED["runs"]) == list(trajectories.WAYS)
    whole = RECORDED["runs"]["one process"]
    assert len({run["weights"] for run in whole.values()}) == len(trajectories.RECIPES)
    regimes = [regime for _, regime, _, _ in whole["stage-by-level"]["decisions"]]
    assert regimes[0] == 0.0 and 0.1 < regimes[-1] < 1.0  # decisions that decide something
