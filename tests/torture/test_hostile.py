"""The hostile corpus in its short version, and that nothing leaves the machine on the README's path."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def hostile():
    spec = importlib.util.spec_from_file_location("segue_torture_hostile", Path(__file__).parent / "hostile.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found(hostile, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "corpus"
    return folder, hostile.run(folder, files=100)


def test_a_hundred_hostile_files_neither_crash_nor_hang_nor_swell(found):
    _, figures = found
    assert figures["complaints"] == [] and figures["crashes"] == figures["hangs"] == 0
    assert figures["unnamed"] == []
    assert figures["bad_files"] >= 40 and figures["good_files"] >= 12
    assert figures["peak_memory_ratio"] <= 2.0


def test_generating_reaches_for_no_network(hostile, found):
    """Check, encode and train ran without it above: `hostile.command` ends a process that reaches for a socket."""
    folder, _ = found
    ended = hostile.command(folder, "generate", folder / "clean-run", "a tone", "--steps", 2, "--out", folder / "made")
    assert ended.code == 0, ended.err[-600:]
    assert list((folder / "made").glob("*"))


def test_a_process_that_reaches_for_the_network_is_caught(hostile, tmp_path):
    """The guard itself: a hub name needs the network."""
    source = tmp_path / "sounds"
    hostile.write_clean(source, 2)
    ended = hostile.command(
        tmp_path, "encode", source, "--out", tmp_path / "cache", "--teacher", "nobody/nothing", "--codec", "spectral"
    )
    assert ended.code == 77 and "reached for the network" in ended.err
