"""Sounds as people have them, through every command: the same files are read, and the same ones named, by all of them."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from segue.audio import decoders
from segue.data.open_cache import open_cache

CASES = Path(__file__).parents[1] / "cases"
SPECTRAL = ("--codec", "spectral", "--sample-rate-hz", 8000, "--seconds", 1, "--teacher", "none")
GOOD = ("cbr_cover.mp3", "short_vbr.mp3", "call.oga", "gsm.wav", "size0.wav", "mixed_m4a/m0.m4a", "mixed_m4a/m1.aac")
ODD_NAMES = (os.fsdecode(b"caf\xe9.wav"), "n" * 245 + ".wav", "cafe\u0301.wav", "a\tb\nc.wav", " .wav")
BAD = {"int16range": "levels: samples of", "one_sample": "levels: samples of 1e+29", "not_a_number": "non-finite"}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """64 s of tones, the cases, odd names, and files that no command may use."""
    folder = tmp_path_factory.mktemp("sounds")
    time_sec = np.arange(32_000) / 16_000
    for index in range(32):
        wave = 0.3 * np.sin(2 * np.pi * (200 + 25 * index) * time_sec) * np.exp(-time_sec)
        soundfile.write(folder / f"tone_{index:02d}.wav", wave, 16_000)
    for name in GOOD:
        shutil.copy(CASES / name, folder)
    for index, name in enumerate(ODD_NAMES):
        soundfile.write(os.fsencode(folder / name), 0.02 * (index + 1) * np.sin(time_sec * 3000), 16_000)
    (folder / "._tone_00.wav").write_bytes(b"\0\5\x16\7" + bytes(4000))
    shutil.copy(CASES / "int16range.wav", folder)
    for name, value in (("one_sample", 1e29), ("not_a_number", np.nan)):
        wave = 0.1 * np.sin(time_sec * 3000)
        wave[5000] = value
        soundfile.write(folder / f"{name}.wav", wave, 16_000, subtype="FLOAT")
    for path in list(folder.iterdir()):
        if path.name[0] != ".":
            path.with_suffix(".txt").write_text("a tone")
    return folder


def named(text):
    return {name for name in BAD if f"{name}.wav" in text or f"left out {name}:" in text}


def test_check_counts_and_names(segue, sounds):
    ran = segue("data", "check", sounds, "--json")
    report = json.loads(ran.out)
    assert ran.code == 2 and report["clips"] == 32 + len(GOOD) + len(ODD_NAMES)
    assert {Path(bad["path"]).stem: bad["reason"] for bad in report["bad"]}.keys() == BAD.keys()
    for bad in report["bad"]:
        assert bad["reason"].startswith(BAD[Path(bad["path"]).stem])
    ran = segue("data", "check", sounds)
    assert ran.code == 2 and named(ran.out) == BAD.keys() and ran.out.isprintable() is False
    ran.out.encode()


def test_encode_gives_the_lengths_that_can_be_decoded(segue, sounds, tmp_path):
    ran = segue("encode", sounds, "--out", tmp_path / "c", *SPECTRAL)
    assert ran.code == 2 and named(ran.line) == BAD.keys()
    assert segue("encode", sounds, "--out", tmp_path / "c", *SPECTRAL, "--skip-bad").code == 0
    cache = open_cache(tmp_path / "c")
    assert {entry["id"] for entry in cache.meta["skipped"]} == BAD.keys()
    rows = [cache.row(index) for index in range(cache.meta["counts"]["rows"])]
    seconds = {}
    for row in rows:
        seconds[row["id"]] = seconds.get(row["id"], 0.0) + row["length_sec"]
    # What is left of three seconds is too short for a row of its own.
    wanted = {"cbr_cover": 3.0, "short_vbr": 3.0, "call": 2.0, "gsm": 1.3, "size0": 1.0, "m0": 1.0, "m1": 1.0}
    assert {name: round(seconds[name], 1) for name in wanted} == wanted
    ids = set(seconds)
    assert len(ids) == 32 + len(GOOD) + len(ODD_NAMES) and all(name.isprintable() for name in ids)
    assert "caf\u00e9" in ids and "caf\\udce9" in ids | {name.replace("\\xe9", "\\udce9") for name in ids}


def test_codec_and_teacher_train_on_what_encode_reads(segue, sounds, tmp_path):
    ran = segue("codec", "train", sounds, "--out", tmp_path / "codec", "--steps", 1)
    assert ran.code == 2 and named(ran.line) and not (tmp_path / "codec").exists()
    for verb in ("codec", "teacher"):
        ran = segue(verb, "train", sounds, "--out", tmp_path / verb, "--steps", 1, "--skip-bad")
        # A teacher that has learned nothing yet is refused as such, after it was trained and saved.
        assert ran.code == 0 or "collapsed" in ran.err, ran.err
        assert (tmp_path / verb / f"{verb}.safetensors").exists() and named(ran.err)


def test_evaluate_reads_the_same(segue, sounds, tmp_path):
    good = tmp_path / "good"
    good.mkdir()
    for path in sounds.iterdir():
        if path.stem not in {*BAD, "gsm", "call"} and path.suffix == ".wav":
            shutil.copy(path, good)
    ran = segue("evaluate", "files", good, good, "--out", tmp_path / "e")
    assert ran.code == 0, ran.err
    rows = (tmp_path / "e" / "files.csv").read_text()
    assert "caf\u00e9" in rows and "size0" in rows
    (tmp_path / "mp3").mkdir()
    for name in ("cbr_cover.mp3", "short_vbr.mp3"):
        shutil.copy(sounds / name, tmp_path / "mp3")
    assert segue("evaluate", "files", tmp_path / "mp3", tmp_path / "mp3", "--out", tmp_path / "m").code == 0
    for name, reason in BAD.items():
        shutil.copy(sounds / f"{name}.wav", good)
        only = tmp_path / name
        only.mkdir()
        for path in (good / f"{name}.wav", good / "size0.wav"):
            shutil.copy(path, only)
        ran = segue("evaluate", "files", only, only, "--out", tmp_path / "f")
        assert ran.code == 2 and f"{name}.wav: {reason}" in ran.line and "--skip-bad" in ran.line
    ran = segue("evaluate", "files", good, good, "--out", tmp_path / "s", "--skip-bad")
    assert ran.code == 0, ran.err
    assert (tmp_path / "s" / "files.csv").read_text() == rows
    notes = json.loads((tmp_path / "s" / "evaluation.json").read_text())["notes"]
    assert {note.split(": ")[1] for note in notes if note.startswith("left out of A")} == BAD.keys()
    ran = segue("evaluate", "generation", good, good, "--embedding", "log-mel", "--out", tmp_path / "g", "--skip-bad")
    assert ran.code == 0, ran.err
    assert ran.out.count("left out of GEN") == len(BAD)


@pytest.fixture
def stand_in(monkeypatch):
    from segue.cli import upsample

    place = Path(__file__).parents[1] / "upsampling" / "standin.py"
    spec = importlib.util.spec_from_file_location("standin", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(upsample, "load_resolver", lambda *_: module.StandIn())


def test_upsample_does_the_good_ones_and_counts_the_others(segue, stand_in, sounds, tmp_path):
    (tmp_path / "in").mkdir()
    for path in sounds.iterdir():
        if not path.name.startswith("tone") and path.suffix != ".txt":
            shutil.copy(path, tmp_path / "in")
    shutil.copy(CASES / "cbr_cover.mp3", tmp_path / "in" / ("m" * 251 + ".mp3"))  # .flac is one byte too long
    (tmp_path / "in" / "nowhere.wav").symlink_to(tmp_path / "gone.wav")
    (tmp_path / "in" / "far.wav").symlink_to(sounds / "tone_00.wav")
    ran = segue("upsample", tmp_path / "in", tmp_path / "out")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    failed = {Path(line["input"]).stem: line["reason"] for line in lines if line["status"] == "failed"}
    assert failed.keys() == {*BAD, "nowhere", "far", "m" * 251} and ran.code == 6
    assert "too long; hint: rename it" in failed["m" * 251]
    assert "leads nowhere" in failed["nowhere"] and "--follow-links" in failed["far"]
    done = {Path(line["input"]).name: line for line in lines if line["status"] in ("upsampled", "copied")}
    assert done.keys() == {Path(name).name for name in GOOD} | set(ODD_NAMES)
    assert done["cbr_cover.mp3"]["seconds"] == done["short_vbr.mp3"]["seconds"] == 3.03
    for line in done.values():
        info = soundfile.info(os.fsencode(line["output"]))
        assert info.duration == pytest.approx(line["seconds"], abs=0.01)
    for name in ("nowhere.wav", "m" * 251 + ".mp3"):
        (tmp_path / "in" / name).unlink()
    ran = segue("upsample", tmp_path / "in", tmp_path / "out", "--skip-bad", "--skip-existing", "--follow-links")
    assert ran.code == 0 and ran.err.count("left out") == len(BAD)
    assert (tmp_path / "out" / "far.wav").exists()


def test_a_list_may_name_files_by_their_bytes_or_written_another_way(segue, stand_in, sounds, tmp_path):
    named_so = [os.fsencode(sounds / "caf\u00e9.wav"), os.fsencode(sounds) + b"/caf\xe9.wav"]
    (tmp_path / "list.txt").write_bytes(b"\n".join(named_so) + b"\nmissing.wav\n")
    ran = segue("upsample", tmp_path / "list.txt", tmp_path / "out")
    assert ran.code == 1 and "missing.wav" in ran.line
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == [b"caf\xc3\xa9.wav", b"caf\xe9.wav"]


def test_without_a_decoder_m4a_is_counted_named_and_left_out(segue, sounds, tmp_path, monkeypatch):
    monkeypatch.setattr(decoders, "pyav", lambda: None)
    monkeypatch.setattr(decoders.shutil, "which", lambda _: None)
    for name in ("m0.m4a", "m0.txt", "m1.aac", "m1.txt", "w0.wav", "w0.txt"):
        shutil.copy(CASES / "mixed_m4a" / name, tmp_path)
    ran = segue("data", "check", tmp_path)
    assert (
        ran.code == 2
        and ran.out.count("not read without PyAV or ffmpeg; hint: pip install 'segue-audio[decoders]'") == 2
    )
    ran = segue("encode", tmp_path, "--out", tmp_path.parent / f"{tmp_path.name}-c", *SPECTRAL)
    assert ran.code == 2 and "m0.m4a" in ran.line and "m1.aac" in ran.line and "--skip-bad" in ran.line
    ran = segue("encode", tmp_path, "--out", tmp_path.parent / f"{tmp_path.name}-c", *SPECTRAL, "--skip-bad")
    assert ran.code == 0 and "2 files left out" in ran.out
