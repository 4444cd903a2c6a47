"""What other constants would have read off the same probes: python benchmarks/regime_replay.py RUN [RUN ...]

RUN is a run's folder (or a study's). The discrepancies of its log go through the estimator again, under one
changed constant at a time; printed is r at a quarter, half, three quarters and the end of the run, as a Markdown table.
What r would have changed of the run itself is not in it: the curve is the one that was trained.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from segue.stage.regime import RegimeConfig, start_regime, update_regime
from segue.training.config import from_json
from segue.training.log import read_log

CHANGES = (
    {}, {"kappa": 2.0}, {"kappa": 4.0}, {"kappa": 16.0}, {"window": 1.5}, {"window": 3.0}, {"burn_in": 0.1},
    {"confidence": 0.0}, {"smoothing": 0.5}, {"reference": "start"}, {"reference": "start", "kappa": 16.0},
    {"signal": "level"}, {"signal": "slope-over-peak"}, {"every": 2}, {"times": "low"}, {"times": "high"},
)  # fmt: skip
SHARES = (0.25, 0.5, 0.75, 1.0)


def probes_of(run: Path) -> list[tuple[int, list[float]]]:
    """(n, discrepancy of each probe time) of a run's log, in order."""
    found = {e["examples_seen"]: list(e["discrepancy_by_t"].values()) for e in read_log(run / "log.jsonl")
             if e["event"] == "stage" and e.get("discrepancy_by_t")}  # fmt: skip
    return sorted(found.items())


def replay(probes: list[tuple[int, list[float]]], total: int, warmup_end: int, config: RegimeConfig) -> list[float]:
    """r at SHARES of a run of `total` examples."""
    state, read = start_regime(), []
    for n, by_time in probes:
        value = sum(by_time) / len(by_time)
        state, reading = update_regime(
            config, state, examples_seen=n, total_examples=total, value=value, by_time=by_time, warmup_end=warmup_end
        )
        read.append((n, reading.regime))
    return [min(read, key=lambda point: abs(point[0] - share * total))[1] for share in SHARES]


def row(change: dict, run: Path) -> list[float]:
    """r of one run under one change; `every` and `times` thin the probes themselves."""
    change = dict(change)
    config = from_json(json.loads((run / "config.json").read_text(encoding="utf-8"))["run"])
    probes, every, times = probes_of(run), change.pop("every", 1), change.pop("times", "")
    half = len(probes[0][1]) // 2
    part = {"": slice(None), "low": slice(half), "high": slice(half, None)}[times]
    kept = [(n, by_time[part]) for n, by_time in probes[:1] + probes[1::every]]
    regime = RegimeConfig(**{"kappa": config.policy.regime.kappa, **change})
    total = config.train.total_examples
    return replay(kept, total, round(config.optim.warmup_fraction * total), regime)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    runs = parser.parse_args().runs
    print("| changed | " + " | ".join(run.name.rsplit("-", 1)[0] for run in runs) + " |\n|" + "---|" * (len(runs) + 1))
    for change in CHANGES:
        words = ", ".join(f"{name} {value}" for name, value in change.items()) or "nothing"
        read = (" ".join(f"{r:.2f}" for r in row(change, run)) for run in runs)
        print(f"| {words} | " + " | ".join(read) + " |")
