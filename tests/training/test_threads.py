"""Trainings on one machine share its cores, and say so."""

import subprocess
import sys

import pytest
import torch

from segue.training import threads
from segue.training.threads import Threads

CPU = torch.device("cpu")
HOLDER = """
import sys, torch
from pathlib import Path
from segue.training.threads import Threads
with Threads(torch.device("cpu"), Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "cores", lambda: 4)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_a_training_takes_its_share_while_another_process_trains_and_all_of_it_again(four_cores, tmp_path):
    with Threads(CPU, tmp_path) as mine:
        assert mine.describe() == "device: cpu (4 threads)"
        other = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert other.stdout.readline() == "held\n"
        assert mine.adjust() == "device: cpu (2 threads); 1 more training here" and torch.get_num_threads() == 2
        assert mine.adjust() is None
        # Killed: the system lets go of its lock, and its file goes.
        other.kill()
        other.wait()
        assert mine.adjust() == "device: cpu (4 threads)" and len(list(tmp_path.iterdir())) == 1
    assert torch.get_num_threads() == 4


def test_one_of_five_keeps_a_thread(four_cores, tmp_path):
    held = [Threads(CPU, tmp_path) for _ in range(5)]
    for part in held:
        part.__enter__()
    assert held[0].adjust() is None and torch.get_num_threads() == 1
    for part in held:
        part.__exit__()


def test_what_a_user_has_set_stays(four_cores, tmp_path, monkeypatch):
    torch.set_num_threads(3)
    with Threads(CPU, tmp_path) as mine:
        assert torch.get_num_threads() == 3 and mine.describe() == "device: cpu (3 threads)"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with Threads(CPU, tmp_path), Threads(CPU, tmp_path) as second:
        assert torch.get_num_threads() == 3 and second.adjust() is None


def test_without_a_folder_for_locks_nobody_is_counted(four_cores, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with Threads(CPU, tmp_path / "file") as mine:
        assert mine.describe() == "device: cpu (4 threads)" and mine.adjust() is None
