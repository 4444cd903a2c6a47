"""Lists and folders of other machines and programs."""

import json
import os

import pytest

from segue.cli.main import main
from segue.data.manifest import read_listing
from segue.data.reading import Reading
from segue.types import UserError


def test_a_pipe_named_by_a_list_or_as_one_is_refused_at_once(tmp_path, write_sine, capsys):
    write_sine("b.wav", caption="x")
    os.mkfifo(tmp_path / "a.wav")
    os.mkfifo(tmp_path / "list.csv")
    with pytest.raises(UserError, match=r"list\.csv: no file but a folder, pipe"):
        read_listing(tmp_path / "list.csv", Reading())
    (tmp_path / "l.csv").write_text("path,caption\na.wav,x\nb.wav,y\n")
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(tmp_path / "l.csv"), "--text", "none"])
    assert ended.value.code == 2 and "a.wav: unreadable: no file but a folder, pipe" in capsys.readouterr().out


def test_names_with_control_characters_are_listed_and_read(tmp_path, write_sine):
    names = ["new\nline.wav", "tab\t.wav", "bell\x07.wav"]
    for hz, name in enumerate(names, 300):
        write_sine(f"set/{name}", hz=hz, caption="x")
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(tmp_path / "set"), "--text", "none", "--fix", str(tmp_path / "clean.jsonl")])
    assert ended.value.code == 0
    listing = read_listing(tmp_path / "clean.jsonl", Reading())
    assert sorted(clip.path.name for clip in listing.clips) == sorted(names) and not listing.bad_rows


def test_paths_of_another_machine_are_found_below_the_root_that_is_named(tmp_path, write_sine):
    write_sine("sounds/deep/a.wav")
    write_sine("sounds/b.wav")
    rows = ["/data/sounds/deep/a.wav", "C:\\stuff\\b.wav", "/etc/../b.wav", "/nowhere/c.wav"]
    list_ = tmp_path / "lists" / "l.jsonl"
    list_.parent.mkdir()
    list_.write_text("".join(json.dumps({"path": row, "caption": "x"}) + "\n" for row in rows))
    listing = read_listing(list_, Reading(root=tmp_path / "sounds"))
    assert [clip.path for clip in listing.clips][:2] == [tmp_path / "sounds/deep/a.wav", tmp_path / "sounds/b.wav"]
    assert len(listing.bad_rows) == 2 and "leads out" in listing.bad_rows[0][1]
    assert len(read_listing(list_, Reading()).bad_rows) >= 2


@pytest.mark.parametrize(
    ("start", "end"), [("startTime", "endTime"), ("segment_start", "segment_end"), ("start_second", "end_second")]
)
def test_more_names_of_stretches(tmp_path, write_sine, start, end):
    write_sine("a.wav", seconds=1.0)
    (tmp_path / "l.csv").write_text(f"path,caption,{start},{end}\na.wav,x,0.25,0.5\n")
    (clip,) = read_listing(tmp_path / "l.csv", Reading()).clips
    assert (clip.start_sec, clip.length_sec) == (0.25, 0.25)


def test_a_column_that_may_be_a_start_is_named_where_it_is_not_taken_for_one(tmp_path, write_sine):
    write_sine("a.wav", seconds=1.0)
    (tmp_path / "l.csv").write_text("path,caption,start_frame\na.wav,x,100\n")
    (note,) = read_listing(tmp_path / "l.csv", Reading()).notes
    assert "'start_frame' is not taken for the start" in note and "--column start=start_frame" in note
    assert not read_listing(tmp_path / "l.csv", Reading(columns={"start": ""})).notes


def test_no_western_encoding_is_guessed_for_two_byte_scripts(tmp_path, write_sine):
    write_sine("a.wav")
    (tmp_path / "l.csv").write_bytes("path,caption\na.wav,雨声和鸟鸣\n".encode("gbk"))
    with pytest.raises(UserError, match="--encoding NAME"):
        read_listing(tmp_path / "l.csv", Reading())
    assert read_listing(tmp_path / "l.csv", Reading(encoding="gbk")).clips[0].captions == ("雨声和鸟鸣",)
