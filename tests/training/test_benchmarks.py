"""Benchmarks are run by hand; that they run at all is tested here. Nothing is timed."""

import importlib.util
import math
from pathlib import Path

from segue.stage.discrepancy import ProbeConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_stage_cost_counts_every_part(taught):
    stage_cost = loaded("stage_cost")
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
    assert stage_cost.run_sec("stage", taught.path, 32) > 0


def test_probe_spacing_reads_r_at_shares_of_a_run():
    benchmark = loaded("probe_spacing")
    quiet = benchmark.regimes(ProbeConfig(), benchmark.CURVES["knee at 12,000"], noise=0.0, seed=0)
    assert len(quiet) == len(benchmark.SHARES) and quiet == sorted(quiet) and quiet[0] < 0.3 < 0.8 < quiet[-1]
