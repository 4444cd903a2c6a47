"""Two ranks: going on where one stopped, and what is left when one of them dies."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from running import assert_same, run, start
from safetensors.torch import load_file

from segue.training.checkpoint import list_checkpoints
from segue.training.config import override
from segue.training.log import read_log


def launcher(port: int) -> tuple[str, ...]:
    return ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
            "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port))  # fmt: skip


def test_two_ranks_go_on_where_one_stopped(taught, recipe, tmp_path):
    """Within tolerance in weights; exactly in the loader's position and in what is decided."""
    config = recipe("time-ramp", "train.total_examples=48", "train.checkpoint_every=24", "train.keep_last=9",
                    "probe.run=always")  # fmt: skip
    run(config, taught, tmp_path / "one")
    run(config, taught, tmp_path / "two")
    for later in list_checkpoints(tmp_path / "two")[1:]:
        (later / "state.json").unlink()
    out, err = start(tmp_path / "two", config, taught, *launcher(29641)).communicate(timeout=300)
    assert "finished 48" in out, err
    one, two = (list_checkpoints(tmp_path / name)[-1] for name in ("one", "two"))
    assert_same(*(load_file(p / "model.safetensors") for p in (one, two)), atol=2e-4, rtol=1e-3)
    first, second = (json.loads((p / "state.json").read_text()) for p in (one, two))
    assert first["loader"] == second["loader"] and first["steps"] == second["steps"]
    decided = [
        [(e["examples_seen"], e["regime"], e["guidance_weight"], e["timestep_mean"]) for e in read_log(log) if e["event"] == "stage"]
        for log in (tmp_path / "one" / "log.jsonl", tmp_path / "two" / "log.jsonl")
    ]  # fmt: skip
    assert decided[0] == decided[1]


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the ranks in /proc")
def test_where_one_rank_dies_all_end_and_the_run_goes_on(cache, config, tmp_path):
    config = override(config, ["train.total_examples=80000", "train.checkpoint_every=16", "train.log_every=16"])
    process = start(tmp_path, config, cache, *launcher(29643))
    deadline = time.monotonic() + 300
    while not list_checkpoints(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    ranks = ranks_of(process.pid)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1], signal.SIGKILL)
    killed = time.monotonic()
    _, words = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - killed < 60
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    assert "UserError" in words and "another rank is gone" in words
    # What is left is whole: one process goes on from it.
    seen = json.loads((list_checkpoints(tmp_path)[-1] / "state.json").read_text())["examples_seen"]
    short = override(config, [f"train.total_examples={seen + 8}"])
    result, _ = run(short, cache, tmp_path, resume=True)
    assert result.finished and result.examples_seen == seen + 8


def ranks_of(launcher_pid: int) -> dict[int, int]:
    """Rank -> process id of the launcher's children."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            continue
        rank = [e for e in environment if e.startswith(b"RANK=")]
        if parent == launcher_pid and rank:
            found[int(rank[0].split(b"=")[1])] = int(folder.name)
    return found
