"""`segue data check --fix` writes a list of what can be used, which is read again as it was meant."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from segue.cli.main import main
from segue.data.fix import write_clean_list
from segue.data.manifest import load_manifest, read_listing
from segue.data.reading import Reading


def check(capsys, *words) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", *map(str, words), "--text", "none"])
    return ended.value.code, capsys.readouterr().err


@pytest.fixture
def messy(tmp_path, write_sine):
    """A list with a bad file, a missing one, bad rows, stretches, fields, a content in two splits."""
    folder = tmp_path / "my set"
    for n in range(6):
        write_sine(f"my set/s{n}.wav", hz=300 + n, seconds=1.0)
    shutil.copy(folder / "s0.wav", folder / "copy of 0.wav")
    (folder / "s5.wav").write_bytes(b"no sound")
    rows = [
        {"path": "s0.wav", "caption": "zero", "split": "train"},
        {"path": "copy of 0.wav", "caption": "größer", "split": "valid", "bpm": 90},
        {"path": "s1.wav", "captions": ["one", "eins"], "start": 0.25, "end": 0.75, "id": "mid"},
        {"path": "s1.wav", "captions": ["one", "eins"], "start": 0.5, "end": 3},
        {"path": "s2.wav", "caption": ""},
        {"path": "nowhere.wav", "caption": "x"},
        {"path": "../out.wav", "caption": "x"},
        {"path": "s5.wav", "caption": "x"},
        "not json",
        {"path": "s3.wav", "caption": "three"},
    ]
    (folder / "m.jsonl").write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return folder


def wanted(clips) -> dict:
    return {c.id: (c.path.name, c.captions, c.fields, c.start_sec, c.length_sec) for c in clips}


def test_a_clean_list_holds_what_can_be_used(messy, tmp_path, capsys):
    code, err = check(capsys, messy / "m.jsonl")
    assert code == 2
    for out, root in (
        (messy / "clean.jsonl", None),
        (tmp_path / "clean.jsonl", None),
        (tmp_path / "x" / "c.jsonl", messy),
    ):
        code, err = check(capsys, messy / "m.jsonl", "--fix", out)
        assert code == 0 and f"{out}: 4 clips" in err
        clips = load_manifest(out, reading=Reading(root=root))
        assert {c.id: c.split for c in clips}.keys() == {"s0", "copy of 0", "mid", "s3"}
        assert wanted(clips) == {
            "s0": ("s0.wav", ("zero",), {}, 0.0, None),
            "copy of 0": ("copy of 0.wav", ("größer",), {"bpm": 90}, 0.0, None),
            "mid": ("s1.wav", ("one", "eins"), {}, 0.25, 0.5),
            "s3": ("s3.wav", ("three",), {}, 0.0, None),
        }
        splits = {c.id: c.split for c in clips}
        assert splits["s0"] == splits["copy of 0"] == "valid"  # held out, and not trained on
        code, _ = check(capsys, out, *(["--root", root] if root else []))
        assert code == 0


def test_the_command_that_it_names_encodes_the_list(messy, tmp_path, capsys):
    _, err = check(capsys, messy / "m.jsonl", "--fix", tmp_path / "lists" / "clean.jsonl")
    command = err.strip().splitlines()[-1].split("clips; ")[1]
    assert command.startswith("segue encode ") and "--root" in command
    options = "--codec spectral --sample-rate-hz 8000 --teacher none --seconds 1"
    command = command.replace("segue ", f"{sys.executable} -m segue.cli.main ", 1)
    done = subprocess.run(f"{command} --out {tmp_path}/cache {options}", shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 rows" in done.stdout


def test_fields_that_were_passed_over_are_passed_over_again(tmp_path, write_sine, capsys):
    write_sine("set/a.wav", seconds=1.0), write_sine("set/b.wav", hz=500, seconds=1.0)
    (tmp_path / "set" / "m.csv").write_text("path,start_s,end_s,caption\na.wav,30,31,x\nb.wav,40,41,y\n")
    code, _ = check(capsys, tmp_path / "set" / "m.csv")
    assert code == 2
    given = ["--column", "start=", "--column", "end=", "--fix", tmp_path / "set" / "clean.jsonl"]
    assert check(capsys, tmp_path / "set" / "m.csv", *given)[0] == 0
    clips = load_manifest(tmp_path / "set" / "clean.jsonl")
    assert all(c.is_whole for c in clips) and clips[0].fields == {"start_s (field)": "30", "end_s (field)": "31"}


def test_what_cannot_be_listed_is_refused(tmp_path, write_sine, write_tar, capsys):
    write_sine("a.wav")
    write_tar(tmp_path / "x.tar", [("a.wav", (tmp_path / "a.wav").read_bytes()), ("a.txt", b"x")])
    code, err = check(capsys, tmp_path / "x.tar", "--fix", tmp_path / "out.jsonl")
    assert code == 2 and "lists name files, not members of tars" in err
    code, err = check(capsys, tmp_path, "--captions", "filename", "--fix", tmp_path / "out.csv")
    assert code == 2 and "name a .jsonl file" in err and not (tmp_path / "out.csv").exists()


def test_a_name_that_is_no_utf8_is_listed_and_found(tmp_path, write_sine):
    os.rename(write_sine("set/x.wav"), os.fsencode(tmp_path / "set") + b"/caf\xe9.wav")
    listing = read_listing(tmp_path / "set", Reading("filename"))
    out = tmp_path / "set" / "clean.jsonl"
    write_clean_list(out, [replace(clip, split="train") for clip in listing.clips], listing.root)
    (clip,) = load_manifest(out)
    assert clip.id == "caf\\udce9" and clip.path.exists() and clip.captions == ("caf",)
