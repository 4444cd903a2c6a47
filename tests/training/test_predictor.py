"""Training of the predictor: keyed, resumable bit for bit, and used by the command that a user types."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from segue.predictor import PredictorConfig
from segue.training.predictor import PredictorTrainConfig, predictor_run
from segue.training.predictor.predictor_losses import losses
from segue.training.training_audio import read_training_audio
from segue.types import UserError

CONFIG = PredictorTrainConfig(
    PredictorConfig(16_000, width=24, blocks=2), steps=4, batch_size=4, crop_sec=0.4, warmup_steps=2,
    save_every_sec=1e9, validate_every_sec=1e9,
)  # fmt: skip


@pytest.fixture(scope="module")
def bright(tmp_path_factory):
    """Twenty-four sounds of 3 s up to 8 kHz: partials and hiss that swell together."""
    folder = tmp_path_factory.mktemp("bright")
    generator = np.random.default_rng(0)
    time_sec = np.arange(48_000) / 16_000
    rows = []
    for index in range(24):
        hz = 150 + 17 * index
        tone = sum(np.sin(2 * np.pi * hz * k * time_sec) / k for k in range(1, int(8000 / hz)))
        swell = np.sin(2 * np.pi * (0.5 + index / 10) * time_sec) ** 2
        wave = 0.1 * swell * (tone + 0.1 * generator.standard_normal(len(tone)))
        soundfile.write(folder / f"{index}.wav", wave, 16_000)
        rows.append({"audio": f"{index}.wav", "split": "valid" if index % 8 == 0 else "train"})
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "list.jsonl"


def test_a_resumed_run_equals_an_uninterrupted_one(bright, tmp_path):
    predictor_run.train_predictor(bright, tmp_path / "whole", CONFIG)
    audio = read_training_audio(bright, (), 16_000)
    half = predictor_run.start(CONFIG, "cpu")
    for step in range(2):
        predictor_run.train_step(half, predictor_run.draw_batch(audio, CONFIG, step), CONFIG)
    (tmp_path / "parts").mkdir()
    half.save(tmp_path / "parts", CONFIG)
    predictor_run.train_predictor(bright, tmp_path / "parts", CONFIG, resume=True)
    first, second = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "parts"))
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    with pytest.raises(UserError, match="already"):
        predictor_run.train_predictor(bright, tmp_path / "whole", CONFIG)
    with pytest.raises(UserError, match="another"):
        predictor_run.train_predictor(bright, tmp_path / "whole", replace(CONFIG, seed=1), resume=True)


def test_clips_from_telephones_leave_all_others_as_they_were(bright):
    audio = read_training_audio(bright, (), 16_000)
    coded = replace(CONFIG, batch_size=8, telephone_share=0.5, coded_share=0.2)
    plain = predictor_run.draw_batch(audio, replace(CONFIG, batch_size=8), 3)
    mixed, again = (predictor_run.draw_batch(audio, coded, 3) for _ in range(2))
    assert torch.equal(mixed.low, again.low) and torch.equal(mixed.noise, plain.noise)
    same = [torch.equal(a, b) for a, b in zip(plain.low, mixed.low)]
    assert 0 < sum(same) < len(same)
    from_telephones = (mixed.cutoff_hz >= 3300) & (mixed.cutoff_hz <= 3500) & (mixed.cutoff_hz != plain.cutoff_hz)
    assert from_telephones.any()
    with pytest.raises(UserError, match="at most 1"):
        replace(CONFIG, telephone_share=0.7, coded_share=0.6)


def test_losses_are_small_for_the_truth_and_every_weight_learns(bright):
    audio = read_training_audio(bright, (), 16_000)
    run = predictor_run.start(CONFIG, "cpu")
    batch = predictor_run.draw_batch(audio, CONFIG, 0)
    again = predictor_run.draw_batch(audio, CONFIG, 0)
    assert torch.equal(batch.low, again.low) and torch.equal(batch.cutoff_hz, again.cutoff_hz)
    made = run.online(batch.low, batch.cutoff_hz, batch.noise)
    parts = losses(run.online, made, batch.wave, batch.cutoff_hz, batch.gain)
    sum(parts.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in run.online.parameters())
    true = losses(run.online, replace(made, wave=batch.wave), batch.wave, batch.cutoff_hz, batch.gain)
    assert true["spectrum"] < 0.02 < parts["spectrum"]


def test_cutoffs_that_leave_nothing_are_refused():
    with pytest.raises(UserError, match="between 1000 Hz and half of --rate"):
        replace(CONFIG, cutoff_max_hz=8000.0)


def test_training_by_command_and_what_comes_of_it(segue, bright, tmp_path, monkeypatch):
    monkeypatch.setattr("segue.predictor.PredictorConfig", lambda rate_hz: PredictorConfig(rate_hz, 16, 1))
    out = tmp_path / "run"
    ran = segue("super-resolution", "train", bright, "--out", out, "--steps", "2", "--device", "cpu")
    assert ran.code == 0, ran.err
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {"lsd_full", "lsd_high", "level", "mix_harmonic"} <= logged[-1].keys()
    wave = 0.1 * np.random.default_rng(0).standard_normal(8000)
    soundfile.write(tmp_path / "narrow.wav", wave, 8000)
    ran = segue("upsample", out, tmp_path / "narrow.wav", tmp_path / "wide.wav")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["steps"] == 0 and soundfile.info(tmp_path / "wide.wav").samplerate == 16_000
    refused = segue("upsample", out, tmp_path / "narrow.wav", tmp_path / "w.wav", "--steps", "4")
    assert refused.code == 2 and "has no steps" in refused.line
    measured = segue("super-resolution", "measure", out, bright, "--clips", "3", "--json", tmp_path / "f.json")
    assert measured.code == 0 and "has no split 'test'" in measured.err
    assert list(json.loads((tmp_path / "f.json").read_text())["rows"])[-1] == "predictor"
