"""Files decoded in processes: the same results in the same order, and a crash that costs one file."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile

from segue.audio.sound import BadAudio
from segue.data.decoding import FileWorkers
from segue.data.encoding import build_cache
from segue.data.manifest import load_manifest
from segue.types import UserError


def work(path: Path) -> str:
    """A decoder that some files crash, and others are bad for."""
    if "crash" in path.name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "bad" in path.name:
        raise BadAudio(path, "no sound")
    return f"{path.name} {os.getpid()}"


@pytest.fixture(scope="module")
def two():
    with FileWorkers(2) as workers:
        yield workers


def test_results_come_in_order_and_one_file_stays_with_one_process(two):
    paths = [Path(f"{i % 7}.wav") for i in range(60)]
    found = list(two.map(work, paths, str))
    assert [line.split()[0] for line in found] == [p.name for p in paths]
    processes = {name: {line.split()[1] for line in found if line.startswith(name)} for name in map(str, range(7))}
    assert all(len(pids) == 1 for pids in processes.values()) and len(set.union(*processes.values())) == 2
    assert str(os.getpid()) not in set.union(*processes.values())


def test_a_crash_costs_the_file_that_was_being_decoded_and_no_other(two):
    names = ["a", "crash-1", "b", "c", "bad", "crash-2", "d", *"efghij"]
    found = list(two.map(work, map(Path, names), lambda error: f"{error.path}: {error.reason}"))
    assert [line.split()[0] for line in found] == [f"{n}:" if n[:2] in ("cr", "ba") else n for n in names]
    assert found[1] == "crash-1: the decoder crashed on it" and found[4] == "bad: no sound"


def test_the_cache_is_the_same_whatever_decodes(fakes, tmp_path):
    generator = np.random.default_rng(0)
    for index in range(9):
        wave = 0.1 * generator.normal(size=1000 + 700 * index)
        soundfile.write(tmp_path / f"tone-{chr(97 + index)}.wav", wave, 8000)
    clips = load_manifest(tmp_path, captions="filename")
    made = []
    for workers in (0, 2):
        out = tmp_path / f"cache-{workers}"
        build_cache(clips, fakes.FakeCodec(), fakes.FakeText(), out=out, seconds=0.2, batch_size=4, workers=workers)
        made.append({p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()})
    assert made[0] == made[1] and len(made[0]) > 3


def test_a_file_that_crashes_its_decoder_is_named_or_left_out(fakes, tmp_path, monkeypatch):
    """The decoder is that of this process's children: a module on their path breaks libsndfile's for one file."""
    for index in range(3):
        soundfile.write(
            tmp_path / f"tone-{chr(97 + index)}.wav", 0.1 * np.random.default_rng(index).normal(size=2000), 8000
        )
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, soundfile\n"
        "real = soundfile.SoundFile.__init__\n"
        "def opened(self, file, *args, **kwargs):\n"
        "    os.kill(os.getpid(), 9) if 'tone-b.wav' in str(file) else real(self, file, *args, **kwargs)\n"
        "soundfile.SoundFile.__init__ = opened\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{os.environ.get('PYTHONPATH', '')}")
    clips = load_manifest(tmp_path, captions="filename")
    parts = (fakes.FakeCodec(), fakes.FakeText())
    with pytest.raises(UserError, match=r"tone-b.wav: the decoder crashed on it"):
        build_cache(clips, *parts, out=tmp_path / "cache", seconds=0.2, workers=1)
    left = build_cache(clips, *parts, out=tmp_path / "cache", seconds=0.2, workers=1, skip_bad=True)
    assert len(left) == 4 and [entry["id"] for entry in left.meta["skipped"]] == ["tone-b"]
