"""`segue generate` and what several commands check alike: devices, numbers, files that are there already, a full disk."""

import resource

import numpy as np
import pytest
import soundfile
import torch

from segue.audio.tags import read_settings, read_tags
from segue.cli.main import main

TINY = ("--set", "model.preset=dit-tiny", "--set", "train.batch_size=4", "--set", "train.validation_clips=2")
PROMPTS = ("drum", "a choir sings", "bell, long")


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    words = ["train", "static-uniform", "--data", cache, "--out", run, "--examples", 8, *TINY, "--device", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in [*words, "--samples", 0]])
    assert not stopped.value.code
    return run


@pytest.fixture
def generate(segue, trained):
    def run(*words):
        return segue("generate", trained, *words, "--seconds", 0.3, "--steps", 2)

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_replaced_in_silence(generate, tmp_path):
    out = tmp_path / "out"
    assert generate(*PROMPTS, "--out", out).code == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert len(before) == 3
    for more in ((), ("--seed", 0), ("--number", 0)):
        ran = generate(*PROMPTS, "--out", out, *more)
        assert ran.code == 2 and "exists already (and 2 more); hint: --overwrite" in ran.line
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert generate(*PROMPTS, "--out", out, "--guidance", 3, "--overwrite").code == 0
    assert all(path.read_bytes() != data for path, data in before.items())
    assert generate(*PROMPTS, "--out", out, "--seed", 1).code == 0 and len(names(out)) == 6


def test_one_take_of_a_list_is_made_again_alone(generate, trained, tmp_path):
    assert generate(*PROMPTS, "--seed", 5, "--out", tmp_path / "all", "--batch-size", 2).code == 0
    assert generate(PROMPTS[2], "--seed", 5, "--take", 2, "--out", tmp_path / "one").code == 0
    assert names(tmp_path / "one") == names(tmp_path / "all")[2:] == ["002-bell-long-seed5.wav"]
    for index, name in enumerate(names(tmp_path / "all")):
        kept = read_settings(tmp_path / "all" / name)
        assert (kept["prompt"], kept["run"], kept["seed"], kept["number"]) == (PROMPTS[index], str(trained), 5, index)
        assert (kept["steps"], kept["seconds"], kept["solver"], kept["weights"]) == (2, 0.3, "multistep", "ema")


def test_takes_of_a_prompt_differ_by_their_seed_and_are_made_again_by_it(generate, tmp_path):
    words = ("--subtype", "FLOAT")
    assert (
        generate(*PROMPTS[:2], "--count", 3, "--seed", 4, "--out", tmp_path / "all", "--batch-size", 4, *words).code
        == 0
    )
    assert names(tmp_path / "all") == [
        f"{number:03d}-{name}-seed{seed}.wav"
        for number, name in enumerate(("drum", "a-choir-sings"))
        for seed in (4, 5, 6)
    ]
    waves = [soundfile.read(path)[0] for path in sorted((tmp_path / "all").iterdir())]
    scale = max(np.abs(wave).max() for wave in waves)
    assert all(np.abs(a - b).max() > 0.1 * scale for k, a in enumerate(waves) for b in waves[:k])
    assert generate(*PROMPTS[:2], "--seed", 6, "--out", tmp_path / "one", *words).code == 0
    for name in names(tmp_path / "one"):
        again, whole = (soundfile.read(tmp_path / folder / name)[0] for folder in ("one", "all"))
        np.testing.assert_allclose(again, whole, atol=1e-3 * scale)


