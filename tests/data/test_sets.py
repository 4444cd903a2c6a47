"""Sets of the datasets library: parquet, save_to_disk, names of the hub; and files that only seem to be such sets."""

from __future__ import annotations

import io
import json
import re
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segue.audio.read import read_wave
from segue.data.check import check_clips
from segue.data.encoding import build_cache
from segue.data.manifest import load_manifest, read_listing
from segue.data.reading import Reading
from segue.types import UserError

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sound(n: int) -> bytes:
    file = io.BytesIO()
    wave = 0.5 * np.sin(2 * np.pi * (200 + 40 * n) * np.arange(4000) / 8000)
    soundfile.write(file, wave, 8000, format="FLAC" if n % 2 else "WAV")
    return file.getvalue()


def table(count: int = 6, first: int = 0):
    numbers = range(first, first + count)
    return arrow.table(
        {
            "audio": [{"bytes": sound(n), "path": f"tone{n}.{'flac' if n % 2 else 'wav'}"} for n in numbers],
            "text": [f"a tone of number {n}" for n in numbers],
            "bpm": list(numbers),
            "embedding": [[0.5] * 4 for _ in numbers],
        }
    )


def test_parquet_with_sounds_in_it(tmp_path, fakes):
    parquet.write_table(table(4), tmp_path / "train-00000-of-00001.parquet", row_group_size=3)
    parquet.write_table(table(2, 4), tmp_path / "validation-00000-of-00001.parquet")
    listing = read_listing(tmp_path, Reading())
    clips = listing.clips
    assert [c.split for c in clips] == ["train"] * 4 + ["valid"] * 2
    assert [c.captions for c in clips] == [(f"a tone of number {n}",) for n in range(6)]
    assert clips[1].id == "train-00000-of-00001/000001" and clips[1].fields == {"bpm": 1}
    assert any("columns that are no text or numbers left out: embedding" in note for note in listing.notes)
    for n, clip in enumerate(clips):
        (tmp_path / f"{n}.bin").write_bytes(sound(n))
        assert np.array_equal(read_wave(clip.path, 8000), read_wave(tmp_path / f"{n}.bin", 8000))
    cache = build_cache(clips, fakes.FakeCodec(), fakes.FakeText(), out=tmp_path / "cache", seconds=0.5)
    assert cache.meta["counts"]["clips"] == 6 and len(cache.rows("valid")) == 2
    assert len(load_manifest(tmp_path / "train-00000-of-00001.parquet", "none")) == 4


def test_folders_of_save_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    raw = datasets.Dataset(table(6).drop_columns(["embedding"]))
    raw.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=raw, test=raw.select(range(2))).save_to_disk(tmp_path / "two")
    one, two = load_manifest(tmp_path / "one"), load_manifest(tmp_path / "two")
    assert {c.split for c in one} == {"train", "valid"} and len(one) == 6
    assert [c.split for c in two] == ["train"] * 6 + ["test"] * 2
    assert two[7].id == "test/000001" and two[7].captions == ("a tone of number 1",)
    by_content = load_manifest(tmp_path / "two", reading=Reading(columns={"split": ""}))
    assert {c.split for c in by_content} == {"train", "valid"} and by_content[1].split == by_content[7].split
    assert np.array_equal(read_wave(two[7].path, 8000), read_wave(one[1].path, 8000))
    assert check_clips(one).clips == 6


