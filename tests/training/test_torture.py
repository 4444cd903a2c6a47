"""Ten of the hundred kills of `make torture`, in a process that may fork: autograd has not worked in it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_ten_kills_lose_nothing():
    script = Path(__file__).parents[1] / "torture" / "crash.py"
    ran = subprocess.run(
        [sys.executable, script, "--kills", "10", "--seed", "1"], capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    last = ran.stdout.strip().splitlines()[-1]
    assert "10 kills" in last and "0 states lost, 0 unreadable, 0 crashes, 0 differing" in last


def test_memory_is_as_stated_and_stays_flat():
    script = Path(__file__).parents[1] / "torture" / "memory.py"
    arguments = ["--steps", "150", "--runs", "dit-10m"]
    ran = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