def test_a_file_is_made_again_from_its_own_settings(segue, trained, tmp_path):
    words = ("--seconds", 0.3, "--steps", 2, "--guidance", 1.5, "--solver", "heun", "--seed", 9, "--number", 7)
    assert segue("generate", trained, PROMPTS[1], *words, "--out", tmp_path / "a").code == 0
    (file,) = (tmp_path / "a").iterdir()
    assert segue("generate", trained, "--like", file, "--out", tmp_path / "b").code == 0
    assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()
    written = ("--format", "flac", "--subtype", "PCM_24")
    assert segue("generate", trained, PROMPTS[1], *words, *written, "--out", tmp_path / "e").code == 0
    (flac,) = (tmp_path / "e").iterdir()
    assert segue("generate", trained, "--like", flac, "--out", tmp_path / "f").code == 0
    assert (tmp_path / "f" / flac.name).read_bytes() == flac.read_bytes()
    # Given options win, and another prompt is number 0 of its own list.
    assert segue("generate", trained, PROMPTS[0], "--like", file, "--seed", 2, "--out", tmp_path / "c").code == 0
    assert names(tmp_path / "c") == ["000-drum-seed2.wav"]
    assert read_settings(tmp_path / "c" / "000-drum-seed2.wav")["guidance"] == 1.5
    soundfile.write(tmp_path / "other.wav", np.zeros(100), 8000)
    for path, says in (("other.wav", "no settings of segue generate in it"), ("none.wav", "no such file")):
        ran = segue("generate", trained, "--like", tmp_path / path, "--out", tmp_path / "d")
        assert ran.code == 2 and says in ran.line and not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("words", "suffix", "subtype"),
    [
        ((), "wav", "PCM_16"),
        (("--subtype", "pcm_24"), "wav", "PCM_24"),
        (("--subtype", "FLOAT"), "wav", "FLOAT"),
        (("--format", "FLAC"), "flac", "PCM_16"),
        (("--format", "flac", "--subtype", "PCM_24"), "flac", "PCM_24"),
    ],
)
def test_formats_hold_the_same_sound_and_the_same_settings(generate, tmp_path, words, suffix, subtype):
    assert generate("drum", "--out", tmp_path / "a", *words).code == 0
    (file,) = (tmp_path / "a").iterdir()
    assert file.suffix == f".{suffix}" and soundfile.info(file).subtype == subtype
    assert read_settings(file)["prompt"] == "drum" and read_settings(file)["steps"] == 2
    assert generate("drum", "--out", tmp_path / "b", "--subtype", "FLOAT").code == 0
    exact = soundfile.read(tmp_path / "b" / "000-drum-seed0.wav")[0]
    gain = min(1.0, 1 / np.abs(exact).max())
    np.testing.assert_allclose(soundfile.read(file)[0], exact if subtype == "FLOAT" else exact * gain, atol=4e-5)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_loudness_is_reached_without_clipping_or_the_file_says_why_not(generate, tmp_path, suffix, monkeypatch):
    pytest.importorskip("pyloudnorm")
    from segue.audio.loudness import loudness_lufs
    from segue.pipeline import Pipeline

    time_sec = torch.arange(8000) / 8000
    soft = 0.01 * torch.sin(2 * torch.pi * 440 * time_sec)
    click = torch.zeros(8000)
    click[4000] = 0.5
    made = iter([soft, 3 * soft + 50 * click, torch.zeros(8000)])
    monkeypatch.setattr(
        Pipeline, "generate", lambda self, captions, **_: torch.stack([next(made)[None] for _ in captions])
    )
    ran = generate(*PROMPTS, "--loudness", -20, "--format", suffix, "--subtype", "PCM_24", "--out", tmp_path)
    assert ran.code == 0
    waves = [soundfile.read(path, always_2d=True)[0].T for path in sorted(tmp_path.iterdir())]
    assert loudness_lufs(waves[0], 8000) == pytest.approx(-20, abs=0.1)
    assert np.abs(waves[1]).max() == pytest.approx(1, abs=1e-4) and loudness_lufs(waves[1], 8000) < -20
    assert not waves[2].any()
    assert f"note: 001-a-choir-sings-seed0.{suffix}:" in ran.err and "its peak is at full scale then" in ran.err
    assert f"note: 002-bell-long-seed0.{suffix}: silent" in ran.err and "000-drum-seed0" not in ran.err


def test_silent_files_are_told(generate, tmp_path, monkeypatch):
    from segue.pipeline import Pipeline

    made = iter([0.0009, 0.0011])
    monkeypatch.setattr(Pipeline, "generate", lambda self, captions, **_: torch.full((1, 1, 2400), next(made)))
    ran = generate("drum", "--out", tmp_path / "a")
    assert ran.code == 0 and "note: 1 of 1 sounds is silent; hint: a model that has seen few examples" in ran.err
    assert "silent" not in generate("drum", "--out", tmp_path / "b").err


def test_what_would_clip_is_softer_and_said_or_kept_as_float(generate, tmp_path, monkeypatch):
    from segue.pipeline import Pipeline

    loud = 2 * torch.sin(torch.arange(2400) / 5)
    monkeypatch.setattr(Pipeline, "generate", lambda self, captions, **_: loud[None, None])
    ran = generate("drum", "--out", tmp_path / "a")
    assert "note: 000-drum-seed0.wav: 6.0 dB softer, so as not to clip; hint: --subtype FLOAT" in ran.err
    ran = generate("drum", "--out", tmp_path / "b", "--subtype", "FLOAT")
    assert "softer" not in ran.err
    np.testing.assert_array_equal(soundfile.read(tmp_path / "b" / "000-drum-seed0.wav")[0], loud.numpy())


