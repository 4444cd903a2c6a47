"""Lists in the layouts that public sets and other trainers use, read as they are."""

from __future__ import annotations

import json
import os

import pytest

from segue.data.manifest import load_manifest, read_listing
from segue.data.reading import Reading
from segue.types import UserError


@pytest.fixture
def folder(tmp_path, write_sine):
    """Four sounds of 1 s, one in a folder of its own."""
    for n, name in enumerate(("a.wav", "b.flac", "deep/c.wav", "Y-abc_12.wav")):
        write_sine(name, hz=300 + 50 * n, seconds=1.0)
    return tmp_path


def said(source, **reading) -> list[tuple]:
    listing = read_listing(source, Reading(**reading))
    assert not listing.bad_rows and not listing.missing, listing
    return [(c.path.name, c.captions, c.split, c.start_sec, c.length_sec) for c in listing.clips]


WHOLE = ("", 0.0, None)


@pytest.mark.parametrize(
    ("name", "text", "first"),
    [
        ("hf/metadata.csv", "file_name,text\n../a.wav,x\n", None),  # climbs, unless --root names the folder above
        ("metadata.csv", "file_name,text\na.wav,a low tone\n", ("a.wav", ("a low tone",), *WHOLE)),
        ("metadata.jsonl", '{"file_name": "a.wav", "prompt": "low", "bpm": 3}', ("a.wav", ("low",), *WHOLE)),
        (
            "clotho.csv",
            "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\na.wav,one,two,three,four,\n",
            ("a.wav", ("one", "two", "three", "four"), *WHOLE),
        ),
        (
            "nemo.json",
            '{"audio_filepath": "a.wav", "duration": 1.0, "text": "one"}\n'
            '{"audio_filepath": "b.flac", "offset": 0.25, "duration": 0.5, "text": "two"}\n',
            ("a.wav", ("one",), *WHOLE),
        ),
        (
            "tango.json",
            '{"dataset": "x", "location": "a.wav", "captions": "a low tone"}\n',
            ("a.wav", ("a low tone",), *WHOLE),
        ),
        ("audioldm.json", '{"data": [{"wav": "a.wav", "caption": "low"}]}', ("a.wav", ("low",), *WHOLE)),
        (
            "wavcaps.json",
            '{"num_captions_per_audio": 1, "data": [{"id": "a", "caption": "low", "duration": 1.0}]}',
            ("a.wav", ("low",), *WHOLE),
        ),
        ("wavcaps2.json", '{"data": [{"id": "Y-abc_12.wav", "caption": "low"}]}', ("Y-abc_12.wav", ("low",), *WHOLE)),
        ("array.json", '[\n {"path": "a.wav", "captions": ["x", "y"]}\n]', ("a.wav", ("x", "y"), *WHOLE)),
        (
            "musiccaps.csv",
            'ytid,start_s,end_s,aspect_list,caption\n-abc_12,30,40,"[\'pop\']",a slow song\n',
            ("Y-abc_12.wav", ("a slow song",), *WHOLE),
        ),
        ("audiocaps.csv", "audiocap_id,youtube_id,start_time,caption\n7,-abc_12,30,rain\n",
         ("Y-abc_12.wav", ("rain",), *WHOLE)),
        ("split.csv", "filename;split;description\na.wav;validation;low\n", ("a.wav", ("low",), "valid", 0.0, None)),
        ("excel.csv", 'sep=;\npath;caption\na.wav;"low; soft"\n', ("a.wav", ("low; soft",), *WHOLE)),
        ("pandas.csv", ",File Name,Captions\n0,a.wav,\"['x', 'y']\"\n", ("a.wav", ("x", "y"), *WHOLE)),
        ("windows.csv", "path,caption\ndeep\\c.wav,low\n", ("c.wav", ("low",), *WHOLE)),
        ("starts.csv", "path,start_s,end_s,caption\na.wav,0.25,0.75,low\n", ("a.wav", ("low",), "", 0.25, 0.5)),
        ("times.csv", "path,start_time,end_time,caption\na.wav,0:00.25,0:00:01,low\n", ("a.wav", ("low",), "", 0.25, 0.75)),
        ("onsets.csv", "path,onset,offset,caption\na.wav,0.25,0.5,low\n", ("a.wav", ("low",), "", 0.25, 0.25)),
        ("ms.csv", "path,start_ms,end_ms,caption\na.wav,250,500,low\n", ("a.wav", ("low",), "", 0.25, 0.25)),
        ("ends.csv", "path,end,caption\na.wav,0.5,low\n", ("a.wav", ("low",), "", 0.0, 0.5)),
        ("empty.csv", "path,start,end,caption\na.wav,,,low\n", ("a.wav", ("low",), *WHOLE)),
    ],
)  # fmt: skip
def test_layouts(folder, name, text, first):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    if first is None:
        listing = read_listing(path, Reading())
        assert not listing.clips and "leads out of" in listing.bad_rows[0][1]
        path.write_text(text.replace("../", ""))
        assert said(path, root=folder) == [("a.wav", ("x",), *WHOLE)]
    else:
        assert said(path)[0] == first


