"""What other constants would have read off the same probes: python benchmarks/regime_replay.py RUN [RUN ...]

RUN is a run's folder (or a study's). The discrepancies of its log go through the estimator again, under one
changed constant at a time; printed is r at a quarter, half, three quarters and the end of the run, as a Markdown table.
What r would have changed of the run itself is not in it: the curve is the one that was trained.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from segue.stage import regime
from segue.stage.policy import Policy
from segue.stage.regime import RegimeConfig
from segue.stage.regime_state import RegimeState
from segue.stage.variants import slope_regime
from segue.training.config import from_json
from segue.training.log import read_log

CHANGES = (
    {}, {"kappa": 2.0}, {"kappa": 4.0}, {"kappa": 16.0}, {"WINDOW": 1.5}, {"WINDOW": 3.0}, {"BURN_IN": 0.1},
    {"CONFIDENCE": 0.0}, {"SMOOTHING": 0.5}, {"reference": "start"}, {"reference": "start", "kappa": 16.0},
    {"signal": "level"}, {"signal": "slope-over-peak"}, {"every": 2}, {"times": "low"}, {"times": "high"},
)  # fmt: skip
MODULES = {"WINDOW": regime, "BURN_IN": regime, "SMOOTHING": regime, "CONFIDENCE": slope_regime}  # of constants
SHARES = (0.25, 0.5, 0.75, 1.0)


def probes_of(run: Path) -> list[tuple[int, list[float]]]:
    """(n, discrepancy of each probe time) of a run's log, in order."""
    found = {e["examples_seen"]: list(e["discrepancy_by_t"].values()) for e in read_log(run / "log.jsonl")
             if e["event"] == "stage" and e.get("discrepancy_by_t")}  # fmt: skip
    return sorted(found.items())


def replay(probes: list[tuple[int, list[float]]], total: int, warmup_end: int, config: RegimeConfig) -> list[float]:
    """r at SHARES of a run of `total` examples."""
    estimate = Policy(regime=config).estimate
    state = RegimeState()
    read = []
    for n, by_time in probes:
        value = sum(by_time) / len(by_time)
        state, reading = regime.update_regime(
            config, state, examples_seen=n, total_examples=total, value=value, by_time=by_time, warmup_end=warmup_end,
            estimate=estimate,
        )  # fmt: skip
        read.append((n, reading.regime))
    return [min(read, key=lambda point: abs(point[0] - share * total))[1] for share in SHARES]


def row(change: dict, run: Path) -> list[float]:
    """r of one run under one change; `every` and `times` thin the probes themselves."""
    change = dict(change)
    config = from_json(json.loads((run / "config.json").read_text(encoding="utf-8"))["run"])
    probes = probes_of(run)
    every = change.pop("every", 1)
    times = change.pop("times", "")
    half = len(probes[0][1]) // 2
    part = {"": slice(None), "low": slice(half), "high": slice(half, None)}[times]
    kept = [(n, by_time[part]) for n, by_time in probes[:1] + probes[1::every]]
    constants = {name: change.pop(name) for name in MODULES if name in change}
    before = {name: getattr(MODULES[name], name) for name in constants}
    changed = RegimeConfig(**{"kappa": config.policy.regime.kappa, **change})
    total = config.train.total_examples
    try:
        for name, value in constants.items():
            setattr(MODULES[name], name, value)
        return replay(kept, total, round(config.optim.warmup_fraction * total), changed)
    finally:
        for name, value in before.items():
            setattr(MODULES[name], name, value)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    runs = parser.parse_args().runs
    print("| changed | " + " | ".join(run.name.rsplit("-", 1)[0] for run in runs) + " |\n|" + "---|" * (len(runs) + 1))
    for change in CHANGES:
        words = ", ".join(f"{name} {value}" for name, value in change.items()) or "nothing"
        read = (" ".join(f"{r:.2f}" for r in row(change, run)) for run in runs)
        print(f"| {words} | " + " | ".join(read) + " |")
