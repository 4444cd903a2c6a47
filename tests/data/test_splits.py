"""Held-out clips are held out: by content, in every command alike."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import soundfile

from segue.data.check import check_clips
from segue.data.clip import Clip
from segue.data.content import content_hash
from segue.data.encoding import build_cache
from segue.data.manifest import load_manifest, read_listing
from segue.data.reading import Reading
from segue.data.splits import held_out_first, split_clips


def noise(path, seconds=0.2, seed=0, rate_hz=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.3 * np.random.default_rng(seed).standard_normal(round(seconds * rate_hz))
    soundfile.write(path, samples.clip(-1, 1), rate_hz, subtype="PCM_16")
    return path


def rows(cache) -> dict[str, str]:
    return {cache.row(i)["id"]: cache.row(i)["split"] for i in range(len(cache))}


def encode(fakes, source, out, **reading):
    clips = read_listing(source, Reading(**reading)).clips
    return build_cache(clips, fakes.FakeCodec(), fakes.FakeText(), out=out, seconds=0.2, skip_bad=True)


def test_encode_and_the_other_commands_hold_out_the_same_clips(tmp_path, fakes):
    for n in range(60):
        noise(tmp_path / "set" / f"tone{'abcdefgh'[n % 8]}{n}.wav", seed=n)
    with_captions = encode(fakes, tmp_path / "set", tmp_path / "cache", captions="filename")
    without = {clip.id: clip.split for clip in load_manifest(tmp_path / "set", "none")}
    assert rows(with_captions) == without and set(without.values()) == {"train", "valid"}
    shutil.copytree(tmp_path / "set", tmp_path / "renamed" / "deeper")
    again = {clip.path.name: clip.split for clip in load_manifest(tmp_path / "renamed", "none")}
    assert again == {f"{name}.wav": split for name, split in without.items()}


def test_the_validation_clip_is_one_that_can_be_used(tmp_path, fakes):
    """Bad files are left out before the split: the only validation clip is never one that cannot be read."""
    for n in range(6):
        noise(tmp_path / "set" / f"tone {n}.wav", seed=n)
    clips = load_manifest(tmp_path / "set", "filename")
    (held_out,) = [clip for clip in clips if clip.split == "valid"]
    held_out.path.write_bytes(held_out.path.read_bytes()[:1000])
    kept = rows(encode(fakes, tmp_path / "set", tmp_path / "cache", captions="filename"))
    assert len(kept) == 5 and sorted(kept.values()).count("valid") == 1
    report = check_clips(read_listing(tmp_path / "set", Reading("filename")).clips)
    assert report.splits == {"train": 4, "valid": 1, "test": 0}


def test_rows_of_one_content_follow_the_split_that_one_of_them_names(tmp_path):
    noise(tmp_path / "a.wav", seed=1)
    shutil.copy(tmp_path / "a.wav", tmp_path / "copy.wav")
    for n in range(8):
        noise(tmp_path / f"b{n}.wav", seed=9 + n)
    listed = [{"path": "a.wav", "split": "test"}, {"path": "copy.wav"}, *({"path": f"b{n}.wav"} for n in range(8))]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(row | {"caption": "x"}) for row in listed))
    splits = {clip.id: clip.split for clip in load_manifest(tmp_path / "m.jsonl")}
    assert splits["a"] == splits["copy"] == "test"


def test_a_list_that_parts_one_content_is_told_so_and_can_be_mended(tmp_path, fakes, capsys):
    noise(tmp_path / "a.wav", seed=1)
    shutil.copy(tmp_path / "a.wav", tmp_path / "copy.wav")
    noise(tmp_path / "b.wav", seed=2)
    text = "path,caption,split\na.wav,x,train\ncopy.wav,y,valid\nb.wav,z,train\n"
    (tmp_path / "m.csv").write_text(text)
    encode(fakes, tmp_path / "m.csv", tmp_path / "cache")
    assert "1 sounds (2 rows) stand in several splits by name" in capsys.readouterr().err
    report = check_clips(read_listing(tmp_path / "m.csv", Reading()).clips)
    assert any("a in train, copy in valid" in note for note in report.notes)
    clips = read_listing(tmp_path / "m.csv", Reading()).clips
    divided = held_out_first(clips, [content_hash(clip.path) for clip in clips])
    assert [clip.split for clip in divided] == ["valid", "valid", "train"]


def test_one_long_recording_is_split_in_time_with_a_gap(tmp_path, fakes, capsys):
    noise(tmp_path / "set" / "take one.wav", seconds=60)
    cache = encode(fakes, tmp_path / "set", tmp_path / "cache", captions="filename")
    assert "one recording of 60 s: held out from 57.0 s on, behind a gap of 3.0 s" in capsys.readouterr().err
    ends = {}
    for i in range(len(cache)):
        row = cache.row(i)
        ends.setdefault(row["split"], []).append((row["start_sec"], row["start_sec"] + row["length_sec"]))
    assert max(end for _, end in ends["train"]) == pytest.approx(54.0)
    assert min(start for start, _ in ends["valid"]) == pytest.approx(57.0)
    assert max(end for _, end in ends["valid"]) == pytest.approx(60.0)
    assert [(c.id, c.split) for c in load_manifest(tmp_path / "set", "none")] == [
        ("take one", "train"),
        ("take one#valid", "valid"),
    ]


def test_excerpts_of_one_long_recording_are_split_in_time_where_they_are_many(tmp_path):
    noise(tmp_path / "long.wav", seconds=60)
    for count, wanted in ((2, {"train"}), (30, {"train", "valid"})):
        step = 60 / count
        lines = [f"long.wav,{n * step:.3f},{(n + 1) * step:.3f},part {n}" for n in range(count)]
        (tmp_path / "m.csv").write_text("path,start,end,caption\n" + "\n".join(lines))
        clips = load_manifest(tmp_path / "m.csv")
        assert {clip.split for clip in clips} == wanted
    last_train = max(c.start_sec + c.length_sec for c in clips if c.split == "train")
    first_valid = min(c.start_sec for c in clips if c.split == "valid")
    assert first_valid - last_train >= 3.0 - 1e-9


def test_a_set_without_a_validation_clip_is_noticed_before_it_is_encoded(tmp_path, fakes, capsys):
    noise(tmp_path / "set" / "short one.wav")
    seen = []

    class Watched(fakes.FakeCodec):
        def encode(self, wave):
            seen.append(capsys.readouterr().err)
            return super().encode(wave)

    clips = read_listing(tmp_path / "set", Reading("filename")).clips
    build_cache(clips, Watched(), fakes.FakeText(), out=tmp_path / "cache", seconds=0.2)
    assert "no validation clip: segue train needs one; hint: add sounds" in seen[0]
    report = check_clips(clips)
    assert any("no validation clip" in note for note in report.notes)


def test_stretches_outside_their_file_are_named(tmp_path, fakes):
    noise(tmp_path / "a.wav", seconds=1.0)
    noise(tmp_path / "b.wav", seconds=1.0, seed=1)
    rows = ["a.wav,0.5,1.05,x", "a.wav,0.5,1.5,beyond", "b.wav,2,3,behind", "b.wav,0.999,1,short", "b.wav,0,0.5,y"]
    (tmp_path / "m.csv").write_text("path,start,end,caption\n" + "\n".join(rows))
    report = check_clips(read_listing(tmp_path / "m.csv", Reading()).clips)
    assert [bad["reason"].split(" (")[0] for bad in report.bad] == [
        "its stretch from 0.5 to 1.5 s lies outside the file of 1.00 s",
        "its stretch from 2 to 3 s lies outside the file of 1.00 s",
        "too short: a stretch of 1.0 ms",
    ]
    cache = encode(fakes, tmp_path / "m.csv", tmp_path / "cache")
    assert sum(cache.row(i)["length_sec"] for i in range(len(cache))) == pytest.approx(0.5 + 0.5)
    assert len(cache.meta["skipped"]) == 3


def test_hashes_are_computed_once(tmp_path, monkeypatch):
    from segue.data import content

    path = noise(tmp_path / "a.wav")
    first = content_hash(path)
    monkeypatch.setattr(content, "sha256", lambda *_: pytest.fail("hashed again"))
    assert content_hash(path) == first
    monkeypatch.undo()
    noise(path, seed=2, seconds=0.3)
    assert content_hash(path) != first


def test_nothing_is_hashed_where_every_clip_names_its_split(small_set, monkeypatch):
    from segue.data import manifest

    monkeypatch.setattr(manifest, "content_hashes", lambda paths: {} if not paths else pytest.fail("hashed"))
    assert {clip.split for clip in load_manifest(small_set)} == {"train", "valid", "test"}


def test_a_split_depends_on_nothing_but_its_own_content():
    clips = [Clip(str(n), Path(f"{n}.wav"), ("x",), "") for n in range(300)]
    contents = [sha256(str(n).encode()).hexdigest() for n in range(300)]
    every = split_clips(clips, contents, lambda _: 1.0).clips
    some = split_clips(clips[100:], contents[100:], lambda _: 1.0).clips
    assert every[100:] == some
    assert 4 <= sum(clip.split == "valid" for clip in every) <= 30
