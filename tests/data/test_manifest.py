from __future__ import annotations

import json
import os
from pathlib import PurePosixPath

import pytest

from segue.data.clip import caption_from_name
from segue.data.manifest import load_manifest
from segue.types import UserError


def refusal(source, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        load_manifest(source, **kwargs)
    line = str(caught.value)
    assert "\n" not in line and ("hint" in line or "must be" in line)
    return line


def jsonl(folder, *rows):
    folder.mkdir(exist_ok=True)
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "manifest.jsonl").write_text(text, encoding="utf-8")
    return folder / "manifest.jsonl"


def test_a_folder_with_captions_beside(tmp_path, write_sine):
    write_sine("a.wav", caption="a tone")
    write_sine("b/c.flac", caption="\ufeffein hoher Ton, größer\n\n a   second wording \n")
    (tmp_path / "b" / "._c.flac").write_bytes(b"left by a file manager")
    (tmp_path / "notes.md").write_text("no sound")
    first, second = load_manifest(tmp_path)
    assert (first.id, first.captions, first.path) == ("a", ("a tone",), tmp_path / "a.wav")
    assert (second.id, second.captions) == ("b/c", ("ein hoher Ton, größer", "a second wording"))
    assert {first.split, second.split} == {"train", "valid"}  # a set without splits gets a validation clip


def test_jsonl_and_csv_say_the_same(tmp_path, write_sine):
    for name in ("x/1.wav", "x/2.ogg"):
        write_sine(name)
    jsonl(
        tmp_path,
        {"path": "x/1.wav", "caption": "low, soft", "split": "test", "bpm": 90},
        "",
        {"path": "x/2.ogg", "captions": ["one", "two"], "id": "second"},
    )
    (tmp_path / "m.csv").write_text('path,caption,split,id,bpm\nx/1.wav,"low, soft",test,,90\nx/2.ogg,one,,second,\n')
    for source in (tmp_path, tmp_path / "manifest.jsonl"):
        a, b = load_manifest(source)
        assert (a.id, a.captions, a.split, a.fields) == ("x/1", ("low, soft",), "test", {"bpm": 90})
        assert (b.id, b.captions) == ("second", ("one", "two"))
    a, b = load_manifest(tmp_path / "m.csv")
    assert (a.id, a.captions, a.split, a.fields) == ("x/1", ("low, soft",), "test", {"bpm": "90"})
    assert (b.id, b.captions, b.fields) == ("second", ("one",), {})


def test_default_splits_depend_on_the_content_alone(tmp_path):
    """What a file is called, and what else comes or goes, moves no clip to another split."""
    for n in range(400):
        (tmp_path / f"tone {n}.wav").write_bytes(b"any content, since nothing is decoded here %d" % n)
    splits = {c.id: c.split for c in load_manifest(tmp_path, "filename")}
    assert 8 <= sum(split == "valid" for split in splits.values()) <= 35
    for n in range(0, 400, 2):
        (tmp_path / f"tone {n}.wav").unlink()
    for n in range(1, 400, 2):
        (tmp_path / f"tone {n}.wav").rename(tmp_path / f"renamed {n}.wav")
    fewer = {c.id.replace("renamed", "tone"): c.split for c in load_manifest(tmp_path, "filename")}
    assert len(fewer) == 200 and all(splits[i] == split for i, split in fewer.items())


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("drums/kick_01.wav", "kick, drums"),
        ("bd_haus.flac", "bd haus"),
        ("Guitar-Loop03.wav", "guitar loop"),
        ("snare/snare_soft_2.wav", "snare soft"),
        ("FilteredSnare_F#3.wav", "filtered snare F#3"),
        ("piano/c4.wav", "C4, piano"),
        ("01.wav", ""),
    ],
)
def test_captions_from_names(name, caption):
    assert caption_from_name(PurePosixPath(name)) == caption


def test_names_without_words_are_refused(tmp_path, write_sine):
    write_sine("01.wav")
    assert "01.wav" in refusal(tmp_path, captions="filename")


def test_missing_and_empty_folders(tmp_path):
    assert "no such file or folder" in refusal(tmp_path / "nowhere")
    assert "holds no sounds" in refusal(tmp_path)
    (tmp_path / "a.txt").write_text("a caption alone")
    assert "holds no sounds" in refusal(tmp_path)
    assert "not a folder" in refusal(tmp_path / "a.txt")
    assert "holds no sounds" in refusal(jsonl(tmp_path / "m", ""))


