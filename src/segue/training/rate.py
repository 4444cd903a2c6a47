"""How fast this machine trains, measured before a budget is set: by whole runs, as many at once as there will be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from segue.data.open_cache import open_cache
from segue.training.config import RunConfig, from_json, to_json
from segue.training.loop import train
from segue.types import UserError

# Lengths of the two runs that are thrown away: the difference of their times holds no start and no end.
SHORT, LONG = 6, 30


def measure_rate(config: RunConfig, cache_path: Path, runs: int = 1, threads: int = 1) -> float:
    """Training examples a second on this machine, of all runs together.

    Args:
        config: what each of them trains; its length does not matter.
        runs: how many train at once, each in a process; a single one is measured in this process.
        threads: of each of several.

    Raises:
        UserError: a run failed.
    """
    if runs == 1:
        return examples_per_sec(config, cache_path)
    about = json.dumps({"config": to_json(config), "cache": str(cache_path.resolve())})
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    words = [sys.executable, "-m", "segue.training.rate", about]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(words, env=environment, stdout=pipe, stderr=pipe, text=True) for _ in range(runs)]
    rates = []
    for process in processes:
        out, err = process.communicate()
        if process.returncode != 0:
            for other in processes:
                other.kill()
            raise UserError(f"the speed cannot be measured: {(err.strip() or 'no word').splitlines()[-1]}")
        rates.append(float(out))
    return sum(rates)


def examples_per_sec(config: RunConfig, cache_path: Path) -> float:
    """Of one run in this process."""
    cache = open_cache(cache_path)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for steps in (SHORT, LONG):
            length = replace(config.train, total_examples=steps * config.train.batch_size, tensorboard=False)
            started = time.monotonic()
            train(replace(config, train=length), cache, Path(folder) / f"{steps}", quiet=True)
            seconds.append(time.monotonic() - started)
    # At least a microsecond a step: on a busy machine the longer run may be the faster one.
    return (LONG - SHORT) * config.train.batch_size / max(seconds[1] - seconds[0], 1e-6 * (LONG - SHORT))


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    try:
        print(examples_per_sec(from_json(asked["config"]), Path(asked["cache"])))
    except UserError as error:
        sys.exit(f"segue: {error}")
