"""Benchmarks are run by hand; that they run at all is tested here. Nothing is timed."""

import importlib.util
import math
from pathlib import Path

STAGE_COST = Path(__file__).parents[2] / "benchmarks" / "stage_cost.py"


def test_stage_cost_counts_every_part(taught):
    spec = importlib.util.spec_from_file_location("stage_cost", STAGE_COST)
    stage_cost = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stage_cost)
    found = stage_cost.parts(taught, 2000, rounds=1, steps=1, guided="stage-blocks")
    shares = found["share_of_static_run"]
    assert [name.split(" ", 1)[-1] for name in shares] == [
        "while on",
        "probes",
        "fit from latents to features",
        "block checks",
        "term, once on",
    ]
    assert all(math.isfinite(share) for share in shares.values()) and found["most"] == sum(shares.values())
