"""From a folder of sounds to a model that fills their upper band, by the commands that a user types."""

import json

import numpy as np
import soundfile

SHORT = ["model.preset=dit-tiny", "train.batch_size=8", "train.tensorboard=false", "probe.space=latent",
         "probe.clips=8"]  # fmt: skip


def test_encode_train_and_what_comes_of_it(segue, recordings, tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "run"
    encoded = segue("encode", recordings, "--codec", "gain-shape", "--captions", "filename", "--seconds", "0.512",
                    "--out", cache)  # fmt: skip
    assert encoded.code == 0, encoded.err
    changes = [word for change in SHORT for word in ("--set", change)]
    trained = segue("train", "sr-demo", "--data", cache, "--out", out, "--examples", "32", "--device", "cpu", *changes)
    assert trained.code == 0, trained.err
    assert "cutoffs 3400 to 4000 Hz; generated up to 8,000 Hz" in trained.err
    listed = json.loads((out / "samples" / "samples.json").read_text())
    assert [row["file"].split("-")[1] for row in listed[:3]] == ["low.wav", "made.wav", "true.wav"]
    low, made, true = (soundfile.read(out / "samples" / row["file"])[0] for row in listed[:3])
    assert low.shape == made.shape == true.shape and (out / "report.html").exists()
    refused = segue("generate", out, "a bell", "--out", tmp_path / "g")
    assert refused.code == 2 and "not for generation" in refused.line


def test_a_cache_without_room_above_the_cutoff_is_refused_before_training(segue, cache, tmp_path):
    ran = segue("train", "sr-demo", "--data", cache, "--out", tmp_path / "run", "--examples", "32")
    assert ran.code == 2 and "nothing would be missing" in ran.line and not (tmp_path / "run" / "config.json").exists()


def test_a_run_is_measured_beside_baselines(segue, recordings, tmp_path):
    cache, run = tmp_path / "cache", tmp_path / "run"
    segue("encode", recordings, "--codec", "gain-shape", "--captions", "filename", "--seconds", "0.512", "--out", cache)
    changes = [word for change in SHORT for word in ("--set", change)]
    assert segue("train", "sr-demo-static", "--data", cache, "--out", run, "--examples", "16", "--samples", "0",
                 "--device", "cpu", *changes).code == 0  # fmt: skip
    figures = tmp_path / "figures.json"
    measured = segue(
        "super-resolution", "measure", run, recordings, "--steps", "1,2", "--clips", "4", "--json", figures
    )
    found = json.loads(figures.read_text())
    rows = found["rows"]
    # A set without a test split: only what training holds out, and that is said.
    assert found["split"] == "valid" and "has no split 'test': measured on its split 'valid'" in measured.err
    assert list(rows) == [
        "unprocessed",
        "sinc",
        "band replication",
        "codec round trip",
        "model, 1 steps",
        "model, 2 steps",
    ]
    assert rows["codec round trip"]["lsd full"]["mean"] < 0.01 < rows["model, 1 steps"]["lsd full"]["mean"]
    shown = next(line for line in measured.out.splitlines() if "model, 1 steps" in line)
    assert f"{rows['model, 1 steps']['lsd full']['mean']:.3f} (" in shown
    # By its former name, too.
    assert segue("resolver", "measure", run, recordings, "--steps", "0").code == 2
    assert "resolver" not in segue("--help").out


def test_a_model_from_the_shipped_predictors_guess_is_trained_measured_and_used(segue, recordings, tmp_path):
    cache, run = tmp_path / "cache", tmp_path / "run"
    segue("encode", recordings, "--codec", "gain-shape", "--captions", "filename", "--seconds", "0.512", "--out", cache)
    changes = [word for change in SHORT for word in ("--set", change)]
    trained = segue("train", "sr-predicted", "--data", cache, "--out", run, "--examples", "16", "--samples", "1",
                    "--device", "cpu", *changes)  # fmt: skip
    assert trained.code == 0, trained.err
    assert "predictor: shipped (" in trained.err and "whose guess the model starts from" in trained.err
    figures = tmp_path / "figures.json"
    measured = segue("super-resolution", "measure", run, recordings, "--steps", "1", "--clips", "4", "--json", figures)
    rows = json.loads(figures.read_text())["rows"]
    # Hardly trained, it already gives what it starts from.
    assert rows["model, 1 steps"]["lsd full"]["mean"] < rows["sinc"]["lsd full"]["mean"], measured.out
    narrow = tmp_path / "narrow.wav"
    soundfile.write(narrow, 0.1 * np.random.default_rng(0).normal(size=8000), 8000)
    made = segue("upsample", run, narrow, tmp_path / "wide.wav", "--steps", "2")
    assert made.code == 0, made.err
    assert json.loads(made.out)["steps"] == 2 and soundfile.info(tmp_path / "wide.wav").samplerate == 16000