def test_the_take_decides_the_noise(trained):
    from segue.pipeline import Pipeline, Sampling

    pipeline, some = Pipeline.load(trained), {"seconds": 0.3, "seed": 5, "sampling": Sampling(steps=2)}
    whole = pipeline.generate(PROMPTS, **some)
    scale = whole.abs().max()
    assert (pipeline.generate([PROMPTS[2]], numbers=[2], **some)[0] - whole[2]).abs().max() < 1e-3 * scale
    assert (pipeline.generate([PROMPTS[2]], numbers=[1], **some)[0] - whole[2]).abs().max() > 0.1 * scale


def test_a_long_prompt_is_kept_whole(generate, trained, tmp_path):
    prompt = "a drum that is struck again and again, " * 80
    assert generate(prompt, "--out", tmp_path, "--seed", 3).code == 0
    (path,) = tmp_path.iterdir()
    assert len(path.name) < 80
    assert read_tags(path)["title"] == prompt and read_settings(path)["prompt"] == prompt


@pytest.fixture
def from_the_second_on(monkeypatch):
    """What a pipeline gives from its second batch on is another."""

    def change(what):
        from segue.pipeline import Pipeline

        real, calls = Pipeline.generate, []

        def generate(self, *given, **options):
            calls.append(1)
            return real(self, *given, **options) if len(calls) == 1 else what(real(self, *given, **options))

        monkeypatch.setattr(Pipeline, "generate", generate)

    return change


def test_files_appear_as_they_are_made(generate, tmp_path, from_the_second_on):
    def interrupted(_):
        raise KeyboardInterrupt

    from_the_second_on(interrupted)
    ran = generate(*PROMPTS, "--out", tmp_path, "--batch-size", 1)
    assert ran.code == 130 and names(tmp_path) == ["000-drum-seed0.wav"] and "000-drum-seed0.wav" in ran.out


def test_a_wave_that_is_not_finite_is_never_written(generate, tmp_path, from_the_second_on):
    from_the_second_on(lambda waves: waves * torch.nan)
    ran = generate(*PROMPTS, "--out", tmp_path, "--batch-size", 1)
    assert ran.code == 2 and "001-a-choir-sings-seed0.wav: not written, its samples are not finite" in ran.line
    assert names(tmp_path) == ["000-drum-seed0.wav"]


