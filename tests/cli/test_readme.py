"""What the README tells people to type works when they type it."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

README = Path(__file__).parents[2] / "README.md"


def block(mark: str) -> str:
    found = re.search(rf"<!-- test: {mark} -->\n```\w+\n(.*?)```", README.read_text(), re.S)
    assert found, f"README has no block marked '{mark}'"
    return found[1]


def test_the_commands_for_your_own_sounds(segue, recordings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = block("second data set").splitlines()
    assert lines[0].startswith("apt-get download")  # brings the folder; here another stands in its place
    for line in lines[1:]:
        words = [str(recordings) if word.startswith("sounds/") else word for word in shlex.split(line)]
        assert words[0] == "segue"
        if "train" in words:  # the README's run is minutes long
            words[words.index("--examples") + 1] = "32"
            words += ["--set", "model.preset=dit-tiny", "--set", "train.batch_size=8", "--device", "cpu"]
        ran = segue(*words[1:])
        assert ran.code == 0, (line, ran.err)
    assert len(list((tmp_path / "generated").glob("*.wav"))) == 3
    assert (tmp_path / "runs/samples/report.html").exists()


def test_the_commands_for_super_resolution(segue, recordings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise = 0.1 * np.random.default_rng(0).standard_normal(8000)
    soundfile.write("narrow.wav", noise, 8000)
    for line in block("super-resolution").splitlines():
        words = [str(recordings) if word.startswith("sounds/") else word for word in shlex.split(line)]
        if "train" in words:  # the README's run is half an hour long
            words[words.index("--examples") + 1] = "16"
            words += ["--set", "model.preset=dit-tiny", "--set", "train.batch_size=8", "--set", "probe.clips=8"]
        if "measure" in words:
            words += ["--clips", "2", "--steps", "2"]
        ran = segue(*words[1:])
        assert ran.code == 0, (line, ran.err)
    assert soundfile.info("wide.wav").samplerate == 16000 and soundfile.info("wide.wav").frames == 16000


def test_the_demos_take_the_options_that_are_named(segue, tmp_path, monkeypatch):
    """Each up to its first refusal: the demos themselves are run by test_demo.py."""
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"`(segue demo[^`]*)`", README.read_text())
    assert any("--task super-resolution" in command for command in commands) and len(commands) >= 2
    for command in commands:
        assert "--measured at least 8" in segue(*shlex.split(command)[1:], "--measured", 1).line


def test_the_six_lines(recordings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = block("six lines")
    assert len([line for line in code.splitlines() if line.strip()]) == 6
    (tmp_path / "sounds").mkdir()
    for file in recordings.iterdir():
        (tmp_path / "sounds" / file.name).write_bytes(file.read_bytes())
        (tmp_path / "sounds" / file.name).with_suffix(".txt").write_text("a sound")
    short = (
        "from segue.training.config import override\n"
        "config = override(config, ['model.preset=dit-tiny', 'train.total_examples=16', 'train.batch_size=8'])\n"
    )
    marker = 'config = segue.load_recipe("stage")\n'
    assert marker in code
    scope: dict = {}
    exec(code.replace(marker, marker + short), scope)
    assert scope["waves"].shape == (1, 32000) and scope["result"].finished


@pytest.mark.parametrize("name", ["architecture.md", "data.md", "log.md", "method.md", "super-resolution.md"])
def test_linked_pages_exist(name):
    assert (README.parent / "docs" / name).exists()