def test_nemo_offsets_cut_and_lengths_alone_do_not(folder):
    (folder / "m.json").write_text(
        '{"audio_filepath": "a.wav", "duration": 1.0, "text": "one"}\n'
        '{"audio_filepath": "a.wav", "offset": 0.25, "duration": 0.5, "text": "two"}\n'
    )
    clips = read_listing(folder / "m.json", Reading()).clips
    assert [(c.id, c.start_sec, c.length_sec) for c in clips] == [("a", 0.0, None), ("a@0.25-0.75", 0.25, 0.5)]
    assert clips[0].fields == {"duration": 1.0}


def test_a_video_that_is_there_whole_is_cut(folder, write_sine):
    write_sine("wxyz.wav", seconds=30)
    (folder / "m.csv").write_text("ytid,start_s,end_s,caption\nwxyz,10,20,a song\n")
    assert said(folder / "m.csv") == [("wxyz.wav", ("a song",), "", 10.0, 10.0)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_that_can_be_told_are_read(folder, encoding, end):
    table = end.join(["path,caption", "a.wav,größer als zuvor", "b.flac,Ω ein zweiter Ton", ""])
    (folder / "m.csv").write_bytes(table.encode(encoding))
    assert [c[1] for c in said(folder / "m.csv")] == [("größer als zuvor",), ("Ω ein zweiter Ton",)]
    rows = end.join(json.dumps({"path": p, "caption": "größer"}, ensure_ascii=False) for p in ("a.wav", "b.flac"))
    (folder / "m.jsonl").write_bytes(rows.encode(encoding))
    assert len(said(folder / "m.jsonl")) == 2
    (folder / "a.txt").write_bytes(f"eins{end}zwei, größer{end}".encode(encoding))
    for name in ("b.flac", "deep/c.wav", "Y-abc_12.wav"):
        (folder / name).unlink()
    (folder / "m.csv").unlink(), (folder / "m.jsonl").unlink()
    assert said(folder) == [("a.wav", ("eins", "zwei, größer"), *WHOLE)]


def test_other_encodings_are_named_with_an_option_that_reads_them(folder):
    for name in ("b.flac", "deep/c.wav", "Y-abc_12.wav"):
        (folder / name).unlink()
    for encoding, text, hinted in (("cp1252", "it’s größer", "cp1252"), ("shift_jis", "高い音", "NAME")):
        (folder / "a.txt").write_bytes(text.encode(encoding))
        with pytest.raises(UserError, match=f"a.txt: not UTF-8 text; hint: add --encoding {hinted}"):
            load_manifest(folder)
        assert said(folder, encoding=encoding) == [("a.wav", (text,), *WHOLE)]
    (folder / "a.txt").write_text("größer", encoding="utf-8")  # what is UTF-8 stays that
    assert said(folder, encoding="cp1252") == [("a.wav", ("größer",), *WHOLE)]
    for unknown in ("klingon", "hex"):
        (folder / "a.txt").write_bytes(b"\xff")
        with pytest.raises(UserError, match="no such text encoding"):
            load_manifest(folder, reading=Reading(encoding=unknown))


def test_captions_beside_in_every_form(tmp_path, write_sine):
    for n, name in enumerate(("a", "b", "c", "d", "E")):
        write_sine(f"{name}.wav", hz=300 + n)
    (tmp_path / "a.TXT").write_text("in capitals")
    (tmp_path / "b_prompt.txt").write_text("funk, bass")
    (tmp_path / "b_lyrics.txt").write_text("la la la")
    (tmp_path / "c.json").write_text('{"description": "as audiocraft has it", "bpm": null, "duration": 3.0}')
    (tmp_path / "d.wav.json").write_text('{"caption_1": "one", "caption_2": "two"}')
    (tmp_path / "e.txt").write_text("small beside capitals")
    listing = read_listing(tmp_path, Reading())
    assert {c.id: c.captions for c in listing.clips} == {
        "a": ("in capitals",),
        "b": ("funk, bass",),
        "c": ("as audiocraft has it",),
        "d": ("one", "two"),
        "E": ("small beside capitals",),
    }
    assert listing.notes == ["1 text file (b_lyrics.txt) beside no sound of that name, left out"]
    (tmp_path / "m.jsonl").write_text('{"path": "c.wav"}\n')  # as audiocraft's data.jsonl
    assert [c.captions for c in read_listing(tmp_path / "m.jsonl", Reading()).clips] == [("as audiocraft has it",)]


def test_an_audiofolder_of_splits(tmp_path, write_sine):
    for n, split in enumerate(("train", "test", "validation")):
        write_sine(f"{split}/x{n}.wav", hz=300 + n)
        (tmp_path / split / "metadata.csv").write_text(f"file_name,text\nx{n}.wav,tone {n}\n")
    write_sine("train/unlisted.wav")
    listing = read_listing(tmp_path, Reading())
    assert [(c.path.name, c.split) for c in listing.clips] == [
        ("x1.wav", "test"),
        ("x0.wav", "train"),
        ("x2.wav", "valid"),
    ]
    assert any("1 sound (unlisted.wav) not in" in note for note in listing.notes)


def test_columns_by_option(folder):
    (folder / "m.csv").write_text("clip,begin,said,noted,fold,ends\na.wav,0.5,one,two,test,soon\n")
    with pytest.raises(UserError, match=r"no column 'path' or the like \(columns: clip, begin.*--column path=NAME"):
        read_listing(folder / "m.csv", Reading())
    columns = {"path": "clip", "caption": "said,noted", "split": "fold"}
    assert said(folder / "m.csv", columns=columns) == [("a.wav", ("one", "two"), "test", 0.5, None)]
    assert said(folder / "m.csv", columns=columns | {"start": ""}) == [("a.wav", ("one", "two"), "test", 0.0, None)]
    with pytest.raises(UserError, match="no column 'nothing', which --column caption= names"):
        read_listing(folder / "m.csv", Reading(columns={"path": "clip", "caption": "nothing"}))
    with pytest.raises(UserError, match="no such role; hint: one of path, caption"):
        Reading(columns={"sound": "clip"})


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ("0.5,0.25", "a stretch from 0.5 s that ends at 0.25 s"),
        ("-1,1", "start must be a time in seconds from 0 on, not '-1'"),
        ("nan,1", "start must be a time"),
        ("0,inf", "end must be a time"),
        ("x,1", "hint: if it means something else, add --column start= --column end="),
        ("1:2:3:4,9", "start must be a time"),
        ("1e999,9", "start must be a time"),
    ],
)
def test_stretches_that_are_none_are_named_by_line(folder, cells, says):
    (folder / "m.csv").write_text(f"path,start,end,caption\na.wav,{cells},x\n")
    with pytest.raises(UserError, match="line 2: ") as refused:
        load_manifest(folder / "m.csv")
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_json_that_is_broken_is_named_by_entry(folder):
    for text, says in (
        ('[{"path": "a.wav", "caption": "x"}, {"path": ]', r"entry 2: not JSON"),
        ('[{"path": "a.wav", "caption": "x"}', r"entry 2: not JSON"),
        ('[{"path": "a.wav", "caption": "x"}, 3]', r"entry 2: not a JSON object"),
        ('[{"path": "a.wav", "caption": "%s"}]' % ("x" * 3_000_000), "entry 1: longer than 1,048,576"),
        ("[" * 200_000, "no JSON list of clips"),
        ("[{" * 200_000, "entry 1: not JSON"),
        ('{"sampling_rate": 3}', "no JSON list|no path"),
        ("{", "no JSON list of clips"),
    ):
        (folder / "m.json").write_text(text)
        with pytest.raises(UserError, match=says) as refused:
            load_manifest(folder / "m.json")
        assert "\n" not in str(refused.value)


