"""What the stage machinery costs: python benchmarks/stage_cost.py CACHE [--recipe stage] [--set NAME=VALUE ...]

Steps of the static recipe and of the guided one (`--recipe`) are timed in turns, in CPU time, so that what else runs on
the machine disturbs both alike and little; probe and block check are timed by themselves and counted as a run of
`--examples` would take them. `--whole N` also trains both arms of N examples each, side by side in two processes as the
demo does, `--pairs` times, and compares their wall-clock. Let nothing else run then, and give each one thread
(OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from segue.cli.demo import SETTINGS
from segue.data.cache import LatentCache
from segue.data.loader import LatentLoader
from segue.data.open_cache import open_cache
from segue.process.noise import BatchDraws
from segue.provenance import commit, machine
from segue.recipes import load_recipe
from segue.stage.controller import StageController
from segue.stage.discrepancy import probes_in
from segue.stage.stage import Stage
from segue.stage.variants.block_structure import measure_structure, structure_step
from segue.training.build import build_model, make_accelerator, make_task, optim_config, stage_options
from segue.training.config import RunConfig, override
from segue.training.features import alignment_targets, make_extract
from segue.training.loop import train
from segue.training.losses import StepLosses
from segue.training.measurements import Measurements
from segue.training.optim import make_optimizer
from segue.training.probe_size import settled_probe
from segue.training.step import draw_example


class Stepper:
    """One arm: a model that takes steps of its recipe, as the loop does."""

    def __init__(self, config: RunConfig, cache: LatentCache, accelerator) -> None:
        self.config = config
        self.cache = cache
        self.model = build_model(config, cache, 0)
        self.optim = optim_config(config, self.model)
        self.optimizer = make_optimizer(self.model, self.optim)
        self.stage = Stage(
            self.model.blocks,
            config.policy,
            total_examples=config.train.total_examples,
            measure=lambda: 1.0,
            targets=alignment_targets(config.policy, cache, accelerator.device),
            log=lambda line: None,
            **stage_options(config, accelerator, self.model),
        )
        self.losses = StepLosses(config, cache, self.model.config, self.stage, self.optim, accelerator, self.model)
        self.task = make_task(config, cache)
        self.loader = LatentLoader(cache, "train", config.train.batch_size, 0)

    def steps(self, count: int) -> float:
        """CPU seconds a step, over `count` of them."""
        started = time.process_time()
        for _ in range(count):
            aligned = self.stage.alignment_weight > 0
            batch = self.loader.next_batch(with_teacher=self.losses.reads_teacher)
            draws = BatchDraws(0, self.stage.examples_seen, len(batch.indices))
            t = self.stage.timesteps(len(batch.indices))
            example = draw_example(*self.task.prepare(batch, draws), t, draws, teacher=batch.teacher)
            loss, _ = self.losses(self.model, example)
            loss.mean().backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.losses.heads.step(1e-3, aligned, torch.zeros(()))
            self.stage.after_step(self.config.train.batch_size)
        return (time.process_time() - started) / count


def median_sec(call, rounds: int) -> float:
    """Median CPU seconds of a call, after one that warms up."""
    call()
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        call()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def parts(
    cache: LatentCache, examples: int, rounds: int, steps: int, guided: str = "stage", settings: Sequence[str] = ()
) -> dict:
    """CPU seconds of each part, and their share of a run of `examples`."""
    changes = [f"train.total_examples={examples}", *SETTINGS, *settings]
    static, stage = (settled_probe(override(load_recipe(name), changes)) for name in ("static-uniform", guided))
    accelerator = make_accelerator(static, "cpu")
    arms = {"static": Stepper(static, cache, accelerator), "guided": Stepper(stage, cache, accelerator)}
    times = {name: [] for name in arms}
    for arm in arms.values():
        arm.steps(2)
    for _ in range(rounds):
        for name, arm in arms.items():
            times[name].append(arm.steps(steps))
    step = {name: statistics.median(values) for name, values in times.items()}
    ratios = [g / s for g, s in zip(times["guided"], times["static"])]

    model = arms["guided"].model
    policy = stage.policy
    started = time.process_time()
    task = arms["guided"].task
    make_extract(policy, cache, task.space, accelerator.device)
    fit_sec = time.process_time() - started
    measurements = Measurements(stage, task, cache, model, model, accelerator, nullcontext())
    probe_sec = median_sec(measurements, rounds)
    batch = stage.train.batch_size
    whole_sec = examples / batch * step["static"]
    probes = probes_in(policy.probe, examples, batch)
    shares = {
        "alignment, while on": statistics.median(ratios) - 1,
        f"{probes} probes": probes * probe_sec / whole_sec,
        "the fit from latents to features": fit_sec / whole_sec,
    }
    if policy.structure.enabled:
        state = StageController(policy).init(examples).structure
        check_sec = median_sec(lambda: measure_structure(policy.structure, state, model.blocks), rounds)
        measured = measure_structure(policy.structure, state, model.blocks)
        active = replace(state, active_at=1, labels=measured.labels, margin=0.0)
        block_sec = median_sec(lambda: structure_step(model.blocks, active, 1e-6), rounds) / policy.structure.every
        checks = 1 + int(math.log(1 / policy.structure.first_check) / math.log(policy.structure.spacing))
        shares |= {
            f"{checks} block checks": checks * check_sec / whole_sec,
            "block term, once on": block_sec / step["static"],
        }
    return {
        "examples": examples,
        "step_sec": step,
        "guided_over_static": ratios,
        "probe_sec": probe_sec,
        "fit_sec": fit_sec,
        "share_of_static_run": shares,
        "most": sum(shares.values()),
    }


def whole(folder: Path, examples: int, pairs: int, guided: str, settings: Sequence[str]) -> dict:
    """Wall-clock of whole runs, both arms of a pair at once."""
    seconds: dict[str, list[float]] = {"static-uniform": [], guided: []}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for _ in range(pairs):
            waiting = [pool.submit(run_sec, name, folder, examples, settings) for name in seconds]
            for kept, found in zip(seconds.values(), waiting):
                kept.append(found.result())
    ratios = [b / a for a, b in zip(*seconds.values())]
    return {"examples": examples, "seconds": seconds, "stage_over_static": ratios}


def run_sec(recipe: str, folder: Path, examples: int, settings: Sequence[str] = ()) -> float:
    """Wall-clock of a run."""
    changes = [f"train.total_examples={examples}", "train.tensorboard=false", *SETTINGS, *settings]
    config, cache = override(load_recipe(recipe), changes), open_cache(folder)
    with tempfile.TemporaryDirectory() as run_dir:
        started = time.perf_counter()
        train(config, cache, Path(run_dir), device="cpu", quiet=True)
        return time.perf_counter() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--recipe", default="stage")
    parser.add_argument("--set", nargs="*", default=[], help="settings of both arms, beside the demo's")
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--whole", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=1)
    given = parser.parse_args()
    opened = open_cache(given.cache)
    report = {"commit": commit(), "machine": machine(), "threads": torch.get_num_threads()}
    report["parts"] = parts(opened, given.examples, given.rounds, given.steps, given.recipe, given.set)
    if given.whole:
        report["whole"] = whole(given.cache, given.whole, given.pairs, given.recipe, given.set)
    print(json.dumps(report, indent=1))
