"""Memory: the peak that was stated before a run against the one that was reached, and a long run that must stay flat.

python tests/torture/memory.py --steps 10000
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

import hostile

from conftest import SHORT, Bands, tones
from segue.recipes import load_recipe
from segue.training.build import dit_config
from segue.training.config import override
from segue.training.log import read_log
from segue.training.loop import train
from segue.training.run_memory import run_need, stated_bytes

STATED_WITHIN = 0.15
FLAT_WITHIN = 0.02  # of the resident memory after a fifth of the steps


def forked(work) -> int:
    """Process id of a child that does `work` and ends."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"memory: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
    return pid


# name -> recipe, which of the caches, and what is changed. Forty examples a step, so that activations count.
RUNS = {
    "dit-3m": ("semantic-timesteps", "plain", ["model.preset=dit-3m"]),
    "dit-10m": ("semantic-timesteps", "plain", ["model.preset=dit-10m"]),
    "dit-35m": ("semantic-timesteps", "plain", ["model.preset=dit-35m"]),
    "checkpointing": ("semantic-timesteps", "plain", ["model.preset=dit-10m", "model.gradient_checkpointing=true"]),
    "accumulation": ("semantic-timesteps", "plain", ["model.preset=dit-10m", "train.accumulation=4"]),
    "stage": ("stage", "taught", ["model.preset=dit-3m", "probe.space=latent", "probe.clips=16"]),
    "super-resolution": ("sr-demo-static", "hisses", ["model.preset=dit-3m", "degradation.cutoff_min_hz=300",
                         "degradation.cutoff_max_hz=600", "degradation.held_out_cutoff_hz=500"]),
}  # fmt: skip
CAPTIONS = 400  # of the sounds that encode and check are measured on


def caches_for(folder: Path) -> dict:
    """Tones without a teacher, with one, and as gain and shape."""
    kinds = {"plain": (None, "spectral"), "taught": (Bands(), "spectral"), "hisses": (Bands(), "gain-shape")}
    for name in kinds:
        (folder / name).mkdir()
    return {name: tones(folder / name, *kind) for name, kind in kinds.items()}


def peak_against_stated(caches: dict, folder: Path, name: str) -> tuple[int, int]:
    """MiB stated before a run of four steps, and reached by it."""
    recipe, cache, changes = RUNS[name]
    folder.mkdir()
    config = override(load_recipe(recipe), [*SHORT, *changes, "train.batch_size=40", "train.total_examples=160"])

    def work() -> None:
        need = run_need(config, caches[cache], dit_config(config, caches[cache]))
        (folder / "stated").write_text(str(stated_bytes(need, torch.device("cpu"))))
        train(config, caches[cache], folder, device="cpu", quiet=True)

    assert os.waitpid(forked(work), 0)[1] == 0, "the run failed"
    peak = next(e["peak_bytes"] for e in read_log(folder / "log.jsonl") if e["event"] == "memory")
    return said(name, int((folder / "stated").read_text()) >> 20, peak >> 20)


def commands_against_stated(folder: Path) -> dict[str, tuple[int, int]]:
    """The same of `segue data check` and `segue encode`, with the shipped codec and teacher."""
    folder.mkdir()
    hostile.write_clean(folder / "sounds", CAPTIONS)
    for index, path in enumerate(sorted((folder / "sounds").glob("*.txt"))):
        path.write_text(f"a tone, the {index}th of many, and it dies away", encoding="utf-8")
    todo = {"check": ["data", "check", folder / "sounds"],
            "encode": ["encode", folder / "sounds", "--out", folder / "cache", "--seconds", 1.024]}  # fmt: skip
    found = {}
    for name, words in todo.items():  # a process each: the first would have loaded what the second states
        ended = hostile.commands(folder, {name: words})[name]
        assert ended.code == 0, ended.err[-2000:]
        number, unit = re.findall(r"peak memory about ([\d.]+) ([MG])iB", ended.err)[-1]
        found[name] = said(name, round(float(number) * (1024 if unit == "G" else 1)), ended.peak_kib >> 10)
    return found


def said(name: str, stated: int, peak: int) -> tuple[int, int]:
    print(f"memory: {name}: stated {stated} MiB, peak {peak} MiB", flush=True)
    return stated, peak


def growth(cache, folder: Path, steps: int) -> tuple[float, list[int]]:
    """Growth of the resident memory over the last four fifths of a run of the smallest model, and the samples."""
    folder.mkdir()
    changes = [*SHORT, "train.batch_size=1", f"train.total_examples={steps}", "train.checkpoint_every=0",
               "model.patch_frames=8", f"train.log_every={max(1, steps // 200)}", "train.keep_last=1"]  # fmt: skip
    config = override(load_recipe("static-uniform"), changes)
    pid = forked(lambda: train(config, cache, folder, device="cpu", quiet=True))
    samples = []
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        seen = [e["examples_seen"] for e in read_log(folder / "log.jsonl") if e["event"] == "train"][-1:]
        if seen and seen[0] >= steps / 5:
            resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            samples += [resident] if resident else []  # 0: it has just ended
        time.sleep(0.2)
    assert read_log(folder / "log.jsonl")[-1]["examples_seen"] == steps, "the run failed"
    return max(samples) / samples[0] - 1, samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--figures", type=Path, help="Write them as JSON here, too.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        caches = caches_for(folder)
        mib = {run: peak_against_stated(caches, folder / run, run) for run in options.runs}
        mib |= commands_against_stated(folder / "commands")
        grown, samples = growth(caches["plain"], folder / "leak", options.steps)
    worst = max(abs(peak / stated - 1) for stated, peak in mib.values())
    resident = samples[0] >> 20
    if options.figures:
        figures = {"mib": mib, "worst": worst, "steps": options.steps, "grown": grown, "resident_mib": resident}
        options.figures.write_text(json.dumps(figures))
    print(
        f"memory: peak at most {worst:.1%} off the stated one; {options.steps:,} steps grew {grown:+.2%} "
        f"({resident} MiB, {len(samples)} samples)"
    )
    return 0 if worst <= STATED_WITHIN and grown <= FLAT_WITHIN else 1


if __name__ == "__main__":
    sys.exit(main())
