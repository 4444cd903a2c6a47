"""How many probes the regime needs: python benchmarks/probe_spacing.py [--runs 200]

Curves of the condition gain whose knee is known are read through noise at the probes of several schedules, as a run
would read them. Printed: the mean of r, and its standard deviation over the runs, at shares of the run.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean, pstdev

from segue.stage.condition_gain import GainReading
from segue.stage.controller import StageController
from segue.stage.decision import Observation
from segue.stage.discrepancy import ProbeConfig, probes_in
from segue.stage.policy import stage_policy

TOTAL = 100_000  # examples of a run
SHARES = (0.2, 0.3, 0.5, 0.7)
SCHEDULES = ((1.06, 0.01), (1.08, 0.01), (1.1, 0.0125), (1.1, 0.02), (1.17, 0.0125))  # ratio, least distance
CURVES: dict[str, Callable[[int], float]] = {
    "knee at 12,000": lambda n: 0.4 * (1 - math.exp(-n / 4_000)),
    "knee at 30,000": lambda n: 0.4 * (1 - math.exp(-n / 10_000)),
    "no knee": lambda n: 0.05 * math.log(1 + n / 500),
}


def regimes(probe: ProbeConfig, curve: Callable[[int], float], noise: float, seed: int) -> list[float]:
    """r at SHARES of one run."""
    controller = StageController(replace(stage_policy(), probe=probe))
    draw, state = random.Random(seed), controller.init(TOTAL)
    found = {share: 0.0 for share in SHARES}
    while (seen := state.next_probe) <= TOTAL:
        # No standard error: the first reading alone decides nothing.
        gain = GainReading(curve(seen) + draw.gauss(0, noise))
        state, decision = controller.update(state, Observation(seen, condition_gain=gain))
        found |= {share: decision.regime.regime for share in SHARES if seen <= share * TOTAL}
    return list(found.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    print("| curve | noise | ratio | least distance | probes |", *(f"r at {share:.0%} |" for share in SHARES))
    print("|---" * (5 + len(SHARES)) + "|")
    for name, curve in CURVES.items():
        for noise in (0.003, 0.01):
            for spacing, closest in SCHEDULES:
                probe = ProbeConfig(spacing=spacing, closest=closest)
                columns = zip(*(regimes(probe, curve, noise, seed) for seed in range(runs)))
                cells = [f"{fmean(r):.2f} ± {pstdev(r):.2f}" for r in columns]
                print(
                    f"| {name} | {noise} | {spacing} | {closest} | {probes_in(probe, TOTAL)} |", " | ".join(cells), "|"
                )
