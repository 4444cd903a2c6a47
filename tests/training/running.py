"""What the loop's tests share: a run in this process, a run in another, and when two runs are the same."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from segue.training.checkpoint import list_checkpoints
from segue.training.log import read_log
from segue.training.loop import train
from segue.workflows.run_config import write_config


def run(config, cache, folder, **options):
    folder.mkdir(parents=True, exist_ok=True)
    result = train(config, cache, folder, device="cpu", quiet=True, **options)
    return result, load_file(list_checkpoints(folder)[-1] / "model.safetensors")


def cut_to_checkpoints(folder: Path, kept: int) -> None:
    """What came after the first ones is taken away, as a kill would have."""
    for later in list_checkpoints(folder)[kept:]:
        shutil.rmtree(later)


def assert_same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name, value in first.items():
        if tolerance:
            torch.testing.assert_close(value, second[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert torch.equal(value, second[name]), name


def timeless(log: Path) -> list[dict]:
    """The log without what a clock or the machine says."""
    own = ("examples_per_sec", "probe_sec", "loader_share", "peak_bytes", "sound_sec")
    return [{k: v for k, v in e.items() if k not in own} for e in read_log(log)]


SCRIPT = """
import sys
from pathlib import Path
from segue.data.open_cache import open_cache
from segue.training.config import from_json
from segue.training.loop import train
import json, os, torch
torch.set_num_threads(1)
run_dir = Path(sys.argv[1])
stored = json.loads((run_dir / "config.json").read_text())
config = from_json(stored["run"])
resume = any((run_dir / "checkpoints").glob("examples-*/state.json"))
result = train(config, open_cache(stored["cache"]), run_dir, resume=resume, device="cpu")
# In one write: two ranks share the pipe, and print() writes its parts one by one.
os.write(1, f"{'finished' if result.finished else 'stopped'} {result.examples_seen}\\n".encode())
"""


def two_ranks(port: int) -> tuple[str, ...]:
    """Launcher of two gloo processes. Not `accelerate launch --cpu`: without mpirun that starts one, and says nothing."""
    return ("-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}")


def start(folder, config, cache, *launcher):
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config, cache)
    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    return subprocess.Popen([sys.executable, *launcher, str(script), str(folder)], **pipes)
