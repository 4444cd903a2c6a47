"""Curves of the condition gain by clip, and what times, clips, draws and kappa make of them.

    python benchmarks/condition_gain.py record CACHE OUT.npz --examples 12000 --seed 100 [--recipe static-uniform]
    python benchmarks/condition_gain.py read OUT.npz [OUT.npz ...]

`record` trains dit-1m and keeps, at every probe, the distances of each held-out clip under its own condition and under
others': asked again, and crossed (stage/condition_gain.py). `read` prints two Markdown tables: the scatter of C about a
smooth curve by what is measured and what that costs, and r by kappa at shares of the run, as the controller would have
read it. What r would have changed of the run is not in it: the curve is the one that was trained.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from segue.data.open_cache import open_cache
from segue.provenance import commit, machine
from segue.recipes import load_recipe
from segue.stage.condition_gain import ConditionGain, estimate
from segue.stage.regime import RegimeConfig, update_regime
from segue.stage.regime_state import RegimeState
from segue.training import loop
from segue.training.config import override
from segue.training.features import latent_extract
from segue.training.measurements import Measurements, probe_set

TIMES = (0.85, 0.95, 0.999)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)
WARM_UP = 0.05
OWN, ASKED, CROSSED = range(3)
SETTINGS = (
    "model.preset=dit-1m", "probe.run=always", "probe.space=latent", "probe.clips=8", "probe.spacing=1.08",
    "train.tensorboard=false", "train.keep_last=1",
)  # fmt: skip
# name -> (times, clips, ways of asking other conditions); passes a clip follow from it
SETS = {
    f"t = {', '.join(f'{TIMES[k]:g}' for k in times)}{', crossed' if way == CROSSED else ''}, {clips} clips":
    (times, clips, way)
    for times, way in (((0, 1, 2), ASKED), ((0,), ASKED), ((1,), ASKED), ((2,), ASKED), ((2,), CROSSED))
    for clips in (16, 32, 64)
}  # fmt: skip


def record(asked: argparse.Namespace) -> None:
    """Train, and write n [P] and d [P, times, 3, clips]: under the own condition, another's, and others' crossed."""
    kept: list[tuple[int, np.ndarray]] = []

    class Kept(Measurements):
        def __init__(self, config, task, cache, model, ema, accelerator, autocast, trust_remote_code=False) -> None:
            super().__init__(config, task, cache, model, ema, accelerator, autocast, trust_remote_code)
            many = replace(config.policy, probe=replace(config.policy.probe, clips=asked.clips))
            extract = self.extract or latent_extract(cache, task.space, accelerator.device)
            given = probe_set(replace(config, policy=many), task, cache, ema, extract, accelerator, autocast)
            self.ways = [ConditionGain(**given, times=TIMES, crossed=crossed) for crossed in (False, True)]

        def __call__(self) -> dict:
            again, crossed = (way.distances().mean(1) for way in self.ways)
            # Crossed pairs have an own distance of their own, on the frames that both clips have; differences are kept.
            others = crossed[:, 1:] - crossed[:, :1] + again[:, :1]
            assert self.stage is not None
            kept.append((self.stage.examples_seen, torch.cat([again, others], dim=1).numpy().astype(np.float32)))
            return super().__call__()

    changes = [*SETTINGS, f"train.total_examples={asked.examples}", f"train.seed={asked.seed}"]
    loop.Measurements = Kept  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        config = override(load_recipe(asked.recipe), changes)
        loop.train(config, open_cache(asked.cache), Path(folder), device="cpu", quiet=True)
    n, d = zip(*kept)
    about = f"{asked.recipe}, {asked.cache.name}, seed {asked.seed}, commit {commit()}, {machine()}"
    np.savez(asked.out, n=n, d=np.stack(d), total=asked.examples, about=about)


def curve(d: np.ndarray, times: tuple[int, ...], clips: int, way: int) -> np.ndarray:
    """C [P] by some of the times and evenly spaced clips."""
    some = [k * d.shape[-1] // clips for k in range(clips)] if clips < d.shape[-1] else slice(None)
    return (d[:, times, way] - d[:, times, OWN])[:, :, some].mean((1, 2), dtype=np.float64)


def scatter(n: np.ndarray, gain: np.ndarray) -> float:
    """Residual standard deviation about a line in ln n, over C: the mean of windows of one doubling from n / 8 on."""
    found = []
    for end in n[n >= n[-1] / 4]:
        window = (n >= end / 2) & (n <= end)
        if window.sum() >= 8:
            line = np.polynomial.Polynomial.fit(np.log(n[window]), gain[window], 1)
            residual = gain[window] - line(np.log(n[window]))
            found.append(float(np.sqrt((residual**2).sum() / (window.sum() - 2)) / gain[window].mean()))
    return fmean(found)


def regimes(n: np.ndarray, gain: np.ndarray, total: int, kappa: float) -> list[float]:
    """r at SHARES of the run, as `update_regime` reads it."""
    config = RegimeConfig(signal="condition-gain", kappa=kappa)
    state = RegimeState()
    found = []
    for seen, value in zip(n.tolist(), gain.tolist()):
        state, reading = update_regime(
            config, state, examples_seen=seen, total_examples=total, value=value,
            warmup_end=round(WARM_UP * total), estimate=estimate,
        )  # fmt: skip
        found.append((seen, reading.regime))
    return [min(found, key=lambda point: abs(point[0] - share * total))[1] for share in SHARES]


def read(asked: argparse.Namespace) -> None:
    """The two tables of each file."""
    for path in asked.runs:
        with np.load(path) as file:
            n, d, total, about = (file[name] for name in ("n", "d", "total", "about"))
        print(f"\n{about}; {total:,} examples\n\n| measured | passes | C at the end | scatter % |\n|---|---|---|---|")
        for name, (times, clips, way) in SETS.items():
            gain = curve(d, times, clips, way)
            passes = len(times) * min(clips, d.shape[-1]) * (1 if way == CROSSED else 2)
            print(f"| {name} | {passes} | {gain[-1]:.3f} | {100 * scatter(n, gain):.1f} |")
        print("\n| measured | kappa | " + " | ".join(f"{s:.0%}" for s in SHARES) + " |\n|" + "---|" * (2 + len(SHARES)))
        for name in ("t = 0.85, 32 clips", "t = 0.85, 0.95, 0.999, 32 clips", "t = 0.999, crossed, 32 clips"):
            for kappa in (3.0, 4.0, 6.0, 8.0):
                found = regimes(n, curve(d, *SETS[name]), int(total), kappa)
                print(f"| {name} | {kappa:g} | " + " | ".join(f"{r:.2f}" for r in found) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    making = commands.add_parser("record")
    making.add_argument("cache", type=Path)
    making.add_argument("out", type=Path)
    making.add_argument("--examples", type=int, required=True)
    making.add_argument("--seed", type=int, default=100)
    making.add_argument("--recipe", default="static-uniform")
    making.add_argument("--clips", type=int, default=64)
    making.set_defaults(run=record)
    reading = commands.add_parser("read")
    reading.add_argument("runs", type=Path, nargs="+")
    reading.set_defaults(run=read)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.run(given)
