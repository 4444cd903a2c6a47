"""The hostile corpus in its short version, and that nothing leaves the machine on the README's path."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hostile():
    spec = importlib.util.spec_from_file_location("segue_torture_hostile", Path(__file__).parent / "hostile.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found(hostile, tmp_path_factory):
    """The commands' two processes are most of what this file takes: whatever else has to run does so in one of them."""
    folder = tmp_path_factory.mktemp("hostile") / "corpus"
    generate = ["generate", folder / "clean-run", "a tone", "--steps", 2, "--out", folder / "made"]
    hub = ["encode", folder / "clean", "--out", folder / "hub", "--codec", "spectral", "--teacher", "nobody/nothing"]
    figures = hostile.run(folder, files=100, standin=True, then={"generate": generate, "hub": hub})
    return folder, figures


def test_a_hundred_hostile_files_neither_crash_nor_hang_nor_swell(found):
    _, figures = found
    assert figures["complaints"] == [] and figures["crashes"] == figures["hangs"] == 0
    assert figures["unnamed"] == []
    assert figures["bad_files"] >= 40 and figures["good_files"] >= 12
    assert 40 <= figures["failed"] < 112  # some can be upsampled
    assert figures["peak_memory_ratio"] <= 2.0


def test_generating_reaches_for_no_network(found):
    """Check, encode, train and upsample ran without it above: a process that reaches for a socket is ended."""
    folder, figures = found
    ended = figures["then"]["generate"]
    assert ended.code == 0, ended.err[-600:]
    assert list((folder / "made").glob("*"))


def test_a_process_that_reaches_for_the_network_is_caught(found):
    """The guard itself: a hub name needs the network."""
    ended = found[1]["then"]["hub"]
    assert ended.code == 77 and "reached for the network" in ended.err
