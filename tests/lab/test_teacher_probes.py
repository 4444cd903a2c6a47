"""Linear probes of a teacher's space, and the card of a released teacher."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from segue.ssl import load_teacher
from segue.ssl.compact import CompactConfig
from segue.training.teacher import teacher_run as training
from segue.types import UserError
from segue_lab.release.teacher import release_teacher
from segue_lab.teacher_probes import Probe, accuracy, probe_teacher

MODEL = CompactConfig(window_samples=512, bands=40, width=32, depth=3, heads=2, expansion=2, layers=(2, 3))
CONFIG = training.TeacherTrainConfig(
    model=MODEL, steps=6, batch_size=8, crop_sec=0.48, warmup_steps=2, predictor_width=32, save_every_sec=1e9,
    validate_every_sec=1e9, learning_rate=3e-3, target_layers=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """60 decaying tones of 2 s with one to four partials: "family" counts the partials; one in five each test, valid."""
    folder = tmp_path_factory.mktemp("tones")
    time_sec = np.arange(32000) / 16000
    rows = []
    for index in range(60):
        family, pitch = index % 4, index % 7
        partials = [np.sin(2 * np.pi * 200 * 2 ** (pitch / 7) * (k + 1) * time_sec) for k in range(family + 1)]
        soundfile.write(folder / f"{index}.flac", 0.1 * np.exp(-2 * time_sec) * sum(partials), 16000)
        split = ("test", "valid", "train", "train", "train")[index % 5]
        label = {"family": f"{family + 1} partials", "pitch": pitch, "instrument": None}
        rows.append({"path": f"{index}.flac", "split": split, "kind": "note", **label})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture(scope="module")
def trained(tones, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    training.train_teacher(tones, folder, replace(CONFIG, steps=100, batch_size=16))
    return folder


def test_probes_are_fair_and_the_card_says_them(trained, tones, tmp_path):
    report = probe_teacher(load_teacher(str(trained)), tones, layers=True)
    assert report["probes"].keys() == {"family", "pitch"}, "instrument names nothing here"
    family = report["probes"]["family"]
    assert (family["train_clips"], family["test_clips"], family["test_split"]) == (36, 12, "test")
    assert family["chance"] <= 0.5
    assert family["log_mel_statistics"] > 0.8 and family["teacher"] > 0.8
    assert {"teacher", "log_mel_statistics", "random_weights", "layer_1", "layer_3"} <= family.keys()
    card = release_teacher(
        trained, tmp_path, {"tones": tones}, sources=[{"name": "tones"}], command="c", commit="0", layers=(3,)
    )
    assert json.loads((tmp_path / "card.json").read_text()) == json.loads(json.dumps(card))
    released = load_teacher(str(tmp_path))
    assert released.config.layers == (3,) and released.fingerprint()["weights"] == card["weights"]
    assert card["training"]["steps"] == 100 and card["bytes"] == (tmp_path / "teacher.safetensors").stat().st_size
    assert (
        card["figures"]["tones"]["probes"]["family"] == probe_teacher(released, tones, layers=True)["probes"]["family"]
    )
    torch.testing.assert_close(
        released.encoder.statistics[:, 0], released.encoder.statistics[:, 3], atol=2e-3, rtol=2e-3
    )
    with pytest.raises(UserError, match="--layer 4: there are layers 1 to 3"):
        release_teacher(trained, tmp_path / "x", {"t": tones}, sources=[], command="", commit="", layers=(4,))
    assert not (tmp_path / "x").exists()


def test_a_source_without_labels_gets_collapse_figures(trained, tones, tmp_path):
    (tmp_path / "a.flac").write_bytes((tones / "1.flac").read_bytes())
    report = probe_teacher(load_teacher(str(trained)), tmp_path)
    assert report["probes"] == {} and report["collapse"]["feature_std"] > 0


def test_probe_accuracy_is_that_of_what_can_be_predicted():
    generator = np.random.default_rng(0)
    labels = [str(i % 3) for i in range(120)]
    probe = Probe("x", list(range(90)), list(range(90, 120)), labels, "test")
    told = np.eye(3)[[int(x) for x in labels]] + 0.05 * generator.standard_normal((120, 3))
    assert accuracy(told, probe) == 1.0
    assert accuracy(generator.standard_normal((120, 3)), probe) < 0.7
