from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from segue.ssl import load_teacher
from segue.ssl.compact import CompactConfig
from segue.training import small_run
from segue.training.teacher import collapse as figures
from segue.training.teacher import statistics, views
from segue.training.teacher import teacher_losses as losses
from segue.training.teacher import teacher_run as training
from segue.training.training_audio import Sounds, TrainingAudio, clips_of, read_sounds, read_training_audio
from segue.types import UserError

MODEL = CompactConfig(window_samples=512, bands=40, width=32, depth=3, heads=2, expansion=2, layers=(2, 3))
CONFIG = views.TeacherTrainConfig(
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_run, "_LOG_EVERY", 20)
        training.train_teacher(tones, folder, replace(CONFIG, steps=40, batch_size=16))
    return folder


def test_a_resumed_run_equals_an_uninterrupted_one(tones, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "refuse_collapsed", lambda *_: None)
    training.train_teacher(tones, tmp_path / "whole", CONFIG)
    # Schedules depend on the planned total, so the interruption must not change the plan: stop it half way.
    audio = read_training_audio(tones, (), 16000)
    half = training.start(CONFIG, "cpu")
    waves = statistics.some_waves(audio.training, 384, 64000)
    for encoder in (half.target.encoder, half.online.network.encoder):
        statistics.fit_mel(encoder, waves)
    for _ in range(3):
        training.train_step(half, views.draw_views(audio, CONFIG, half.generator), CONFIG)
    half.save(tmp_path / "parts", CONFIG)
    training.train_teacher(tones, tmp_path / "parts", CONFIG, resume=True)
    for name in ("state.safetensors", "teacher.safetensors"):
        whole, parts = (load_file(tmp_path / run / name) for run in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[k], parts[k]) for k in whole), name


def test_a_state_of_an_earlier_version_is_read_under_its_own_names(tmp_path):
    """The encoder with its heads was called `listener`; its weights and Adam's moments have that name in old files."""
    before = training.start(CONFIG, "cpu")
    for parameter in before.online.parameters():
        before.optimizer.state[parameter] = {"step": torch.tensor(1.0), "exp_avg": torch.ones_like(parameter)}
    before.save(tmp_path, CONFIG)
    file = tmp_path / "state.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    old = {
        k.replace("online.network.", "online.listener.").replace("adam.network.", "adam.listener."): v
        for k, v in load_file(file).items()
    }
    assert any(k.startswith("adam.listener.") for k in old)
    save_file(old, file, metadata)
    after = training.start(replace(CONFIG, seed=9), "cpu")
    after.load(tmp_path, CONFIG)
    pairs = zip(before.online.parameters(), after.online.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert len(after.optimizer.state) == len(before.optimizer.state)


def test_training_lowers_the_loss_and_leaves_a_teacher(trained, tones):
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "train"]
    assert len(losses) == 2 and losses[-1] < 0.95 * losses[0]
    assert lines[-1]["event"] == "validation" and lines[-1]["effective_rank"] > statistics.COLLAPSED_RANK
    teacher = load_teacher(str(trained))
    sounds = read_sounds([s for s in clips_of(tones) if s.split == "test"], 16000)
    frames = torch.cat([teacher.encode(sounds.wave(i)[None])[0] for i in range(len(sounds))])
    # Stored statistics standardise: on held-out sound of the same sort, nearly.
    assert frames.mean(0).abs().mean() < 0.3
    assert 0.6 < frames.std(0).mean() < 1.4


def test_held_out_sounds_get_collapse_figures(trained, tones):
    report = figures.measure_teacher(load_teacher(str(trained)), tones)
    assert report["clips"] == 12 and report["collapse"]["feature_std"] > 0


def test_collapse_is_seen_and_refused():
    waves = list(torch.randn(6, 1600, generator=torch.Generator().manual_seed(0)))
    basis = torch.randn(32, generator=torch.Generator().manual_seed(1))
    flat = statistics.collapse_figures(lambda w: basis.expand(1, 20, 32) + 1e-3 * w[:, :20, None], waves)
    assert flat["feature_std"] < 0.01 and flat["effective_rank"] < 1.5 and flat["clip_cosine"] > 0.99
    with pytest.raises(UserError, match="collapsed"):
        statistics.refuse_collapsed(flat, "here")
    rich = statistics.collapse_figures(lambda w: w.reshape(1, 50, 32), waves)
    assert rich["feature_std"] == pytest.approx(1, abs=0.1)
    assert 25 < rich["effective_rank"] <= 32 and abs(rich["clip_cosine"]) < 0.3
    statistics.refuse_collapsed(rich, "here")