def test_paths_in_a_table_lie_in_its_root(tmp_path, write_sine):
    write_sine("set/a.wav"), write_sine("outside.wav")
    (tmp_path / "set").mkdir(exist_ok=True)
    for name, says in (("a.wav", None), ("../outside.wav", "leads out of"), ("gone.wav", "does not exist|unreadable")):
        cells = {"path cells": [{"bytes": None, "path": name}], "path texts": [name]}
        for cell in cells.values():
            parquet.write_table(arrow.table({"audio": cell, "caption": ["x"]}), tmp_path / "set" / "m.parquet")
            listing = read_listing(tmp_path / "set" / "m.parquet", Reading())
            if says is None:
                assert [c.path.name for c in listing.clips] == ["a.wav"]
            else:
                problems = [words for _, words in listing.bad_rows] + listing.missing
                problems += [bad["reason"] for bad in check_clips(listing.clips).bad]
                assert any(re.search(says, words) for words in problems), problems


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"text": ["x"]}, r"no column of sound files or of their paths \(columns: text\)"),
        ({"audio": [{"bytes": b"", "path": "a.wav"}], "note": ["x"]}, "no caption|no sound"),
        ({"audio": [{"array": [0.0], "sampling_rate": 8000}], "text": ["x"]}, "no column of sound files"),
    ],
)
def test_a_table_that_lacks_a_part(tmp_path, columns, says):
    parquet.write_table(arrow.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=says) as refused:
        load_manifest(tmp_path / "x.parquet")
    assert "\n" not in str(refused.value)


def test_a_parquet_that_is_none(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(table(3), path)
    good = path.read_bytes()
    for data in (b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", good[:100], good[:-1], b"x" * 1000, b"<html>"):
        path.write_bytes(data)
        with pytest.raises(UserError, match="cannot be read") as refused:
            load_manifest(path)
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="no such file"):
        load_manifest(tmp_path / "nowhere.parquet")


@QUICK
@given(data=st.data())
def test_any_change_of_a_parquet_is_read_or_refused(tmp_path, data):
    path = tmp_path / "x.parquet"
    parquet.write_table(table(3).drop_columns(["embedding"]), path, compression=None)
    changed = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(0, len(changed) - 1), st.integers(len(changed) - 900, len(changed) - 1)))
        changed[at] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    try:
        check_clips(load_manifest(path))
    except UserError as error:
        assert "\n" not in str(error)


def test_a_saved_set_that_points_elsewhere_is_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset(table(2)).save_to_disk(tmp_path / "set")
    datasets.DatasetDict(train=datasets.Dataset(table(2))).save_to_disk(tmp_path / "many")
    state = json.loads((tmp_path / "set" / "state.json").read_text())
    for files in ([{"filename": "../set/data-00000-of-00001.arrow"}], [{"filename": "/etc/passwd"}], [], [3], None):
        (tmp_path / "set" / "state.json").write_text(json.dumps(state | {"_data_files": files}))
        with pytest.raises(UserError, match="names no arrow files in its folder"):
            load_manifest(tmp_path / "set")
    (tmp_path / "set" / "state.json").write_text(json.dumps(state))
    (file,) = (tmp_path / "set").glob("*.arrow")
    whole = file.read_bytes()
    for data in (b"", whole[:200], b"x" * 500, whole[:-2000]):
        file.write_bytes(data)
        with pytest.raises(UserError, match="cannot be read"):
            load_manifest(tmp_path / "set")
    (tmp_path / "many" / "dataset_dict.json").write_text('{"splits": ["../set"]}')
    with pytest.raises(UserError, match="no list of splits"):
        load_manifest(tmp_path / "many")


def test_a_set_of_the_hub_is_asked_for_by_name(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, config, revision):
        asked.append((name, config, revision))
        return datasets.DatasetDict(validation=datasets.Dataset(table(2)))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    clips = load_manifest("hf:somebody/tones:small@main")
    assert asked == [("somebody/tones", "small", "main")]
    assert [c.split for c in clips] == ["valid", "valid"] and len(read_wave(clips[0].path, 8000)) == 4000
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no\nroute")))
    with pytest.raises(UserError, match="hf:somebody/tones: not to be had from the hub") as refused:
        load_manifest("hf:somebody/tones")
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="no name of a data set"):
        load_manifest("hf:../../etc")


def test_a_name_that_is_no_folder_reaches_for_no_network(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="no such file or folder; hint: check the path, or hf:somebody/tones"):
        load_manifest("somebody/tones")


def test_a_missing_library_is_named_with_its_extra(monkeypatch, tmp_path):
    parquet.write_table(table(2), tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"segue-audio\[datasets\]"):
        load_manifest(tmp_path / "x.parquet")
