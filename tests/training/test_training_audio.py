"""A codec and a teacher train on what the one reader of data sets gives: its stretches, its splits, its options."""

import numpy as np
import pytest
import soundfile

from segue.data.manifest import load_manifest
from segue.data.reading import DataSource, Reading
from segue.training.training_audio import clips_of, read_training_audio
from segue.types import UserError

RATE_HZ = 8000


def noise(path, seconds, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ))
    soundfile.write(path, samples.clip(-1, 1), RATE_HZ, subtype="PCM_16")
    return path


def test_the_end_of_one_recording_is_not_trained_on(tmp_path):
    path = noise(tmp_path / "set" / "long.wav", 100)
    whole = np.round(soundfile.read(path)[0] * 32768).astype(np.int16)
    audio = read_training_audio(tmp_path / "set", (), RATE_HZ)
    trained = audio.training.data.numpy()
    assert len(trained) == 90 * RATE_HZ and np.array_equal(trained, whole[: 90 * RATE_HZ])
    (held_out,) = audio.valid_waves
    assert np.array_equal(np.round(held_out.numpy() * 32768).astype(np.int16), whole[95 * RATE_HZ :])


def test_lists_are_read_with_all_their_options(tmp_path):
    for n in range(5):
        noise(tmp_path / "sounds" / f"größe {n}.wav", 30, n)
    rows = "".join(f"größe {n}.wav;5;20\r" for n in range(5))
    (tmp_path / "m.csv").write_bytes(f"clip;from;to\r{rows}".encode("cp1252"))
    columns = {"path": "clip", "start": "from", "end": "to"}
    reading = Reading(root=tmp_path / "sounds", columns=columns, encoding="cp1252")
    source = DataSource(str(tmp_path / "m.csv"), reading)
    audio = read_training_audio(source, (), RATE_HZ)
    assert len(audio.training.data) == 4 * 15 * RATE_HZ and len(audio.valid_waves) == 1
    assert [c.split for c in clips_of(source)] == [c.split for c in load_manifest(tmp_path / "sounds", "filename")], (
        "the same contents are held out, whatever names them"
    )


def test_entries_that_give_no_clip_are_refused_or_left_out(tmp_path, capsys):
    for n in range(6):
        noise(tmp_path / f"s{n}.wav", 20, n)
    names = [*(f"s{n}.wav" for n in range(6)), "gone.wav", "../out.wav"]
    (tmp_path / "m.csv").write_text("path\n" + "\n".join(names))
    with pytest.raises(UserError, match=r"out.wav leads out of .*\(1 more entries"):
        read_training_audio(tmp_path / "m.csv", (), RATE_HZ)
    audio = read_training_audio(tmp_path / "m.csv", (), RATE_HZ, skip_bad=True)
    assert len(audio.training) + len(audio.valid_waves) == 6
    said = capsys.readouterr().err
    assert "line 8: gone.wav does not exist" in said and "line 9: ../out.wav leads out of" in said


def test_bad_files_are_left_out_before_the_split(tmp_path, capsys):
    """Also where the clip that would have been held out is one of them, as `segue encode --skip-bad` has it."""
    for n in range(6):
        noise(tmp_path / f"s{n}.wav", 20, n)
    (held_out,) = [clip for clip in clips_of(tmp_path) if clip.split == "valid"]
    held_out.path.write_bytes(held_out.path.read_bytes()[:1000])
    audio = read_training_audio(tmp_path, (), RATE_HZ, skip_bad=True)
    assert len(audio.training) == 4 and len(audio.valid_waves) == 1
    assert f"left out {held_out.path}: truncated" in capsys.readouterr().err


def test_a_teacher_is_validated_on_a_single_held_out_sound(tmp_path):
    from segue.ssl.compact import CompactConfig
    from segue.training.teacher.teacher_run import TeacherTrainConfig, start, validate

    for n in range(6):
        noise(tmp_path / f"s{n}.wav", 20, n)
    audio = read_training_audio(tmp_path, (), RATE_HZ)
    assert len(audio.valid_waves) == 1
    config = TeacherTrainConfig(model=CompactConfig.for_rate(RATE_HZ))
    assert np.isfinite(list(validate(start(config, "cpu"), config, audio.valid_waves).values())).all()