def test_a_large_array_is_read_entry_by_entry(folder):
    rows = [{"path": "a.wav", "caption": f"a tone {n}", "more": "x" * 200} for n in range(5000)]
    (folder / "m.json").write_text(json.dumps({"about": "x", "data": rows}, indent=1))
    clips = read_listing(folder / "m.json", Reading()).clips
    assert [c.captions[0] for c in clips] == [f"a tone {n}" for n in range(5000)]
    assert [c.id for c in clips[:3]] == ["a", "a#2", "a#3"]


def test_names_that_are_composed_otherwise_or_are_no_utf8(tmp_path, write_sine):
    write_sine("cafe\u0301.wav")  # as macOS keeps it
    (tmp_path / "m.csv").write_text("path,caption\ncaf\u00e9.wav,x\n", encoding="utf-8")
    (clip,) = load_manifest(tmp_path / "m.csv")
    assert clip.path.exists() and clip.id == "caf\u00e9"
    (tmp_path / "m.csv").unlink()
    os.rename(os.fsencode(clip.path), os.fsencode(tmp_path) + b"/caf\xe9.wav")
    (clip,) = load_manifest(tmp_path, "filename")
    assert clip.id == "caf\\udce9" and clip.captions == ("caf",)


def test_one_bad_row_does_not_hide_the_others(folder):
    rows = ["path,caption", "a.wav,x", "b.flac,", "nowhere.wav,y", "../out.wav,z", "deep/c.wav,w"]
    (folder / "m.csv").write_text("\n".join(rows))
    listing = read_listing(folder / "m.csv", Reading())
    assert [c.path.name for c in listing.clips] == ["a.wav", "nowhere.wav", "c.wav"]
    assert [where.rsplit(", ")[1] for where, _ in listing.bad_rows] == ["line 3", "line 5"]
    with pytest.raises(UserError, match=r"line 3: an empty caption.*\(2 more entries have faults\)"):
        load_manifest(folder / "m.csv")
