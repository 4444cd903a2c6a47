"""What README and docs tell people to type works when they type it."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from segue.data.content import content_hash
from segue.data.splits import VALID_SHARE

ROOT = Path(__file__).parents[2]
README, START = ROOT / "README.md", ROOT / "docs/getting-started.md"
SUPER_RESOLUTION, CLI = ROOT / "docs/super-resolution.md", ROOT / "docs/cli.md"


def block(page: Path, mark: str) -> str:
    found = re.search(rf"<!-- test: {mark} -->\n```\w+\n(.*?)```", page.read_text(), re.S)
    assert found, f"{page.name} has no block marked '{mark}'"
    return found[1]


def shortened(words: list[str], examples: int) -> list[str]:
    """A training command of minutes, made one of seconds."""
    if "--examples" not in words:
        words = [*words, "--examples", "0"]
    words[words.index("--examples") + 1] = str(examples)
    return [*words, "--set", "model.preset=dit-tiny", "--set", "train.batch_size=8", "--device", "cpu"]


def run_lines(segue, lines, change=lambda words: words):
    """Run a page's lines, one after the other, as they are written but for `change`."""
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[0] == "python":
            exec(words[2], {})
            continue
        assert words[0] == "segue"
        ran = segue(*change(words)[1:])
        assert ran.code == 0, (line, ran.err)
        yield ran


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """README's own folder: named recordings, of which several are held out by their content."""
    folder = tmp_path_factory.mktemp("readme") / "sounds"
    folder.mkdir()
    time_sec, left = np.arange(6400) / 16000, {True: 3, False: 37}
    for index in range(1000):
        path = folder / f"{('drum_snare_hard', 'bass_hit', 'bell_long')[index % 3]}_{index:03d}.wav"
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * (150 + index) * time_sec) * np.exp(-4 * time_sec), 16000)
        # The hash of a file decides; of each side as many as are wanted stay.
        is_held_out = int(content_hash(path)[:16], 16) <= VALID_SHARE * 2**64
        left[is_held_out] -= 1
        if left[is_held_out] < 0:
            path.unlink()
        elif max(left.values()) <= 0:
            break
    return folder


@pytest.fixture
def sounds(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "sounds")


def test_readmes_lines_work_one_after_the_other(segue, sounds, tmp_path, monkeypatch):
    """From nothing but a folder of sounds: what a line needs, a line before it has made."""
    monkeypatch.chdir(tmp_path)
    lines = [line for mark in ("shortest", "upper band") for line in block(README, mark).splitlines()]
    assert len([line for line in lines if line.startswith("segue ")]) == 6
    assert "segue train --data" in lines[2], "no recipe is named"

    def change(words):
        return shortened(words, 32) if words[1] == "train" else words

    rans = list(run_lines(segue, lines, change))
    assert "recipe: stage-muon, the default" in rans[2].err
    assert len(list((tmp_path / "generated").glob("*.wav"))) == 2
    assert "held-out clips of sounds" in " ".join(rans[4].out.split()), "measuring says what it is measured on"
    wide = soundfile.info("wide.wav")
    assert (wide.samplerate, soundfile.info("narrow.wav").samplerate) == (48000, 8000)


def test_the_commands_for_your_own_sounds(segue, recordings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = block(START, "second data set").splitlines()
    assert lines[0].startswith("apt-get download")  # brings the folder; here another stands in its place
    for line in lines[1:]:
        words = [str(recordings) if word.startswith("sounds/") else word for word in shlex.split(line)]
        assert words[0] == "segue"
        if "train" in words:  # the page's run is minutes long
            words = shortened(words, 32)
        ran = segue(*words[1:])
        assert ran.code == 0, (line, ran.err)
    assert len(list((tmp_path / "generated").glob("*.wav"))) == 3
    assert (tmp_path / "runs/samples/report.html").exists()


def test_the_commands_for_super_resolution(segue, sounds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise = 0.1 * np.random.default_rng(0).standard_normal(8000)
    soundfile.write("sounds/ambi_choir.flac", noise, 8000)  # the page's recording

    def change(words):
        words = ["sounds" if word.startswith("sounds/") else word for word in words]
        if "train" in words:  # the page's run is half an hour long
            words = [*shortened(words, 16), "--set", "probe.clips=8"]
        return [*words, "--clips", "2", "--steps", "2"] if "measure" in words else words

    lines = [line.replace("sounds/usr/share/sonic-pi/samples", "sounds")
             for line in block(SUPER_RESOLUTION, "super-resolution").splitlines()]  # fmt: skip
    *_, measured = run_lines(segue, lines, change)
    assert "2 clips of sounds (valid)" in measured.out
    assert soundfile.info("wide.wav").samplerate == 16000 and soundfile.info("wide.wav").frames == 16000


def test_the_demos_take_the_options_that_are_named(segue, tmp_path, monkeypatch):
    """Each up to its first refusal: the demos themselves are run by test_demo.py."""
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"`(segue demo[^`]*)`", CLI.read_text())
    assert any("--task super-resolution" in command for command in commands) and len(commands) >= 2
    for command in commands:
        assert "--measured at least 8" in segue(*shlex.split(command)[1:], "--measured", 1).line


def test_the_python_lines(recordings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = block(START, "python lines")
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    (tmp_path / "sounds").mkdir()
    for file in recordings.iterdir():
        (tmp_path / "sounds" / file.name).write_bytes(file.read_bytes())
    short = (
        "from segue.training.config import override\n"
        "config = override(config, ['model.preset=dit-tiny', 'train.total_examples=16', 'train.batch_size=8'])\n"
    )
    marker = 'config = segue.load_recipe("stage")\n'
    assert marker in code
    scope: dict = {}
    exec(code.replace(marker, marker + short), scope)
    assert scope["waves"].shape == (1, 1, 32768) and scope["result"].finished