def test_views_are_crops_of_one_sound():
    waves = [np.full(40000, value, dtype=np.int16) for value in range(1000, 9000, 1000)]
    config = replace(CONFIG, mix_gain=0.0, batch_size=32)
    drawn = views.draw_views(TrainingAudio(Sounds(waves), Sounds([]), []), config, torch.Generator().manual_seed(0))
    wave = drawn.wave
    assert wave.shape == (32, round(0.48 * 16000))
    for row in wave:
        # A constant sound at any speed and level: silence before its start, one value after.
        assert len(set(row[row != 0].tolist())) == 1
    starts = (wave[:, 0] == 0).reshape(2, 16)
    assert 3 <= starts.any(0).sum() <= 15, "about half straddle the start"


def test_views_are_played_at_the_speed_that_they_say():
    time_sec = np.arange(64000) / 16000
    tone = (8000 * np.sin(2 * np.pi * 440 * time_sec)).astype(np.int16)
    config = replace(CONFIG, mix_gain=0.0, batch_size=64, speed_semitones=4.0, model=replace(MODEL, hop_samples=160))
    drawn = views.draw_views(TrainingAudio(Sounds([tone]), Sounds([]), []), config, torch.Generator().manual_seed(1))
    wave, semitones = drawn.wave, drawn.semitones
    crossings = ((wave[:, 4000:-1] < 0) & (wave[:, 4001:] >= 0)).sum(1)
    hz = crossings / ((wave.shape[1] - 4001) / 16000)
    torch.testing.assert_close(hz, 440 * 2 ** (semitones / 12), atol=8, rtol=0)
    assert semitones.abs().max() <= 4 and semitones.std() > 1.5
    first, second = semitones.reshape(2, 32)
    assert torch.equal(first[::2], second[::2]), "both crops of every second sound alike"
    assert (first[1::2] != second[1::2]).all()


@pytest.mark.parametrize("frames", [3, 12, 24, 50])
def test_masks_have_one_size_and_spans(frames):
    config = replace(CONFIG, mask_share=0.6, span_frames=4)
    visible = views.draw_visible(200, frames, config, torch.Generator().manual_seed(0))
    assert visible.shape == (200, frames - round(0.6 * frames))
    assert (visible.diff(dim=1) > 0).all() and visible.min() >= 0 and visible.max() < frames
    counts = torch.bincount(visible.flatten(), minlength=frames) / 200
    assert counts.min() > 0.05, "every frame is visible now and then"
    if frames == 50:
        hidden = torch.ones(200, frames).scatter(1, visible, 0.0)
        kept_on = (hidden[:, 1:] * hidden[:, :-1]).sum() / hidden[:, :-1].sum()
        assert kept_on > 0.75, "masked frames come in spans"


def test_whitening_decorrelates_and_does_not_turn():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    x = torch.randn(8, 500, 6, generator=generator, dtype=torch.float64) * torch.tensor([5, 3, 2, 1, 0.5, 0.4]) @ mixing
    white = losses.whiten(x + 3, shrink=0.0).flatten(0, 1)
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(6, dtype=torch.float64), atol=1e-3, rtol=0)
    alone = torch.randn(8, 500, 6, generator=generator, dtype=torch.float64)
    kept = losses.whiten(alone)
    assert torch.nn.functional.cosine_similarity(kept.flatten(0, 1), alone.flatten(0, 1), dim=1).min() > 0.9


def test_masked_loss_counts_masked_frames_only():
    wanted = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    visible = torch.tensor([[0, 1], [3, 4]])
    guess = wanted.clone()
    guess[0, :2] = 9.0
    guess[1, 3:] = -9.0
    assert losses.masked_loss(guess, wanted, visible) == 0
    guess[0, 2] += 2.0
    assert losses.masked_loss(guess, wanted, visible).item() == pytest.approx(4 / 6)


