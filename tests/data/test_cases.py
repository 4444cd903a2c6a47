"""Inputs that users brought, and what is right for each of them (tests/cases)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from segue.cli.main import main
from segue.data.encoding import build_cache
from segue.data.manifest import load_manifest, read_listing
from segue.data.reading import Reading
from segue.types import UserError

CASES = Path(__file__).parents[1] / "cases"


def segue(capsys, *words) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.mark.parametrize("name", ["blank.csv", "cr.csv", "spaces.csv", "tab.tsv", "upper.csv"])
def test_tables_as_programs_write_them(name):
    clips = load_manifest(CASES / "csv" / name)
    assert [clip.id for clip in clips] == [f"s{n}" for n in range(6)]
    assert [clip.captions for clip in clips] == [(f"a tôñe {n}",) for n in range(6)]
    assert {clip.split for clip in clips} == {"train", "valid"}


def test_the_hints_for_an_excel_table_mend_it(tmp_path, capsys):
    shutil.copytree(CASES / "csv", tmp_path / "a folder")
    table = tmp_path / "a folder" / "excel1252.csv"
    code, _, err = segue(capsys, "data", "check", table, "--text", "none")
    assert code == 2 and len(err.strip().splitlines()) == 1
    wanted = ["it’s a “loud” tone", "b"]
    option = re.search(r"add (--encoding \S+),", err)[1].split()
    assert segue(capsys, "data", "check", table, "--text", "none", *option)[0] == 0
    assert [c.captions[0] for c in load_manifest(table, reading=Reading(encoding=option[1]))] == wanted
    command = re.search(r"save it anew: (iconv .*)", err)[1]
    if shutil.which("iconv"):
        subprocess.run(command, shell=True, check=True)
        (new,) = (tmp_path / "a folder").glob("*-utf8.csv")
        assert [c.captions[0] for c in load_manifest(new)] == wanted


def test_two_stretches_of_one_file_are_two_clips_in_one_split(fakes, tmp_path):
    clips = read_listing(CASES / "segments" / "twoids.csv", Reading()).clips
    assert [(c.id, c.start_sec, c.length_sec, c.captions) for c in clips] == [
        ("low", 0.0, 2.0, ("a low note",)),
        ("high", 2.0, 2.0, ("a high note",)),
    ]
    codec = fakes.FakeCodec()
    cache = build_cache(clips, codec, fakes.FakeText(), out=tmp_path / "cache", seconds=2.0, dtype="float32")
    rows = [cache.row(i) for i in range(len(cache))]
    assert [(r["id"], r["start_sec"], r["length_sec"]) for r in rows] == [("low", 0.0, 2.0), ("high", 2.0, 2.0)]
    assert len({r["split"] for r in rows}) == 1 and rows[0]["sha256"] == rows[1]["sha256"]
    low, high = (codec.decode(cache.latents([i])[0], 16000)[0, 0] for i in range(2))
    crossings = [int((w[1:] * w[:-1] < 0).sum()) for w in (low, high)]
    assert crossings[1] > 1.5 * crossings[0]  # each clip is its own stretch


def test_equal_contents_stay_in_one_split():
    clips = load_manifest(CASES / "duplicates")
    by_content: dict[bytes, set[str]] = {}
    for clip in clips:
        by_content.setdefault(clip.path.read_bytes(), set()).add(clip.split)
    assert len(clips) == 24 and len(by_content) == 12
    assert all(len(splits) == 1 for splits in by_content.values())
    assert {clip.split for clip in clips} == {"train", "valid"}


def test_long_captions_are_read_to_their_end_or_said_to_be_cut(tmp_path, capsys):
    encode = ["encode", CASES / "long_captions", "--codec", "spectral", "--sample-rate-hz", 16000, "--teacher", "none"]
    code, _, err = segue(capsys, *encode, "--out", tmp_path / "whole")
    from segue.data.cache import LatentCache

    cache = LatentCache.open(tmp_path / "whole")
    tokens, mask = cache.text(list(range(6)))
    assert code == 0 and "cut there" not in err and int(mask.sum(1).max()) > 48
    assert all((tokens[a] - tokens[b]).abs().max() > 0.01 for a in range(6) for b in range(a))
    code, _, err = segue(capsys, *encode, "--out", tmp_path / "cut", "--max-tokens", 48)
    assert code == 0 and re.search(r"6 captions .*longer than 48 tokens, cut there", err)
    assert LatentCache.open(tmp_path / "cut").text_tokens == 48


def test_capitals_are_suffixes_too():
    (clip,) = load_manifest(CASES / "upper_txt")
    assert (clip.path.name, clip.captions) == ("KICK.WAV", ("a kick",))


def test_what_macos_leaves_behind_is_passed_over(capsys):
    (clip,) = load_manifest(CASES / "macos_codec")
    assert clip.path.name == "s1.wav"
    (clip,) = load_manifest(CASES / "macos_codec", "none")
    assert clip.path.name == "s1.wav" and clip.captions == ()
    assert segue(capsys, "data", "check", CASES / "macos_codec", "--text", "none")[0] == 0


def test_a_tar_without_a_known_sound_is_said_to_hold_none(capsys):
    with pytest.raises(UserError, match=r"holds no sounds \(12 members of other kinds left out: \.data \(6\)"):
        load_manifest(CASES / "no_sounds_by_name.tar")
    code, out, err = segue(capsys, "data", "check", CASES / "no_sounds_by_name.tar")
    assert code == 2 and out == "" and len(err.strip().splitlines()) == 1


def test_check_tells_json_of_it_all(capsys):
    code, out, _ = segue(capsys, "data", "check", CASES / "segments" / "twoids.csv", "--json")
    report = json.loads(out)
    assert code == 0 and report["clips"] == 2 and report["hours"] * 3600 == pytest.approx(4.0)
    assert report["duplicates"] == [] and any("no validation clip" in note for note in report["notes"])
    assert report["tokens"] == {"encoder": "minilm", "longest": 5, "cut": 0, "unknown": 0}


def test_a_cache_whose_captions_grow_keeps_its_latents(tmp_path, capsys, write_sine):
    """Captions alone are embedded anew where they outgrow the limit of before; and the limit never shrinks."""
    for n in range(4):
        write_sine(f"set/s{n}.wav", hz=300 + 40 * n, caption=f"tone {n}")
    words = ["encode", tmp_path / "set", "--out", tmp_path / "cache", "--codec", "spectral", "--sample-rate-hz", 8000]
    words += ["--seconds", 0.5, "--teacher", "none"]
    assert segue(capsys, *words)[0] == 0
    shards = tmp_path / "cache" / "shards"
    latents = {p.name: p.stat().st_mtime_ns for p in shards.glob("latents-*")}
    (tmp_path / "set" / "s1.txt").write_text("a tone, " * 25 + "and a bell 🎸")
    code, _, err = segue(capsys, *words)
    assert code == 0 and "captions, splits or fields differ" in err and "1 caption (e.g. 'a tone, a tone," in err
    assert {p.name: p.stat().st_mtime_ns for p in shards.glob("latents-*")} == latents
    assert json.loads((tmp_path / "cache" / "meta.json").read_text())["text"]["max_tokens"] == 96
    (tmp_path / "set" / "s1.txt").write_text("short again")
    assert segue(capsys, *words)[0] == 0
    assert json.loads((tmp_path / "cache" / "meta.json").read_text())["text"]["max_tokens"] == 96


def test_entries_without_a_clip_are_refused_or_left_out_by_encode(tmp_path, capsys, write_sine):
    for n in range(3):
        write_sine(f"set/s{n}.wav", hz=300 + 40 * n)
    (tmp_path / "set" / "m.csv").write_text("path,caption\ns0.wav,x\ns1.wav,\ns2.wav,y\ngone.wav,z\n../s.wav,z\n")
    words = ["encode", tmp_path / "set" / "m.csv", "--out", tmp_path / "cache", "--codec", "spectral"]
    words += ["--sample-rate-hz", 8000, "--seconds", 0.5, "--teacher", "none"]
    code, _, err = segue(capsys, *words)
    assert code == 2 and "line 3: an empty caption" in err and "--skip-bad leaves such entries out" in err
    code, out, err = segue(capsys, *words, "--skip-bad")
    assert code == 0 and "2 rows" in out
    assert re.findall(r"^left out .*?(line \d|gone)", err, re.MULTILINE) == ["line 3", "line 6", "gone"]
