"""`segue upsample`: files, folders and lists; what is wrong with one file does not stop the others."""

import importlib.util
import json
import resource
from pathlib import Path

import numpy as np
import pytest
import soundfile

from segue.cli import upsample

spec = importlib.util.spec_from_file_location("standin", Path(__file__).parents[1] / "upsampling" / "standin.py")
standin = importlib.util.module_from_spec(spec)
spec.loader.exec_module(standin)


@pytest.fixture(autouse=True)
def model(monkeypatch):
    """The stand-in, in place of a trained model."""
    made = standin.StandIn()
    monkeypatch.setattr(upsample, "load_resolver", lambda *_: made)
    return made


def narrow(seconds=1.0, rate_hz=8000, seed=0, channels=1):
    """Hiss that swells, at its full rate."""
    generator = np.random.default_rng(seed)
    swell = 0.3 + np.sin(np.arange(round(seconds * rate_hz)) * 9 / rate_hz)[:, None] ** 2
    return 0.05 * generator.standard_normal((len(swell), channels)) * swell


@pytest.fixture
def old(tmp_path):
    """A folder of old recordings."""
    folder = tmp_path / "old"
    (folder / "tapes" / "A side").mkdir(parents=True)
    soundfile.write(folder / "one.wav", narrow(), 8000)
    soundfile.write(folder / "tapes" / "two.flac", narrow(seed=1, channels=2), 8000)
    soundfile.write(folder / "tapes" / "A side" / "drei ü.wav", narrow(seed=2, rate_hz=11025), 11025)
    (folder / "tapes" / "notes.txt").write_text("no sound")
    return folder


def lines(ran):
    return [json.loads(line) for line in ran.out.splitlines()]


def test_a_folder_keeps_its_names_and_says_what_it_did(segue, old, tmp_path):
    ran = segue("upsample", "default", old, tmp_path / "new")
    assert ran.code == 0, ran.err
    assert {p.relative_to(tmp_path / "new").as_posix() for p in (tmp_path / "new").rglob("*") if p.is_file()} == {
        "one.wav", "tapes/two.flac", "tapes/A side/drei ü.wav"
    }  # fmt: skip
    for line in lines(ran):
        assert line["status"] == "upsampled" and line["rate_hz"] == 16000 and line["seed"] == 0 and line["steps"] == 4
        assert line["cutoff_found_by"] == "rate" and line["real_time_factor"] > 0
        info = soundfile.info(line["output"])
        assert info.samplerate == 16000 and info.channels == line["channels"]
        assert info.frames == round(soundfile.info(line["input"]).frames * 16000 / line["input_rate_hz"])


def test_one_file_to_a_name_or_into_a_folder(segue, old, tmp_path):
    assert segue("upsample", "default", old / "one.wav", tmp_path / "wide.flac").code == 0
    assert soundfile.info(tmp_path / "wide.flac").format == "FLAC"
    assert segue("upsample", old / "one.wav", tmp_path / "folder").code == 0  # RUN left out
    assert (tmp_path / "folder" / "one.wav").exists()


def test_a_list(segue, old, tmp_path):
    (tmp_path / "list.txt").write_text(f"# mine\nold/tapes/two.flac\n\n{old / 'one.wav'}\nold/missing.wav\n")
    ran = segue("upsample", "default", tmp_path / "list.txt", tmp_path / "new")
    assert ran.code == 1 and "missing.wav" in ran.line
    assert (tmp_path / "new" / "old" / "tapes" / "two.flac").exists() and (tmp_path / "new" / "one.wav").exists()


