"""Two channels by commands alone, from files to files: sides never swap."""

import numpy as np
import pytest
import soundfile
import torch

from segue.cli.main import main
from segue.types import ModelOutput

RATE_HZ = 8000
TINY = ("--set", "model.preset=dit-tiny", "--set", "train.batch_size=4", "--set", "train.validation_clips=2")


def run(*words):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return stopped.value.code or 0


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Tones on the left, noise on the right at a tenth of their level."""
    folder = tmp_path_factory.mktemp("stereo")
    generator = np.random.default_rng(0)
    for index in range(12):
        left = 0.5 * np.sin(2 * np.pi * (200 + 50 * index) * np.arange(4000) / RATE_HZ)
        sides = np.stack([left, 0.02 * generator.standard_normal(4000)], axis=1)
        soundfile.write(folder / f"tone {chr(97 + index)} left.wav", sides, RATE_HZ, subtype="PCM_24")
    return folder


@pytest.fixture(scope="module")
def trained(sounds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    words = ("encode", sounds, "--captions", "filename", "--codec", "spectral", "--sample-rate-hz", RATE_HZ,
             "--channels", 2, "--seconds", 0.5, "--teacher", "none", "--out", folder / "cache")  # fmt: skip
    assert run(*words) == 0
    words = ("train", "static-uniform", "--data", folder / "cache", "--out", folder / "run", "--examples", 8, *TINY,
             "--set", "train.checkpoint_every=4")  # fmt: skip
    assert run(*words, "--samples", 1, "--device", "cpu") == 0
    return folder


def test_sounds_of_a_checkpoint_have_both_sides(trained):
    (folder,) = (trained / "run" / "samples").glob("examples-*")
    assert soundfile.info(next(folder.glob("*.wav"))).channels == 2


def test_encode_says_what_becomes_of_the_sound(segue, sounds, tmp_path):
    words = ("encode", sounds, "--captions", "filename", "--codec", "spectral", "--teacher", "none", "--seconds", 0.5)
    ran = segue(*words, "--sample-rate-hz", RATE_HZ, "--channels", 2, "--out", tmp_path / "a")
    assert ran.code == 0 and "sound: 8 kHz stereo becomes 8 kHz stereo\n" in ran.err and "lost:" not in ran.err
    assert "dB off in the median, good (" in ran.err
    ran = segue(*words, "--sample-rate-hz", 4000, "--out", tmp_path / "b")
    assert "8 kHz stereo becomes 4 kHz mono" in ran.err
    assert "lost: left and right of 12 of 12 files" in ran.err and "lost: all above 2 kHz" in ran.err
    ran = segue(*words, "--sample-rate-hz", RATE_HZ, "--out", tmp_path / "a")
    assert ran.code == 2 and "a cache of stereo sound, and the codec is mono; hint: --out another folder" in ran.line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--codec", "autoencoder", "--channels", 2), "a mono codec, not stereo; hint: leave --channels out"),
        (("--codec", "spectral", "--channels", 6), "--channels"),
    ],
)
def test_channels_that_a_codec_does_not_have_are_one_line(segue, sounds, tmp_path, words, says):
    ran = segue("encode", sounds, "--captions", "filename", *words, "--out", tmp_path / "cache")
    assert ran.code == 2 and says in ran.line and not (tmp_path / "cache").exists()


def test_generated_files_and_samples_have_two_channels(segue, trained, tmp_path):
    (sample,) = (trained / "run" / "samples").glob("*.wav")
    assert soundfile.info(sample).channels == 2
    ran = segue("generate", trained / "run", "tone a left", "--steps", 2, "--seconds", 0.3, "--out", tmp_path)
    assert ran.code == 0
    found = soundfile.info(next(tmp_path.iterdir()))
    assert (found.channels, found.samplerate, found.frames) == (2, RATE_HZ, 2400)


@pytest.mark.parametrize("side", [0, 1])
def test_a_model_that_makes_a_tone_on_one_side_gives_a_file_with_it_there(trained, tmp_path, monkeypatch, side):
    from segue.pipeline import Pipeline

    wave = torch.zeros(1, 2, 4000)
    wave[0, side] = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(4000) / RATE_HZ)
    load = Pipeline.load

    def loaded(*given):
        pipeline = load(*given)
        x_0 = pipeline.space.encode(wave)
        pipeline.model.forward = lambda x, *_, **__: ModelOutput(x_0.expand_as(x))
        pipeline.model.predicts = "clean"
        return pipeline

    monkeypatch.setattr(Pipeline, "load", loaded)
    words = ("generate", trained / "run", "a", "--steps", 4, "--guidance", 1, "--subtype", "FLOAT", "--out", tmp_path)
    assert run(*words) == 0
    made = soundfile.read(next(tmp_path.iterdir()))[0].T
    # The sound ends where training sounds did, in a fade: up to there.
    np.testing.assert_allclose(made[side, :3900], wave[0, side, :3900], atol=1e-3)
    assert np.abs(made[1 - side]).max() < 1e-3


def test_the_page_of_a_run_plays_both_sides(trained):
    import base64
    import io
    import re

    from segue.report.run_page import write_run_report

    page = write_run_report(trained / "run").read_text()
    sound = base64.b64decode(re.search(r"data:audio/wav;base64,([A-Za-z0-9+/=]+)", page)[1])
    assert soundfile.info(io.BytesIO(sound)).channels == 2
