"""The one writer: nothing clipped, nothing half-written, nothing that is not finite; prompts kept whole."""

import os
import resource

import numpy as np
import pytest
import soundfile

from segue.audio.tags import read_tags
from segue.audio.write import OutputFormat, write_sound, write_wav
from segue.types import UserError


def test_a_wave_beyond_full_scale_is_scaled_and_not_clipped(tmp_path):
    wave = 2.0 * np.sin(2 * np.pi * 220 * np.arange(16000) / 16000)
    write_wav(tmp_path / "a.wav", wave, 16000)
    back, rate_hz = soundfile.read(tmp_path / "a.wav")
    assert rate_hz == 16000 and np.mean(np.abs(back) > 0.999) < 0.05
    np.testing.assert_allclose(back, wave / 2, atol=1e-4)
    write_wav(tmp_path / "b.wav", wave / 4, 16000)  # what fits is left as it is
    np.testing.assert_allclose(soundfile.read(tmp_path / "b.wav")[0], wave / 4, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_wave_that_is_not_finite_is_never_written(tmp_path, value):
    wave = np.zeros(100)
    wave[50] = value
    with pytest.raises(UserError, match=r"a\.wav: not written, its samples are not finite"):
        write_wav(tmp_path / "a.wav", wave, 8000)
    with pytest.raises(UserError, match="not finite"):
        write_sound(
            tmp_path / "a.flac", [np.zeros((9, 1)), wave[:, None]], OutputFormat("flac", "PCM_16", 8000, 1), 109, {}
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prompt", ["a drum", "ein Ü und ein 鼓", "x" * 2000, "word " * 800, "Ü" * 5000, "a" * 100_001])
def test_a_prompt_of_any_length_is_kept_and_the_seed_beside_it(tmp_path, prompt):
    path = tmp_path / "a.wav"
    write_wav(path, 0.1 * np.ones(1001), 8000, prompt, "runs/mine seed 3 take 7")
    assert read_tags(path)["title"] == prompt
    assert prompt.encode() in path.read_bytes()
    with soundfile.SoundFile(path) as file:  # what others read of it
        assert file.comment == "runs/mine seed 3 take 7" and file.frames == 1001
        assert len(file.title) >= min(len(prompt), 990) and prompt.startswith(file.title)
    first = path.read_bytes()
    write_wav(path, 0.1 * np.ones(1001), 8000, prompt, "runs/mine seed 3 take 7")
    assert path.read_bytes() == first
    assert len(first) == int.from_bytes(first[4:8], "little") + 8


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match="hint"):
            write_wav(tmp_path / "a.wav", np.zeros(100_000), 8000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["n" * 251 + ".wav", os.fsdecode(b"caf\xe9.wav"), "e\u0301.wav"])
def test_names_of_any_bytes_and_length(tmp_path, name):
    write_wav(tmp_path / name, np.zeros(100), 8000)
    assert [path.name for path in tmp_path.iterdir()] == [name]
