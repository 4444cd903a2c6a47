"""The demo on recordings: an installed package or a folder becomes a set, two variants, a page with its own figures."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from segue.cli import demo, demo_sounds
from segue.codecs import load_codec
from segue.report import demo_page
from segue.training import parallel_runs
from segue.types import UserError
from segue.workflows import train_run
from segue.workflows.recordings import LEAST, find_recordings, new_captions, recordings_set

WORDS = ("axe", "bow", "club", "horse", "wolf", "troll", "orc", "bat", "naga", "drake", "elf", "yeti")
SETTINGS = ("model.preset=dit-tiny", "train.batch_size=8", "train.validation_clips=8", *demo.SETTINGS[1:])


def recording(path, index, rate_hz=44100, seconds=0.25):
    generator = np.random.default_rng(index)
    time_sec = np.arange(round(rate_hz * seconds)) / rate_hz
    tone = np.sin(2 * np.pi * 200 * (1 + index % len(WORDS)) * time_sec) * np.exp(-20 * time_sec)
    wave = 0.3 * tone[:, None] + 0.01 * generator.standard_normal((len(time_sec), 1 + index % 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate_hz)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder of shared data with the package in it: 84 recordings of 24 captions."""
    root = tmp_path_factory.mktemp("share")
    sounds = root / "games/wesnoth/1.16/data/core/sounds"
    for index in range(84):
        word, what = WORDS[index % 12], ("hit", "die")[index // 12 % 2]
        recording(sounds / f"{word}-{what}-{index}.wav", index, seconds=0.6 if index == 5 else 0.25)
    (sounds / "README.md").write_text("credits")
    return root


def test_a_set_holds_out_whole_captions_and_single_recordings(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_DATA_DIRS", f"{tmp_path}:{shared}")
    folder = find_recordings("effects")
    clips = recordings_set(folder, tmp_path / "captions.jsonl", 0.4, 2000)
    splits = {split: [c for c in clips if c.split == split] for split in ("train", "valid", "test")}
    assert len(clips) == 84 and all(splits.values()) and len(splits["train"]) > 50
    new = new_captions(clips)
    assert {c.captions[0] for c in splits["test"]} <= new and not new & {c.captions[0] for c in splits["train"]}
    assert {c.captions[0] for c in clips} <= {f"{w} {a}" for w in WORDS for a in ("hit", "die")}
    assert [c.length_sec for c in clips if c.length_sec is not None] == [0.4]  # its beginning alone
    # The list is the user's from now on; a copy of a held-out recording is held out.
    path = tmp_path / "captions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["captions"] = ["an edited caption"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert recordings_set(folder, path, 0.4, 2000)[0].captions == ("an edited caption",)
    assert len(recordings_set(folder, path, 0.4, 70)) == 70


def test_a_folder_with_a_list_keeps_its_captions_and_splits(tmp_path):
    rows = []
    for index in range(LEAST + 2):
        recording(tmp_path / "set" / f"{index}.wav", index % (LEAST + 1))  # the last is the first one's copy
        split = "test" if index < 8 else "valid" if index < 12 else "train"
        rows.append({"path": f"{index}.wav", "caption": f"sound {index}", "split": split})
    (tmp_path / "set" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clips = recordings_set(tmp_path / "set", tmp_path / "captions.jsonl", 0.4, 2000)
    assert [c.split for c in clips] == [*(["test"] * 8), *(["valid"] * 4), *(["train"] * (LEAST - 11)), "test"]
    assert clips[3].captions == ("sound 3",) and not (tmp_path / "captions.jsonl").exists()


def test_what_is_missing_is_said_in_one_line(segue, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path))
    ran = segue("demo", "--sounds", "effects", "--out", tmp_path / "out")
    assert ran.code == 2 and "sudo apt install wesnoth-1.16-data" in ran.line and "--sounds DIR" in ran.line
    ran = segue("demo", "--sounds", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert ran.code == 2 and "no such folder" in ran.line
    ran = segue("demo", "--sounds", tmp_path, "--task", "super-resolution")
    assert ran.code == 2 and "leave --sounds or --task away" in ran.line
    for index in range(3):
        recording(tmp_path / "few" / f"thud {index}.wav", index)
    with pytest.raises(UserError, match=f"3 recordings; hint: name a folder of at least {LEAST}"):
        recordings_set(tmp_path / "few", tmp_path / "few.jsonl", 1.0, 2000)
    assert not (tmp_path / "out").exists()


def test_the_page_has_its_own_figures_and_players_in_stereo(shared, segue, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_DIRS", str(shared))
    # One core: both variants train in this process. Small, short rows, and no pictures that other tests look at.
    monkeypatch.setattr(parallel_runs, "cores", lambda: 1)
    monkeypatch.setattr(demo, "measure_rate", lambda *_: 1.0)
    monkeypatch.setattr(demo, "RECORDINGS", replace(demo.RECORDINGS, seconds=0.4))
    monkeypatch.setattr(demo, "SETTINGS", SETTINGS)
    monkeypatch.setattr(demo_sounds, "ROWS", 1)
    monkeypatch.setattr(train_run, "write_run_report", lambda *_: None)
    monkeypatch.setattr(demo_page, "curve_figures", lambda *_: [])
    monkeypatch.setattr(demo_page, "stage_figures", lambda *_: [])
    out = tmp_path / "demo"
    arguments = ["demo", "--sounds", "effects", "--out", out, "--minutes", 0.1, "--measured", 10]
    ran = segue(*arguments)
    assert ran.code == 0, ran.err
    assert "dB from the recording of the same caption" in ran.out and "chance" in ran.out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["task"] == "recordings" and summary["dataset"]["clips"] == 84
    assert summary["codec"]["latents_sha256"] == load_codec("stereo-44k").weights_sha256(latents_only=True)
    assert "note_classifier" not in summary
    rows = summary["rows"]
    assert list(rows) == ["held-out recordings", "other recordings", "codec round trip", "static-uniform", "stage-muon"]
    for name in ("codec round trip", "static-uniform", "stage-muon"):
        measured = rows[name]["caption_distance"]
        assert measured["interval"][0] <= measured["value"] <= measured["interval"][1] and measured["n"] == 10
    assert rows["codec round trip"]["caption_distance"]["value"] < rows["stage-muon"]["caption_distance"]["value"]
    assert set(rows["stage-muon"]["sounds"]) == {"length_sec", "level_db", "treble_db", "width_db"}
    page = (out / "report.html").read_text()
    count = len(summary["prompts"])
    assert count >= 4 and page.count('preload="metadata" src="data:audio/wav;base64') == 4 * count
    for words in ("after the codec", "side against mid", "held-out caption", "kernel distance"):
        assert words in page, words
    assert "classified" not in page.split("</style>")[1] and "family" not in page.split("</style>")[1]
    files = sorted((out / "runs" / "stage-muon" / "measured").iterdir())
    assert [f.name for f in files] == [f.name for f in sorted((out / "measured").iterdir())] and len(files) == 10
    assert soundfile.info(files[0]).channels == 2 and soundfile.info(files[0]).samplerate == 44100
    # The folder belongs to these recordings.
    (shared / "more").symlink_to(shared / "games/wesnoth/1.16/data/core/sounds")
    ran = segue(*(shared / "more" if word == "effects" else word for word in arguments))
    assert ran.code == 2 and "sounds was" in ran.line