def test_a_full_disk_is_one_line(segue, trained, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        ran = segue("generate", trained, "drum", "--out", tmp_path, "--seconds", 2, "--steps", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ran.code == 2 and "000-drum-seed0.wav" in ran.line and "hint" in ran.line
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--batch-size", 0), "--batch-size"),
        (("--batch-size", -3), "--batch-size"),
        (("--number", -1), "--number"),
        (("--steps", 10**9), "--steps 1000000000: hint: give at most"),
        (("--seconds", "1e9"), "--seconds 1e+09: hint: give at most"),
        (("--seconds", "1e-9"), "less than one sample"),
        (("--seconds", "nan"), "--seconds nan"),
        (("--seconds", "inf"), "--seconds inf"),
        (("--guidance", "nan"), "--guidance nan"),
        (("--guidance", "-inf"), "--guidance -inf"),
        (("--rescale", "nan"), "--rescale nan"),
        (("--count", 0), "--count"),
        (("--format", "mp3"), "--format mp3: use one of wav, flac"),
        (("--subtype", "PCM_S8"), "--subtype PCM_S8: use one of PCM_16, PCM_24, FLOAT"),
        (("--format", "flac", "--subtype", "FLOAT"), "flac holds whole numbers; hint: --subtype PCM_24"),
        (("--loudness", "nan"), "--loudness nan"),
        (("--loudness", 3), "--loudness"),
        (("--rescale", "2"), "a number from 0 to 1"),
        (("--seed", 10**30), "--seed"),
        (("--device", "gpu"), "--device gpu: no such device; hint: cpu, cuda"),
        (("--device", "cuda:x"), "--device cuda:x"),
        (("--device", "cpu:0:1"), "--device"),
        (("\udce9",), "not UTF-8"),
    ],
)
def test_options_that_do_not_fit(segue, trained, tmp_path, words, says):
    ran = segue("generate", trained, "drum", "--out", tmp_path / "out", *words)
    assert ran.code == 2 and says in ran.line and not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "words",
    [
        ("generate", "{run}", "drum", "--out", "{tmp}/o"),
        ("encode", "{sounds}", "--captions", "filename", "--out", "{tmp}/o"),
        ("train", "static-uniform", "--data", "{cache}", "--out", "{tmp}/o"),
        ("upsample", "{sounds}", "{tmp}/o"),
        ("codec", "train", "{sounds}", "--out", "{tmp}/o"),
        ("codec", "refine", "autoencoder", "{sounds}", "--out", "{tmp}/o"),
        ("teacher", "train", "{sounds}", "--out", "{tmp}/o"),
        ("evaluate", "generation", "{sounds}", "{sounds}", "--out", "{tmp}/o"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_device_that_is_not_there_is_named_by_every_command(segue, trained, cache, recordings, tmp_path, words):
    places = {"run": trained, "cache": cache, "sounds": recordings, "tmp": tmp_path}
    for device, says in (("cuda", "there is none here; hint: --device cpu"), ("tpu", "no such device")):
        ran = segue(*(word.format(**places) for word in words), "--device", device)
        assert ran.code == 2 and f"--device {device}: {says}" in ran.line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("codec", "train", "{sounds}", "--out", "{tmp}/o", "--minutes", "nan"), "--minutes nan"),
        (("codec", "train", "{sounds}", "--out", "{tmp}/o", "--kl-weight", "inf"), "--kl-weight inf"),
        (
            ("codec", "refine", "autoencoder", "{sounds}", "--out", "{tmp}/o", "--adversarial-share", "nan"),
            "--adversarial",
        ),
        (("teacher", "train", "{sounds}", "--out", "{tmp}/o", "--minutes", "inf"), "--minutes inf"),
        (("teacher", "train", "{sounds}", "--out", "{tmp}/o", "--threads", "-1"), "--threads -1"),
        (("upsample", "{sounds}", "{tmp}/o", "--cutoff", "nan"), "--cutoff nan"),
        (("upsample", "{sounds}", "{tmp}/o", "--rate", "0"), "--rate 0"),
        (("upsample", "{sounds}", "{tmp}/o", "--chunk-seconds", "inf"), "--chunk-seconds inf"),
        (("encode", "{sounds}", "--captions", "filename", "--out", "{tmp}/o", "--seconds", "nan"), "--seconds nan"),
        (("encode", "{sounds}", "--captions", "filename", "--out", "{tmp}/o", "--batch-size", "0"), "--batch-size 0"),
        (
            ("encode", "{sounds}", "--captions", "filename", "--out", "{tmp}/o", "--sample-rate-hz", "0"),
            "--sample-rate-hz 0",
        ),
        (("data", "check", "{sounds}", "--captions", "filename", "--workers", "0"), "--workers 0"),
        (("demo", "--minutes", "nan", "--out", "{tmp}/o"), "--minutes nan"),
        (("demo", "--minutes", "inf", "--out", "{tmp}/o"), "--minutes inf"),
        (("train", "static-uniform", "--data", "x", "--out", "{tmp}/o", "--grace-sec", "nan"), "--grace-sec nan"),
        (
            ("train", "static-uniform", "--data", "x", "--out", "{tmp}/o", "--set", "optim.learning_rate=nan"),
            "give a number",
        ),
        (
            ("evaluate", "generation", "{sounds}", "{sounds}", "--crop-seconds", "inf", "--out", "{tmp}/o"),
            "--crop-seconds inf",
        ),
        (("super-resolution", "measure", "default", "{sounds}", "--cutoff-hz", "nan"), "--cutoff-hz nan"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else None,
)
def test_numbers_that_nothing_can_be_computed_with(segue, recordings, tmp_path, words, says):
    ran = segue(*(word.format(sounds=recordings, tmp=tmp_path) for word in words))
    assert ran.code == 2 and says in ran.line and not list(tmp_path.iterdir())


def test_samples_of_a_run_are_scaled_where_they_are_too_loud(trained, cache, tmp_path, monkeypatch):
    from segue.data.open_cache import open_cache
    from segue.workflows import run_samples

    class Loud:
        codec = type("Codec", (), {"sample_rate_hz": 8000})

        @classmethod
        def load(cls, _):
            return cls()

        def generate(self, captions, batch_size):
            return torch.sin(torch.arange(4000) / 5)[None].repeat(len(captions), 1) * 2

    monkeypatch.setattr(run_samples, "Pipeline", Loud)
    monkeypatch.setattr(run_samples, "write_originals", lambda *_: None)
    run_samples.generate_samples(tmp_path, open_cache(cache), 2)
    waves = [soundfile.read(path)[0] for path in sorted((tmp_path / "samples").glob("*.wav"))]
    assert len(waves) == 2
    for wave in waves:
        assert np.mean(np.abs(wave) > 0.9999) < 0.02, "clipped, it would be at full scale for two thirds of the time"
        np.testing.assert_allclose(wave, np.sin(np.arange(4000) / 5), atol=1e-3)
