"""`segue generate --from`: what is done with a recording, and how it says what does not fit."""

import numpy as np
import pytest
import soundfile

from segue.audio.tags import read_settings
from segue.cli.main import main

TINY = ("--set", "model.preset=dit-tiny", "--set", "train.batch_size=4", "--set", "train.validation_clips=2")
RATE_HZ = 8000


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    words = ["train", "static-uniform", "--data", cache, "--out", run, "--examples", 8, *TINY, "--device", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in [*words, "--samples", 0, "--set", "train.known_share=0.5"]])
    assert not stopped.value.code
    return run


@pytest.fixture(scope="module")
def take(tmp_path_factory):
    """A second of a tone in stereo at 16 kHz; the model is at 8 kHz, mono."""
    path = tmp_path_factory.mktemp("takes") / "take.wav"
    wave = 0.3 * np.sin(2 * np.pi * 220 * np.arange(16000) / 16000)
    soundfile.write(path, np.stack([wave, 0.5 * wave], axis=1), 16000, subtype="FLOAT")
    return path


@pytest.fixture
def edit(segue, trained, take, tmp_path):
    def run(*words, out="out", source=take):
        ran = segue("generate", trained, "drum", "--from", source, "--out", tmp_path / out, "--steps", 2,
                    "--subtype", "FLOAT", *words)  # fmt: skip
        files = sorted((tmp_path / out).iterdir()) if (tmp_path / out).exists() else []
        return ran, files

    return run


def test_a_recording_is_edited_in_every_way_and_made_again_from_its_settings(segue, trained, edit, take, tmp_path):
    from segue.audio.read import read_wave

    mono = read_wave(take, RATE_HZ)
    for words, length, kept in (
        (("--replace", "0.4-0.6"), 8000, slice(0, 2800)),
        (("--continue", 0.5), 12000, slice(0, 7700)),
        (("--strength", 0.5), 8000, None),
        (("--loop",), 8000, slice(1300, 6700)),
    ):
        name = words[0].strip("-")
        ran, files = edit(*words, "--seed", 3, out=name)
        assert ran.code == 0, ran.err
        assert [file.name for file in files] == ["000-drum-seed3.wav"]
        assert "16 kHz stereo becomes 8 kHz mono, as the model has it" in ran.err
        assert ("the model was trained to continue what it is given" in ran.err) == (name != "strength")
        wave, rate_hz = soundfile.read(files[0], dtype="float32")
        assert (rate_hz, len(wave)) == (RATE_HZ, length) and np.isfinite(wave).all()
        if kept is not None:
            np.testing.assert_array_equal(wave[kept], mono[kept])
        settings = read_settings(files[0])
        assert settings["from"] == str(take) and settings[name] == (words[1] if len(words) > 1 else True)
    # A file is made again from its own settings; another edit takes its prompt and seed, and nothing of its edit.
    (file,) = (tmp_path / "replace").iterdir()
    assert segue("generate", trained, "--like", file, "--out", tmp_path / "again").code == 0
    assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    like = ("--like", file, "--from", take, "--strength", 0.3, "--out", tmp_path / "other")
    assert segue("generate", trained, *like).code == 0
    assert "replace" not in read_settings(tmp_path / "other" / file.name)


def test_takes_and_prompts_differ_and_negative_prompts_act(segue, edit, trained, tmp_path):
    ran, files = edit("bell", "--strength", 0.8, "--count", 2)
    assert ran.code == 0 and len(files) == 4
    waves = [soundfile.read(file)[0] for file in files]
    assert all(np.abs(a - b).max() > 0 for k, a in enumerate(waves) for b in waves[:k])
    for name, words in (("plain", ()), ("away", ("--negative", "choir, hum"))):
        said = segue("generate", trained, "drum", "--out", tmp_path / name, "--steps", 2, *words)
        assert said.code == 0, said.err
    (plain,), (away,) = ((tmp_path / name).iterdir() for name in ("plain", "away"))
    assert plain.read_bytes() != away.read_bytes() and read_settings(away)["negative"] == "choir, hum"


def test_long_sounds_and_loops_say_how_their_parts_fit(segue, trained, tmp_path):
    for words, seconds in ((("--seconds", 1.7), 1.7), (("--loop",), 0.5)):
        ran = segue("generate", trained, "drum", "--out", tmp_path, "--steps", 2, "--overwrite", *words)
        assert ran.code == 0 and "continue what it is given" in ran.err
        assert soundfile.info(next(tmp_path.iterdir())).frames == round(RATE_HZ * seconds)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "and what is to be done with it? hint: add --replace 2.0-3.5"),
        (("--replace", "0.5-0.5"), "--replace 0.5-0.5: a range of no length; hint:"),
        (("--replace", "0.5"), "hint: give START-END in seconds"),
        (("--replace", "a-b"), "hint: give START-END in seconds"),
        (("--replace", "0.5-2"), "lasts 1.000 s; hint: give a range within it"),
        (("--strength", 0), "--strength 0: hint: give more than 0, up to 1"),
        (("--strength", 1.5), "--strength 1.5: hint"),
        (("--strength", "nan"), "--strength nan"),
        (("--continue", 0), "--continue 0: hint: give a number from 0 to 3600"),
        (("--continue", -1), "--continue -1: hint"),
        (("--continue", "1e9"), "--continue 1e+09: hint: give a number"),
        (("--strength", 0.5, "--loop"), "--strength and --loop at once; hint: one of them a command"),
        (("--strength", 0.5, "--seconds", 2), "--seconds with --from: the recording has its length; hint: --continue"),
        (("--strength", 0.5, "--negative", " "), "--negative: an empty one; hint: leave it away"),
        (("--strength", 0.5, "--negative", "hum", "--guidance", 1), "--negative acts through guidance"),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(edit, words, says):
    ran, files = edit(*words)
    assert ran.code == 2 and says in ran.line and not files


def test_recordings_that_cannot_be_used_are_one_line(segue, trained, edit, tmp_path):
    surround = tmp_path / "surround.wav"
    soundfile.write(surround, np.zeros((100, 6)), 16000)
    (tmp_path / "text.wav").write_text("no sound")
    for source, says in (("none.wav", "no such file; hint"), ("text.wav", "hint: give another recording"),
                         ("surround.wav", "hint: give another recording")):  # fmt: skip
        ran, files = edit("--strength", 0.5, source=tmp_path / source)
        assert ran.code == 2 and f"--from {tmp_path / source}" in ran.line and says in ran.line and not files
    for words in (("--replace", "0-1"), ("--continue", 1), ("--strength", 0.5)):
        ran = segue("generate", trained, "drum", *words, "--out", tmp_path / "o")
        assert ran.code == 2 and "of which recording? hint: add --from FILE" in ran.line