def test_clip_loss_is_the_closed_form():
    count, temperature = 3, 0.5
    names = torch.eye(6)[:3].repeat(2, 1)
    loss, found = losses.clip_loss(names, names, temperature)
    # The other crop scores 1 / temperature, the four crops of other sounds 0; its own target is no candidate.
    assert loss.item() == pytest.approx(-2 + math.log(math.exp(2) + 2 * (count - 1)))
    assert found == 1
    turned, lost = losses.clip_loss(names, names.roll(1, 0), temperature)
    assert turned > loss and lost == 0


def test_pitch_loss_asks_for_the_difference_of_the_speeds():
    semitones = torch.tensor([0.0, 4.0, 1.0, -2.0])
    assert losses.pitch_loss(7 + semitones / 4, semitones, 4.0) == 0
    # Far off, the Huber distance grows linearly: delta (|error| - delta / 2), here for errors of 0.25 and 1.5.
    assert losses.pitch_loss(torch.zeros(4), semitones, 4.0).item() == pytest.approx((0.25**2 / 2 + 0.25 * 1.375) / 2)


def test_names_of_equal_speeds_and_of_others_have_heads_of_their_own():
    network = losses.EncoderWithHeads(MODEL)
    outputs = [torch.randn(8, 5, 32, generator=torch.Generator().manual_seed(0))]
    equal, faster = network.names(outputs)
    pooled = outputs[-1].mean(1)
    torch.testing.assert_close(equal, network.heads[0](pooled[[0, 2, 4, 6]]))
    torch.testing.assert_close(faster, network.heads[1](pooled[[1, 3, 5, 7]]))


def test_the_target_follows_the_online_encoder():
    config = replace(CONFIG, ema_decay=0.5, steps=10)
    state = training.start(config, "cpu")
    before = [p.clone() for p in state.target.parameters()]
    audio = TrainingAudio(Sounds([np.full(40000, 100, dtype=np.int16)]), Sounds([]), [])
    state.step = 10**10
    training.train_step(state, views.draw_views(audio, config, state.generator), config)
    # At the end of the plan the average stands still.
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(before, state.target.parameters(), strict=True))
    state.step = 0
    training.train_step(state, views.draw_views(audio, config, state.generator), config)
    assert any(not torch.equal(a, b) for a, b in zip(before, state.target.parameters(), strict=True))
    assert all(p.grad is None for p in state.target.parameters())


def test_a_run_is_not_overwritten_nor_resumed_under_other_options(tones, tmp_path):
    with pytest.raises(UserError, match="leave out --resume"):
        training.train_teacher(tones, tmp_path, CONFIG, resume=True)
    training.start(CONFIG, "cpu").save(tmp_path, CONFIG)
    with pytest.raises(UserError, match="--resume"):
        training.train_teacher(tones, tmp_path, CONFIG)
    with pytest.raises(UserError, match="another mask_share, seed"):
        training.train_teacher(tones, tmp_path, replace(CONFIG, mask_share=0.5, seed=3), resume=True)


def test_unusable_sounds_say_the_hint_and_leave_nothing(tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.ones(8000), 16000)
    with pytest.raises(UserError, match="too little to train on"):
        training.train_teacher(tmp_path, tmp_path / "out", CONFIG)
    (tmp_path / "a.wav").write_text("these are words")
    with pytest.raises(UserError, match=r"a\.wav: unreadable"):
        training.train_teacher(tmp_path, tmp_path / "out", CONFIG)
    with pytest.raises(UserError, match="no such file or folder"):
        training.train_teacher(tmp_path / "none", tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "{tones}", "--out", "{out}", "--minutes", "0"], "--minutes 0: hint: give a finite number above 0"),
        (["train", "{tones}", "--out", "{out}", "--rate", "10"], "--rate 10 Hz is outside"),
    ],
)
def test_the_command_line_names_the_hint(arguments, words, tones, tmp_path, capsys):
    from segue.cli.main import main

    out = tmp_path / "sources"
    with pytest.raises(SystemExit) as stopped:
        main(["teacher", *(text.format(tones=tones, out=out) for text in arguments)])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and words in said and said.count("\n") == 1
    assert not Path(out).exists()