def test_captions_missing_empty_or_in_another_encoding(tmp_path, write_sine):
    path = write_sine("a.wav")
    assert "a.wav: no caption file" in refusal(tmp_path)
    path.with_suffix(".txt").write_text(" \n\n")
    assert "a.txt: an empty caption" in refusal(tmp_path)
    path.with_suffix(".txt").write_bytes("ein großer Ton".encode("latin-1"))
    assert "a.txt: not UTF-8" in refusal(tmp_path)
    path.with_suffix(".txt").unlink()
    os.mkdir(path.with_suffix(".txt"))
    assert "a.wav: no caption file" in refusal(tmp_path)


def test_duplicate_ids(tmp_path, write_sine):
    write_sine("a.wav", caption="x")
    write_sine("a.flac")
    # Files of one name keep their suffixes; ids of a list are its author's.
    assert [clip.id for clip in load_manifest(tmp_path)] == ["a.flac", "a.wav"]
    rows = [{"path": p, "caption": "x", "id": "same"} for p in ("a.wav", "a.flac")]
    assert "id 'same'" in refusal(jsonl(tmp_path, *rows))


def test_no_path_leaves_the_root(tmp_path, write_sine):
    outside = write_sine("outside.wav", caption="x")
    root = tmp_path / "root"
    for name in ("../outside.wav", str(outside), "a/../../outside.wav"):
        assert "leads out of" in refusal(jsonl(root, {"path": name, "caption": "x"}))
    (root / "link.wav").symlink_to(outside)
    assert "leads out of" in refusal(jsonl(root, {"path": "link.wav", "caption": "x"}))
    (root / "manifest.jsonl").unlink()
    (root / "link.txt").write_text("x")
    assert "link.wav: leads out of" in refusal(root)
    (root / "link.wav").unlink()
    (root / "linked").symlink_to(tmp_path)
    assert "leads out of" in refusal(jsonl(root, {"path": "linked/outside.wav", "caption": "x"}))


def test_a_link_inside_the_root_is_fine(tmp_path, write_sine):
    path = write_sine("a.wav", caption="x")
    (tmp_path / "b.wav").symlink_to(path)
    (tmp_path / "b.txt").write_text("y")
    assert [c.id for c in load_manifest(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ('{"path": ', "line 2: not JSON"),
        ('["a.wav", "x"]', "line 2: not a JSON object"),
        ({"caption": "x"}, "line 2: no path"),
        ({"path": 3, "caption": "x"}, "line 2: no path"),
        ({"path": "b.wav", "caption": "x"}, "line 2: b.wav does not exist"),
        ({"path": ".", "caption": "x"}, "line 2: . does not exist"),
        ({"path": "a.wav"}, "line 2: no caption"),
        ({"path": "a.wav", "caption": "  "}, "line 2: an empty caption"),
        ({"path": "a.wav", "captions": ["x", ""]}, "line 2: an empty caption"),
        ({"path": "a.wav", "captions": []}, "line 2: an empty caption"),
        ({"path": "a.wav", "caption": 7}, "line 2: caption must be text"),
        ({"path": "a.wav", "caption": "x", "split": "some"}, "line 2: split must be"),
        ({"path": "a.wav", "caption": "x", "id": ["a"]}, "line 2: id must be text"),
    ],
)
def test_bad_rows_are_named_by_their_line(tmp_path, write_sine, row, complaint):
    write_sine("a.wav")
    assert complaint in refusal(jsonl(tmp_path, {"path": "a.wav", "caption": "x", "id": "first"}, row))


def test_bad_csv(tmp_path, write_sine):
    write_sine("a.wav")
    table = tmp_path / "m.csv"
    for text, complaint in (
        ("noise,caption\na.wav,x\n", "no column 'path' or the like (columns: noise, caption)"),
        ("", "no column 'path'"),
        ("path,caption\na.wav,low, soft\n", "line 2: more cells"),
        ("path,caption\na.wav\n", "line 2: fewer cells"),
        ("path,caption\na.wav,\n", "line 2: an empty caption"),
    ):
        table.write_text(text)
        assert complaint in refusal(table)
    table.write_bytes("path,caption\na.wav,größer\n".encode("latin-1"))
    assert "not UTF-8" in refusal(table)