def test_the_same_seed_gives_the_same_bytes(segue, old, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert segue("upsample", "default", old / "one.wav", tmp_path / f"{name}.wav", "--seed", seed).code == 0
    first, again, other = ((tmp_path / f"{n}.wav").read_bytes() for n in "abc")
    assert first == again != other


def test_a_dry_run_reports_and_writes_nothing(segue, old, tmp_path):
    ran = segue("upsample", "default", old, tmp_path / "new", "--dry-run", "--cutoff", "3400", "--steps", "7")
    assert ran.code == 0 and not (tmp_path / "new").exists()
    found = lines(ran)
    assert [line["status"] for line in found] == ["would upsample"] * 3
    assert {line["cutoff_hz"] for line in found} == {3400.0} and {line["steps"] for line in found} == {7}
    assert all(line["detected_cutoff_hz"] > 3500 for line in found)


def test_existing_outputs_are_failures_unless_said_otherwise(segue, old, tmp_path):
    new = tmp_path / "new"
    assert segue("upsample", "default", old, new).code == 0
    before = {p: p.stat().st_mtime_ns for p in new.rglob("*.*")}
    (new / "one.wav").unlink()
    ran = segue("upsample", "default", old, new)
    assert ran.code == 2 and ran.err.count("exists already; hint: --overwrite, --skip-existing") == 2
    assert [line["status"] for line in lines(ran)] == ["upsampled", "failed", "failed"]
    ran = segue("upsample", "default", old, new, "--skip-existing")
    assert ran.code == 0 and [line["status"] for line in lines(ran)] == ["skipped"] * 3
    assert segue("upsample", "default", old, new, "--overwrite").code == 0
    assert all(p.stat().st_mtime_ns > t for p, t in before.items())


def damaged(folder):
    """Files that cannot be used, each with what is said of it."""
    folder.mkdir()
    (folder / "empty.wav").write_bytes(b"")
    soundfile.write(folder / "zero.wav", np.zeros((0, 1)), 8000)
    soundfile.write(folder / "single.wav", [0.5], 8000)
    soundfile.write(folder / "nan.wav", np.full(8000, np.nan), 8000, subtype="FLOAT")
    soundfile.write(folder / "seven.wav", narrow(channels=7), 8000)
    (folder / "text.wav").write_text("I am no sound")
    soundfile.write(folder / "whole.wav", narrow(), 8000)
    (folder / "cut.wav").write_bytes((folder / "whole.wav").read_bytes()[:9000])
    soundfile.write(folder / "whole.flac", narrow(30.0), 8000)
    data = (folder / "whole.flac").read_bytes()
    (folder / "tail.flac").write_bytes(data[: len(data) * 2 // 3] + b"\x55" * 2000)
    (folder / "whole.flac").unlink()
    return {
        "empty": "zero length", "zero": "zero length", "single": "too short: 1 samples", "nan": "NaN", "seven": "7 channels",
        "text": "a text file", "cut": "truncated", "tail": "truncated or damaged",
    }  # fmt: skip


def test_bad_files_are_named_and_counted_and_the_others_done(segue, tmp_path):
    said = damaged(tmp_path / "old")
    ran = segue("upsample", "default", tmp_path / "old", tmp_path / "new")
    assert ran.code == len(said)
    assert f"{len(said)} of {len(said) + 1} files failed" in ran.err and "Traceback" not in ran.err
    failed = {Path(line["input"]).stem: line["reason"] for line in lines(ran) if line["status"] == "failed"}
    assert failed.keys() == said.keys()
    for name, words in said.items():
        assert words in failed[name], failed[name]
        assert f"segue: {failed[name]}" in ran.err.splitlines()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["whole.wav"]


def test_a_full_disk_leaves_nothing_half_written_and_the_others_done(segue, tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    for name, seconds in (("a", 1), ("b", 8), ("c", 1)):
        soundfile.write(folder / f"{name}.wav", narrow(seconds), 8000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # Python ignores the signal; writing fails in the middle
    try:
        ran = segue("upsample", "default", folder, tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ran.code == 1 and "b.wav" in ran.line and "free space" in ran.line
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.wav", "c.wav"]


def test_interrupted_it_leaves_nothing_half_written(segue, old, tmp_path, model, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "resolve", stop)
    ran = segue("upsample", "default", old, tmp_path / "new")
    assert ran.code == 130 and not [p for p in (tmp_path / "new").rglob("*") if p.is_file()]


def test_full_band_files_are_copied_and_said_so(segue, tmp_path):
    path = tmp_path / "wide.wav"
    soundfile.write(path, narrow(rate_hz=16000), 16000)
    ran = segue("upsample", "default", path, tmp_path / "out")
    assert ran.code == 0 and "full-band already" in ran.err
    assert (tmp_path / "out" / "wide.wav").read_bytes() == path.read_bytes()


def test_two_inputs_for_one_output(segue, old, tmp_path):
    soundfile.write(old / "one.flac", narrow(), 8000)
    ran = segue("upsample", "default", old, tmp_path / "new", "--format", "wav")
    assert ran.code == 1 and "same name" in ran.line
    assert segue("upsample", "default", old, tmp_path / "newer").code == 0


@pytest.mark.parametrize(
    "options, words",
    [
        (["--rate", "48000"], "--rate 48000: this model makes 16000 Hz"),
        (["--rate", "16"], "is in Hz, not kHz"),
        (["--cutoff", "-1"], "--cutoff -1"),
        (["--format", "mp3"], "use one of wav, flac"),
        (["--stereo", "wide"], "use one of mid-side, left-right"),
        (["--subtype", "MP3"], "use one of PCM_S8"),
        (["--max-memory", "lots"], "such as 1.5GB"),
        (["--chunk-seconds", "-2"], "--chunk-seconds -2"),
        (["--source", "vinyl"], "--source vinyl: use one of telephone, mp3, tape, auto"),
    ],
)
def test_options_that_do_not_fit(segue, old, tmp_path, options, words):
    ran = segue("upsample", "default", old, tmp_path / "new", *options)
    assert ran.code == 2 and words in ran.line and not (tmp_path / "new").exists()


def test_places_that_do_not_fit(segue, old, tmp_path):
    assert "give IN and OUT" in segue("upsample", old).line
    for source, out, words in (
        (old, old / "new", "lies inside the input folder"),
        (old, old, "lies inside the input folder"),
        (old, old / ".." / "old" / "x", "lies inside the input folder"),
        (old, tmp_path / "new.wav", "needs a folder to go into"),
        (old / "one.wav", old / "one.wav", "the same file"),
        (old / "one.wav", old, "beside"),
        (old / "one.wav", tmp_path / "new.mp3", "outputs are wav or flac"),
        (tmp_path / "nothing", tmp_path / "new", "no such file"),
    ):
        ran = segue("upsample", "default", source, out)
        assert ran.code == 2 and words in ran.line, (source, out, ran.err)
    (tmp_path / "bare").mkdir()
    assert "holds no sounds" in segue("upsample", "default", tmp_path / "bare", tmp_path / "new").line
