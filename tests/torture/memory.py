"""Memory: the peak that was stated before a run against the one that was reached, and a long run that must stay flat.

python tests/torture/memory.py --steps 10000
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from conftest import SHORT, tones

from segue.recipes import load_recipe
from segue.stage.controller import StageController
from segue.training.build import dit_config
from segue.training.config import override
from segue.training.log import read_log
from segue.training.loop import train
from segue.training.memory import run_need, stated_bytes

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


def peak_against_stated(cache, folder: Path, preset: str) -> float:
    """Peak of a run of three steps over what was stated before it."""
    folder.mkdir()
    changes = [*SHORT, f"model.preset={preset}", "train.batch_size=40", "train.total_examples=120"]
    config = override(load_recipe("semantic-law"), changes)

    def work() -> None:
        stated = stated_bytes(run_need(config, cache, dit_config(config, cache)), torch.device("cpu"))
        (folder / "stated").write_text(str(stated))
        train(config, StageController(config.policy), cache, folder, device="cpu", quiet=True)

    assert os.waitpid(forked(work), 0)[1] == 0, "the run failed"
    peak = next(e["peak_bytes"] for e in read_log(folder / "log.jsonl") if e["event"] == "memory")
    stated = int((folder / "stated").read_text())
    print(f"memory: {preset}: stated {stated / 2**20:.0f} MiB, peak {peak / 2**20:.0f} MiB", flush=True)
    return peak / stated


def growth(cache, folder: Path, steps: int) -> tuple[float, list[int]]:
    """Growth of the resident memory over the last four fifths of a run of the smallest model, and the samples."""
    folder.mkdir()
    # One example's loss says more of its time than of the run: batches of one know no spike.
    changes = [*SHORT, "train.batch_size=1", f"train.total_examples={steps}", "train.checkpoint_every=0",
               "train.spike=0", "model.patch_frames=8", f"train.log_every={max(1, steps // 200)}", "train.keep_last=1"]  # fmt: skip
    config = override(load_recipe("static-uniform"), changes)
    pid = forked(lambda: train(config, StageController(config.policy), cache, folder, device="cpu", quiet=True))
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
    parser.add_argument("--presets", nargs="*", default=["dit-3m", "dit-10m", "dit-35m"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tones").mkdir()
        cache = tones(folder / "tones", None)
        off = {p: peak_against_stated(cache, folder / p, p) - 1 for p in options.presets}
        grown, samples = growth(cache, folder / "leak", options.steps)
    words = ", ".join(f"{p} {x:+.1%}" for p, x in off.items())
    print(
        f"memory: peak against the stated one: {words}; {options.steps:,} steps grew {grown:+.2%} "
        f"({samples[0] / 2**20:.0f} MiB, {len(samples)} samples)"
    )
    return 0 if all(abs(x) <= STATED_WITHIN for x in off.values()) and grown <= FLAT_WITHIN else 1


if __name__ == "__main__":
    sys.exit(main())
