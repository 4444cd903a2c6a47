"""The command line as its users meet it: what works, and one clear line with exit 2 for what does not."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from segue.recipes import RECIPES
from segue.report.page import duration
from segue.training.log import read_log

TINY = ("--set", "model.preset=dit-tiny", "--set", "train.batch_size=4", "--set", "train.validation_clips=2")


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    from segue.cli.main import main

    run = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "train",
                "semantic-timesteps",
                "--data",
                str(cache),
                "--out",
                str(run),
                "--examples",
                "24",
                *TINY,
                "--device",
                "cpu",
            ]
        )
    assert not stopped.value.code
    return run


def test_train_leaves_what_it_promises(trained):
    assert {"config.json", "log.jsonl", "checkpoints", "samples", "report.html"} <= {p.name for p in trained.iterdir()}
    log = read_log(trained / "log.jsonl")
    assert {"event", "examples_seen", "loss", "examples_per_sec"} <= next(
        e for e in log if e["event"] == "train"
    ).keys()
    samples = json.loads((trained / "samples" / "samples.json").read_text())
    # One sound a caption; the held-out clips have three.
    assert len({s["prompt"] for s in samples}) == len(samples) == 3
    assert all((trained / "samples" / s["file"]).exists() for s in samples)
    html = (trained / "report.html").read_text()
    assert "data:audio/wav;base64" in html and "http" not in html.split("</head>")[0]


def test_the_page_of_a_run_reads_what_training_wrote(trained):
    page = (trained / "report.html").read_text()
    state = json.loads(max(trained.glob("checkpoints/*/state.json")).read_text())
    assert "<h1>semantic-timesteps</h1>" in page
    for chip in ("examples seen <b>24</b>", "of <b>24</b>", f"training time <b>{duration(state['seconds'])}</b>"):
        assert chip in page
    assert "<dt>train.batch_size</dt><dd>4</dd>" in page


def test_generate_same_seed_same_bytes_with_the_prompt_inside(segue, trained, tmp_path):
    prompts = ("a drum, hard & loud", "ambi choir")
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        ran = segue(
            "generate", trained, *prompts, "--seconds", 0.3, "--seed", seed, "--steps", 3, "--out", tmp_path / folder
        )
        assert ran.code == 0, ran.err
    a, b, c = ([p.read_bytes() for p in sorted((tmp_path / f).iterdir())] for f in "abc")
    assert a == b and a != c and len(a) == 2
    file = sorted((tmp_path / "a").iterdir())[0]
    assert file.name == "000-a-drum-hard-loud-seed0.wav"
    with soundfile.SoundFile(file) as sound:
        assert (sound.title, sound.samplerate, sound.frames) == (prompts[0], 8000, 2400)
        assert np.abs(sound.read()).max() <= 1


def test_generate_in_batches_of_any_size_agrees(trained):
    from segue.pipeline import Pipeline, Sampling

    pipeline = Pipeline.load(trained)
    captions = ["drum", "choir sings", "bell"]
    whole = pipeline.generate(captions, seed=2, sampling=Sampling(steps=4))
    parts = pipeline.generate(captions, seed=2, sampling=Sampling(steps=4), batch_size=2)
    assert float((whole - parts).abs().max()) < 1e-3


def test_resume_of_a_finished_run_is_harmless(segue, trained, cache):
    before = (trained / "log.jsonl").read_text()
    ran = segue("train", "--resume", trained)
    assert ran.code == 0 and "24 examples" in ran.out
    assert [e["event"] for e in read_log(trained / "log.jsonl")].count("train") == before.count('"train"')


def test_dry_run_prints_and_writes_nothing(segue, cache, tmp_path):
    ran = segue("train", "static-uniform", "--data", cache, "--out", tmp_path / "r", "--dry-run", *TINY)
    assert ran.code == 0 and not (tmp_path / "r").exists()
    assert json.loads(ran.out[: ran.out.rindex("}") + 1])["recipe"] == "static-uniform"
    assert "peak memory about" in ran.out and "parameters" in ran.out


def test_prompts_that_the_encoder_loses_are_said(segue, trained, tmp_path):
    """The end of a prompt that is too long, and signs that the text encoder does not know."""
    long = "a soft violin, " * 20 + "and a bell"
    ran = segue("generate", trained, long, "🎸 solo", "kick", "--out", tmp_path / "out", "--steps", 1)
    assert ran.code == 0 and len(list((tmp_path / "out").glob("*.wav"))) == 3
    # Of a model that has seen some dozen examples it may be said as well that it is silent.
    notes = [line for line in ran.err.splitlines() if line.startswith("note: ") and "silent" not in line]
    assert len(notes) == 2 and "1 prompt (e.g. 'a soft violin, a" in notes[0] and "cut there" in notes[0]
    assert "1 prompt (e.g. '🎸 solo') with words or signs" in notes[1]


def test_recipes_and_sizes_are_printed(segue):
    ran = segue("recipes", "--presets")
    for word in ("static-uniform", "min-snr", "(default)", "dit-3m", "dit-1b", "GiB"):
        assert word in ran.out


def test_names_of_recipes_are_whole_on_a_narrow_terminal(segue, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = segue("recipes").out
    assert all(f"{name} " in out for name in RECIPES)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trian",), "Did you mean 'train'?"),
        (("xylophone",), "No such command 'xylophone'; hint: segue --help"),
        (("teacher", "--xylophone"), "hint: segue teacher --help"),
        (("train", "static-unifrm", "--data", "{cache}", "--out", "{tmp}/r"), "did you mean static-uniform"),
        (("train", "static-uniform", "--out", "{tmp}/r"), "--data is missing"),
        (("train", "static-uniform", "--data", "{tmp}/none", "--out", "{tmp}/r"), "no latent cache"),
        (("train", "static-uniform", "--data", "{cache}", "--out", "{tmp}/r", "--set", "optim.lr=1"), "did you mean"),
        (
            ("train", "static-uniform", "--data", "{cache}", "--out", "{tmp}/r", "--set", "model.preset=dit-9t"),
            "dit-3m",
        ),
        (("train", "static-uniform", "--data", "{cache}", "--out", "{tmp}/r", "--examples", "0"), "at least 1"),
        (
            ("train", "static-uniform", "--data", "{cache}", "--out", "{tmp}/r", "--set", "train.batch_size=999"),
            "batch",
        ),
        (("train", "static-uniform", "--data", "{cache}", "--out", "{run}"), "--resume"),
        (("train", "--resume", "{tmp}/none"), "config.json"),
        (("train", "static-uniform", "--resume", "{run}"), "leave RECIPE away"),
        (("train", "static-uniform", "--data", "{cache}", "--out", "{tmp}/r", "--no-such-option"), "--no-such-option"),
        (("generate", "{tmp}/none", "a violin"), "does not exist"),
        (("generate", "{run}"), "no prompt"),
        (("generate", "{run}", " "), "empty prompt"),
        (("generate", "{run}", "x", "--seconds", "0"), "--seconds"),
        (("generate", "{run}", "x", "--steps", "0"), "--steps"),
        (("generate", "{run}", "x", "--solver", "dopri"), "--solver"),
        (("generate", "{run}", "x", "--weights", "best"), "--weights"),
        (("generate", "{run}", "x", "--prompts-file", "{tmp}/none.txt"), "no such file"),
        (("encode", "{tmp}/none", "--out", "{tmp}/c"), "no such file"),
        (("encode", "{sounds}", "--captions", "filename", "--out", "{tmp}/c", "--codec", "mp5"), "spectral"),
        (("encode", "{sounds}", "--out", "{tmp}/c"), ".txt"),
        (("data", "check", "{tmp}"), "hint"),
        (("demo", "--minutes", "-1", "--out", "{tmp}/d"), "--minutes"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else None,
)
def test_a_mistake_gets_one_line_and_exit_2(segue, cache, trained, recordings, tmp_path, arguments, says):
    places = {"cache": cache, "tmp": tmp_path, "run": trained, "sounds": recordings}
    ran = segue(*(a.format(**places) for a in arguments))
    assert ran.code == 2 and says in ran.line, ran.err
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_a_cache_of_other_settings_is_refused(segue, cache, recordings):
    ran = segue(
        "encode",
        recordings,
        "--captions",
        "filename",
        "--out",
        cache,
        "--seconds",
        1.0,
        "--codec",
        "spectral",
        "--sample-rate-hz",
        8000,
        "--teacher",
        "none",
    )
    assert ran.code == 2 and "seconds 0.5 there, 1.0 here" in ran.line


def test_a_damaged_checkpoint_is_named(segue, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    model = sorted(run.glob("checkpoints/*/model.safetensors"))[-1]
    model.write_bytes(model.read_bytes()[:1000])
    ran = segue("generate", run, "x")
    assert ran.code == 2 and model.name in ran.line
    ran = segue("train", "--resume", run)  # goes on from the one before, and says so
    assert ran.code == 0 and f"{model.parent.name}" in ran.err and "the checkpoint before it" in ran.err
    for model in run.glob("checkpoints/*/model.safetensors"):
        model.write_bytes(model.read_bytes()[:1000])
    ran = segue("train", "--resume", run)
    assert ran.code == 2 and model.name in ran.line


def test_a_config_from_another_version_is_named(segue, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for text in ("{", json.dumps({"run": {}, "cache": "x"})):
        (run / "config.json").write_text(text)
        assert segue("train", "--resume", run).code == 2


def test_data_check_names_bad_files_and_exits_2(segue, tmp_path):
    soundfile.write(tmp_path / "good_one.wav", 0.1 * np.ones(4000), 8000)
    (tmp_path / "liar.wav").write_text("this is text")
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0), 8000)
    ran = segue("data", "check", tmp_path, "--captions", "filename")
    assert ran.code == 2 and "liar.wav" in ran.out and "nothing.wav" in ran.out
