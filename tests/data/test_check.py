from __future__ import annotations

import json
import shutil

import numpy as np
import soundfile

from segue.cli.data import check
from segue.data.check import check_clips
from segue.data.manifest import load_manifest


def test_a_clean_set_is_counted(write_sine, tmp_path, capsys):
    write_sine("d/a.wav", seconds=2, rate_hz=8000, caption="one tone")
    write_sine("d/b.flac", seconds=1, rate_hz=44100, channels=2, caption="a much longer caption here\nanother")
    shutil.copy(tmp_path / "d" / "a.wav", tmp_path / "d" / "copy.wav")
    (tmp_path / "d" / "copy.txt").write_text("one tone")
    assert check(tmp_path / "d") == 0
    text = capsys.readouterr().out
    assert "clips: 3, 0.00 hours" in text and "8000 (2), 44100 (1)" in text and "FLAC PCM_16 (1)" in text
    assert "same content:" in text and "4, 3 unique, 1 to 5 words" in text and "BAD" not in text
    report = check_clips(load_manifest(tmp_path / "d"))
    assert report.channels == {"1": 2, "2": 1} and abs(report.hours * 3600 - 5) < 1e-9
    assert sum(report.splits.values()) == 3 and len(report.duplicates) == 1


def test_every_bad_file_is_named(write_sine, tmp_path, capsys):
    write_sine("d/good.wav", caption="x")
    loud = np.clip(4 * np.sin(np.arange(8000) / 9), -1, 1)
    for name, samples in {
        "silent": np.zeros(800),
        "empty": np.zeros(0),
        "nan": np.full(800, np.nan),
        "clipped": loud,
        "short": loud[:9],
    }.items():
        soundfile.write(tmp_path / "d" / f"{name}.wav", samples, 8000, subtype="FLOAT")
        (tmp_path / "d" / f"{name}.txt").write_text(name)
    (tmp_path / "d" / "text.wav").write_text("hello")
    (tmp_path / "d" / "text.txt").write_text("text")
    cut = write_sine("d/cut.flac", caption="cut", rate_hz=44100, seconds=1)
    cut.write_bytes(cut.read_bytes()[:-2000])
    assert check(tmp_path / "d", as_json=True) == 2
    report = json.loads(capsys.readouterr().out)
    reasons = {entry["path"].rsplit("/", 1)[1]: entry["reason"].split(":")[0] for entry in report["bad"]}
    assert reasons == {
        "cut.flac": "truncated or damaged",
        "empty.wav": "zero length",
        "nan.wav": "non-finite",
        "short.wav": "too short",
        "silent.wav": "silent",
        "text.wav": "unreadable",
    }
    assert report["clips"] == 2 and [p.rsplit("/", 1)[1] for p in report["clipped"]] == ["clipped.wav"]
    assert check(tmp_path / "d") == 2
    assert "6 bad files" in capsys.readouterr().out
