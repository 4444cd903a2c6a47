"""Kill a short run again and again, and look whether anything was lost.

    python tests/torture/crash.py --kills 100 --seed 0

A life of the run is a forked process that goes on from the newest checkpoint and is killed (SIGKILL) at a moment that
the seed draws: after a random time, before a random one of its renames, syncs and deletions, or with a checkpoint's
file half-written. A run that gets through is compared with the uninterrupted one, bit for bit, and the next begins.
Some lives meet a disk that takes no more bytes (a file-size limit) in place of a kill.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from running import timeless
from safetensors.torch import load_file

from conftest import SHORT, Bands, tones
from segue.recipes import load_recipe
from segue.training import checkpoint, loop
from segue.training.config import override
from segue.types import UserError

SETTINGS = [*SHORT, "train.total_examples=160", "train.checkpoint_every=16", "train.log_every=8", "probe.space=latent",
            "probe.clips=8", "probe.spacing=1.3", "probe.first=0.1"]  # fmt: skip
FINISHED, STOPPED, CRASHED = 0, 3, 4


def live(config, cache, folder: Path, prepare) -> int:
    """Run in a process of its own, `prepare` called in it first; its exit status, negative for a signal."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = CRASHED
        try:
            with (folder / "stderr").open("a") as words:
                os.dup2(words.fileno(), 2)
            prepare(os.getppid())
            loop.train(config, cache, folder, resume=True, device="cpu", quiet=True)
            status = FINISHED
        except UserError as error:
            print(error, file=sys.stderr, flush=True)
            status = STOPPED
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def after(seconds: float):
    """A kill from outside, by a process that outlives nobody."""

    def prepare(_parent: int) -> None:
        victim = os.getpid()
        if os.fork() == 0:
            time.sleep(seconds)
            if os.getppid() == victim:
                os.kill(victim, signal.SIGKILL)
            os._exit(0)

    return prepare


def before_call(number: int):
    """A kill before the number-th rename, sync or deletion."""

    def prepare(_parent: int) -> None:
        left = [number]

        def lethal(function):
            def call(*arguments, **named):
                left[0] -= 1
                if left[0] <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **named)

            return call

        os.replace, os.fsync, shutil.rmtree = lethal(os.replace), lethal(os.fsync), lethal(shutil.rmtree)

    return prepare


def torn(number: int, share: float):
    """A kill with the number-th file of tensors written up to `share`."""

    def prepare(_parent: int) -> None:
        left = [number]

        def lethal(function):
            def call(tensors, path, *metadata):
                function(tensors, path, *metadata)
                left[0] -= 1
                if left[0] <= 0:
                    os.truncate(path, int(share * os.path.getsize(path)))
                    os.kill(os.getpid(), signal.SIGKILL)

            return call

        from segue.models import files as model_files

        checkpoint.save_file = lethal(checkpoint.save_file)
        model_files.save_file = lethal(model_files.save_file)

    return prepare


def full_disk(size: int):
    """No file may grow beyond `size` bytes: what a full disk does, at a place that can be chosen."""
    return lambda _parent: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def readable(folder: Path) -> tuple[int, int]:
    """Progress of the newest checkpoint (-1: there is none), and how many cannot be read."""
    newest, bad = -1, 0
    for path in checkpoint.list_checkpoints(folder):
        try:
            newest = max(newest, checkpoint._read(path)[0].examples_seen)
        except UserError:
            bad += 1
    return newest, bad


def torture(kills: int, seed: int, folder: Path, say=print) -> dict:
    """Counts: kills, full disks, runs that got through, states lost, checkpoints unreadable, crashes, differences."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tones").mkdir()
    cache = tones(folder / "tones", Bands())
    config = override(load_recipe("stage"), SETTINGS)
    whole = folder / "whole"
    whole.mkdir()
    # Only children train: autograd does not survive a fork after it has worked.
    started = time.monotonic()
    assert live(config, cache, whole, lambda _: None) == FINISHED, (whole / "stderr").read_text()
    length = time.monotonic() - started
    expected, words = (
        load_file(checkpoint.list_checkpoints(whole)[-1] / "model.safetensors"),
        timeless(whole / "log.jsonl"),
    )
    size = (checkpoint.list_checkpoints(whole)[-1] / "model.safetensors").stat().st_size
    say(f"crash: one life unharmed takes {length:.1f} s; a checkpoint's model file {size / 2**20:.1f} MiB")

    rng = np.random.default_rng(seed)
    count = dict.fromkeys(("kills", "full_disks", "runs", "states_lost", "unreadable", "crashes", "differing"), 0)
    run = None
    while count["kills"] < kills or run is not None:
        if run is None:
            run, reached = folder / f"run{count['runs']}", -1
            run.mkdir()
        kind = rng.choice(["after", "call", "torn", "full"], p=[0.45, 0.25, 0.2, 0.1])
        plan = {
            "after": lambda: after(rng.uniform(0.0, 1.1 * length)),
            "call": lambda: before_call(int(rng.integers(1, 40))),
            "torn": lambda: torn(int(rng.integers(1, 7)), rng.uniform(0.0, 1.0)),
            "full": lambda: full_disk(int(rng.integers(1, 1.2 * size))),
        }[kind]()
        status = live(config, cache, run, plan if count["kills"] < kills else lambda _: None)
        newest, bad = readable(run)
        count["states_lost"] += newest < reached
        count["unreadable"] += bad
        reached = max(reached, newest)
        count["kills"] += status == -signal.SIGKILL
        count["full_disks"] += status == STOPPED
        count["crashes"] += status not in (FINISHED, STOPPED, -signal.SIGKILL)
        if status in (CRASHED, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT):
            say(f"crash: a life ended with {status}: {(run / 'stderr').read_text()[-2000:]}")
            break
        if status == FINISHED:
            got = load_file(checkpoint.list_checkpoints(run)[-1] / "model.safetensors")
            same = got.keys() == expected.keys() and all(torch.equal(v, expected[k]) for k, v in got.items())
            litter = [p.name for p in (run / "checkpoints").glob(".*")]
            count["differing"] += not (same and timeless(run / "log.jsonl") == words and not litter)
            count["runs"] += 1
            shutil.rmtree(run)
            run = None
        if count["kills"] and count["kills"] % 10 == 0 and status == -signal.SIGKILL:
            say(f"crash: {count}, {time.monotonic() - started:.0f} s")
    return count


def verdict(count: dict) -> bool:
    """Whether every promise held."""
    return not any(count[name] for name in ("states_lost", "unreadable", "crashes", "differing")) and count["runs"] > 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figures", type=Path, help="Write them as JSON here, too.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        count = torture(options.kills, options.seed, Path(folder) / "crash")
    if options.figures:
        options.figures.write_text(json.dumps({name: int(value) for name, value in count.items()}))
    print("crash: " + ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in count.items()))
    return 0 if verdict(count) else 1


if __name__ == "__main__":
    sys.exit(main())
