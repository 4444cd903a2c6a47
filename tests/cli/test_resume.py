"""`segue train --resume`: with the run's own data, wherever it lies, and for longer where that is asked for."""

import json
import shutil

import pytest

SETTINGS = ("model.preset=dit-tiny", "train.batch_size=4", "train.validation_clips=2", "train.checkpoint_every=8")
TINY = ["--samples", 0, *(word for setting in SETTINGS for word in ("--set", setting))]


@pytest.fixture
def sounds(tmp_path, write_tone):
    rows = []
    for n in range(12):
        write_tone(tmp_path / "set" / f"s{n}.wav", 200 + 30 * n)
        rows.append({"path": f"s{n}.wav", "caption": f"tone {n}", "split": "valid" if n % 6 == 0 else "train"})
    (tmp_path / "set" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "set"


@pytest.fixture
def encode(segue, sounds):
    def encode(out):
        settings = ["--codec", "spectral", "--sample-rate-hz", 8000, "--seconds", 0.5, "--teacher", "none"]
        ran = segue("encode", sounds, "--out", out, *settings)
        assert ran.code == 0, ran.err
        return out

    return encode


@pytest.fixture
def run(segue, encode, tmp_path):
    """A run of 16 examples, and its cache."""
    cache = encode(tmp_path / "cache")
    ran = segue("train", "static-uniform", "--data", cache, "--out", tmp_path / "run", "--examples", 16, *TINY)
    assert ran.code == 0, ran.err
    return tmp_path / "run"


def config(run) -> dict:
    return json.loads((run / "config.json").read_text())


def test_a_cache_that_changed_is_refused_though_it_has_as_many_rows(segue, encode, run, sounds, tmp_path):
    manifest = sounds / "manifest.jsonl"
    text = manifest.read_text()
    manifest.write_text(text.replace('"tone 3"', '"another tone"'))
    encode(tmp_path / "cache")
    ran = segue("train", "--resume", run, "--examples", 24)
    assert ran.code == 2 and "trained on other data than" in ran.line and "as many rows" in ran.line
    assert config(run)["run"]["train"]["total_examples"] == 16
    manifest.write_text(text)
    encode(tmp_path / "cache")
    assert segue("train", "--resume", run).code == 0


def test_a_moved_cache_is_found_by_its_new_place(segue, run, tmp_path):
    shutil.move(tmp_path / "cache", tmp_path / "elsewhere")
    ran = segue("train", "--resume", run)
    assert ran.code == 2 and "its data is not there any more" in ran.line and "hint: --data CACHE" in ran.line
    assert segue("train", "--resume", run, "--data", tmp_path / "elsewhere", "--samples", 0).code == 0
    assert config(run)["cache"] == str((tmp_path / "elsewhere").resolve())
    assert segue("train", "--resume", run, "--samples", 0).code == 0


def test_another_cache_by_that_option_is_refused(segue, run, encode, sounds, tmp_path):
    (sounds / "s1.wav").write_bytes((sounds / "s2.wav").read_bytes())
    other = encode(tmp_path / "other")
    ran = segue("train", "--resume", run, "--data", other)
    assert ran.code == 2 and "trained on other data than" in ran.line
    assert config(run)["cache"] == str((tmp_path / "cache").resolve())


def test_a_run_is_lengthened_and_says_so(segue, run):
    ran = segue("train", "--resume", run, "--examples", 32, "--samples", 0)
    assert ran.code == 0 and "32 examples" in ran.out, ran.err
    assert "32 examples in place of 16. Schedules follow the new length" in ran.err
    assert "stand at 50% of it now, not at 100%" in ran.err
    assert config(run)["run"]["train"]["total_examples"] == 32
    ran = segue("train", "--resume", run, "--examples", 20)
    assert ran.code == 2 and "has seen 32; hint: give more" in ran.line


def test_a_dry_run_changes_nothing(segue, run):
    before = (run / "config.json").read_bytes()
    ran = segue("train", "--resume", run, "--examples", 64, "--dry-run")
    assert ran.code == 0 and '"total_examples": 64' in ran.out and (run / "config.json").read_bytes() == before


def test_what_a_run_began_with_stays(segue, run):
    ran = segue("train", "--resume", run, "--seed", 3)
    assert ran.code == 2 and "hint: leave --seed away" in ran.line


def test_a_run_without_sounds_goes_on_without_them(segue, run):
    assert config(run)["run"]["train"]["samples"] == 0
    assert segue("train", "--resume", run, "--examples", 24).code == 0
    assert not (run / "samples").exists()
