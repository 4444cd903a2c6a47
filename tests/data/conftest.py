from __future__ import annotations

import importlib.util
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def fakes():
    spec = importlib.util.spec_from_file_location("segue_data_fakes", HERE / "fakes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sine(hz: float, seconds: float, rate_hz: int, channels: int = 1, peak: float = 0.5) -> np.ndarray:
    wave = peak * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


@pytest.fixture
def write_sine(tmp_path):
    """write_sine(name, hz, seconds, rate_hz, channels, caption) -> path under tmp_path."""

    def write(name, hz=440.0, seconds=0.5, rate_hz=8000, channels=1, caption=None, **kwargs):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sine(hz, seconds, rate_hz, channels), rate_hz, **kwargs)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    return write


@pytest.fixture
def small_set(tmp_path, write_sine):
    """A folder of 23 short tones of three lengths with a manifest; row 3 has three captions.

    Of whole numbers: a float wav holds the time at which it was written, and shards are cut by hashes of the files.
    """
    rows = []
    for n in range(23):
        path = write_sine(f"set/tone{n:02d}.wav", hz=203.7 + 41.3 * n, seconds=(0.5, 0.3, 0.9)[n % 3], subtype="PCM_24")
        row = {"path": path.name, "split": ("train", "train", "valid", "train", "test")[n % 5], "number": n}
        row |= (
            {"captions": ["one", "two words", "three words here"]} if n == 3 else {"caption": f"a tone of number {n}"}
        )
        rows.append(row)
    folder = tmp_path / "set"
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def write_tar():
    """write_tar(path, members) -> path; members are (name, bytes) pairs, or TarInfo headers without a body."""

    def write(path, members):
        with tarfile.open(path, "w") as tar:
            for member in members:
                if isinstance(member, tarfile.TarInfo):
                    tar.addfile(member)
                else:
                    header = tarfile.TarInfo(member[0])
                    header.size = len(member[1])
                    tar.addfile(header, io.BytesIO(member[1]))
        return path

    return write
