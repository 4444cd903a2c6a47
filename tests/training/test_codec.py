from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from segue.codecs import load_codec
from segue.codecs.autoencoder import AutoencoderConfig
from segue.codecs.spectral import SpectralCodec
from segue.data.manifest import load_manifest
from segue.training import small_run, training_audio
from segue.training.codec import codec_losses as losses
from segue.training.codec import codec_run as training
from segue.training.codec import figures as codec_figures
from segue.types import UserError
from segue_lab.release.codec import release_codec

MODEL = AutoencoderConfig(
    hop_samples=256, channels=4, encoder_width=16, decoder_width=24, encoder_blocks=(1, 1), decoder_blocks=(1, 1)
)
CONFIG = training.CodecTrainConfig(
    model=MODEL, steps=6, batch_size=2, crop_sec=0.256, warmup_steps=2, learning_rate=3e-3, save_every_sec=1e9
)


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """A folder of 40 decaying tones of 3 s, with a manifest: one in five test, one in five valid."""
    folder = tmp_path_factory.mktemp("tones")
    time_sec = np.arange(48000) / 16000
    rows = []
    for index in range(40):
        wave = 0.4 * np.exp(-2 * time_sec) * np.sin(2 * np.pi * (110 + 20 * index) * time_sec)
        soundfile.write(folder / f"{index}.flac", wave, 16000)
        split = ("test", "valid", "train", "train", "train")[index % 5]
        rows.append({"path": f"{index}.flac", "split": split, "kind": "note" if index % 2 else "chord"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_a_resumed_run_equals_an_uninterrupted_one(tones, tmp_path):
    training.train_codec(tones, tmp_path / "whole", CONFIG)
    # The learning rate depends on the planned total, so the interruption must not change the plan: stop it half way.
    half = training.start(CONFIG, "cpu")
    clips = [clip for clip in training_audio.clips_of(tones) if clip.split == "train"]
    sounds = training_audio.read_sounds(clips, 16000)
    loss = losses.ReconstructionLoss(MODEL, "cpu")
    for _ in range(3):
        batch = training.draw_batch(sounds, training_audio.Sounds([]), CONFIG, half.generator)
        training.train_step(half, loss, batch, CONFIG)
    half.save(tmp_path / "parts", CONFIG)
    training.train_codec(tones, tmp_path / "parts", CONFIG, resume=True)
    for name in ("state.safetensors", "codec.safetensors"):
        whole, parts = (load_file(tmp_path / run / name) for run in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[k], parts[k]) for k in whole), name


def test_training_lowers_the_loss_and_leaves_a_codec(tones, tmp_path, monkeypatch):
    monkeypatch.setattr(small_run, "_LOG_EVERY", 20)
    training.train_codec(tones, tmp_path / "run", replace(CONFIG, steps=60, batch_size=4))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "train"]
    assert len(losses) == 3
    assert losses[-1] < 0.85 * losses[0]
    assert lines[-1]["event"] == "validation"
    codec = load_codec(str(tmp_path / "run"))
    report = codec_figures.measure_codec(codec, tones)
    assert {k: (v["split"], v["clips"]) for k, v in report["kinds"].items()} == {
        "chord": ("test", 4),
        "note": ("test", 4),
    }
    # Stored statistics standardise: on held-out sound of the same sort, nearly.
    assert report["latents"]["mean_abs"] < 0.3
    assert 0.4 < report["latents"]["std_min"] <= report["latents"]["std_max"] < 2
    assert 0 < report["latents"]["lag1_correlation"] <= 1
    released = tmp_path / "released"
    card = release_codec(tmp_path / "run", released, {"tones": tones}, sources=[], command="", commit="")
    assert json.loads((released / "card.json").read_text()) == json.loads(json.dumps(card))
    assert load_codec(str(released)).weights_sha256() == card["weights_sha256"]
    assert card["training"]["steps"] == 60
    assert card["figures"]["tones"]["kinds"]["note"]["log_mel_l1"] == pytest.approx(
        report["kinds"]["note"]["log_mel_l1"], abs=0.05
    )


def test_measures_of_an_exact_codec_are_perfect(tones):
    report = codec_figures.measure_codec(SpectralCodec(16000), tones, noise=0.0)
    for row in report["kinds"].values():
        assert row["clips"] == 4
        assert row["log_mel_l1"] == row["lsd"] == row["convergence"] == 0
        assert row["si_sdr_db"] > 100


def test_round_trips_to_listen_to_hold_original_and_decoded(tones):
    trips = codec_figures.round_trips({"codec": SpectralCodec(16000)}, tones, per_kind=2)
    assert [kind for kind, _, _ in trips] == ["chord"] * 2 + ["note"] * 2
    for _, name, waves in trips:
        assert name.endswith(".flac")
        np.testing.assert_allclose(waves["codec"], waves["original"], atol=1e-4)
        assert waves["original"].shape == (48000,)


def test_other_rates_are_resampled_and_said(tones, tmp_path, capsys):
    for index, rate_hz in enumerate((8000, 8000, 44100)):
        time_sec = np.arange(30 * rate_hz) / rate_hz
        soundfile.write(tmp_path / f"{index}.wav", 0.1 * np.sin(2 * np.pi * 440 * time_sec), rate_hz)
    rows = [json.dumps({"path": f"{index}.wav", "split": "train"}) + "\n" for index in range(3)]
    (tmp_path / "manifest.jsonl").write_text("".join(rows))
    audio = training_audio.read_training_audio(tmp_path, (), 16000)
    assert len(audio.training.data) == 90 * 16000
    note = capsys.readouterr().err.strip()
    assert "2 at 8,000 Hz, 1 at 44,100 Hz" in note
    assert "nothing above 4,000 Hz" in note
    training_audio.read_training_audio(tones, (), 16000)
    assert not capsys.readouterr().err


def test_a_run_is_not_overwritten_nor_resumed_under_other_options(tones, tmp_path):
    with pytest.raises(UserError, match="leave out --resume"):
        training.train_codec(tones, tmp_path, CONFIG, resume=True)
    training.start(CONFIG, "cpu").save(tmp_path, CONFIG)
    with pytest.raises(UserError, match="--resume"):
        training.train_codec(tones, tmp_path, CONFIG)
    with pytest.raises(UserError, match="another kl_weight, seed"):
        training.train_codec(tones, tmp_path, replace(CONFIG, kl_weight=0.1, seed=3), resume=True)


def test_unusable_sounds_say_the_hint(tones, tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        training_audio.clips_of(tmp_path / "none")
    with pytest.raises(UserError, match="holds no sounds"):
        training_audio.clips_of(tmp_path)
    (tmp_path / "a.wav").write_text("these are words")
    with pytest.raises(UserError, match=r"a\.wav: unreadable: a text file.*--skip-bad"):
        training.train_codec(tmp_path, tmp_path / "out", CONFIG)
    soundfile.write(tmp_path / "a.wav", np.full(8000, np.nan), 16000, subtype="FLOAT")
    with pytest.raises(UserError, match="non-finite"):
        training.train_codec(tmp_path, tmp_path / "out", CONFIG)
    soundfile.write(tmp_path / "a.wav", 0.1 * np.ones(8000), 16000)
    with pytest.raises(UserError, match=r"0 s of sound in split train.*add sounds"):
        training.train_codec(tmp_path, tmp_path / "out", CONFIG)
    (tmp_path / "manifest.jsonl").write_text('{"path": "../a.wav"}\n')
    with pytest.raises(UserError, match=r"line 1.*leads out of"):
        training_audio.clips_of(tmp_path)
    (tmp_path / "manifest.jsonl").write_text('{"path": "a.wav"}\nno json\n')
    with pytest.raises(UserError, match="line 2"):
        training_audio.clips_of(tmp_path)
    assert not (tmp_path / "out").exists()


def test_bad_files_are_left_out_when_told_so(tones, tmp_path, capsys):
    for path in tones.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    soundfile.write(tmp_path / "39.flac", np.zeros(8000), 16000)
    soundfile.write(tmp_path / "loud.wav", 1e4 * np.sin(np.arange(16000) / 9), 16000, subtype="FLOAT")
    with (tmp_path / "manifest.jsonl").open("a") as rows:
        rows.write(json.dumps({"path": "loud.wav", "split": "train"}) + "\n")
    with pytest.raises(UserError, match=r"2 files cannot be used .*39\.flac: silent.*loud\.wav: levels.*--skip-bad"):
        training_audio.read_training_audio(tmp_path, (), 16000)
    audio = training_audio.read_training_audio(tmp_path, (), 16000, skip_bad=True)
    assert len(audio.training) == 23
    assert capsys.readouterr().err.count("left out ") == 2


def test_what_is_held_out_of_a_cache_is_held_out_of_its_codec(tmp_path):
    """One split for all: clips that `segue encode` validates with are no training material of codecs and teachers."""
    tone = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    for index in range(80):
        (tmp_path / "kinds").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "kinds" / f"{index:02d}.wav", 0.001 * (index + 1) * tone, 16000)
        (tmp_path / "kinds" / f"{index:02d}.txt").write_text("a tone")
    encoded = {clip.id: clip.split for clip in load_manifest(tmp_path)}
    assert {clip.id: clip.split for clip in training_audio.clips_of(tmp_path)} == encoded
    held = sorted(name for name, split in encoded.items() if split == "valid")
    assert 1 <= len(held) <= 15
    audio = training_audio.read_training_audio(tmp_path, (), 16000)
    assert len(audio.training) == 80 - len(held) and len(audio.valid_waves) == len(held)
    peaks = sorted(round(1000 * wave.abs().max().item()) - 1 for wave in audio.valid_waves)
    assert [f"kinds/{peak:02d}" for peak in peaks] == held
    assert {training_audio.kind_of(clip) for clip in training_audio.clips_of(tmp_path)} == {"kinds"}


def test_crops_stay_within_their_sound():
    waves = [np.full(1000, value, dtype=np.int16) for value in (1, 2, 3)]
    sounds = training_audio.Sounds(waves)
    generator = torch.Generator().manual_seed(0)
    starts = 0
    for _ in range(200):
        crop = sounds.crop(1, 400, generator) * 32768
        assert crop.shape == (400,)
        assert set(crop.tolist()) <= {0.0, 2.0}
        starts += crop[0].item() == 0
    assert 40 < starts < 140, "about half of the crops straddle the start"
    assert sounds.crop(0, 3000, generator).shape == (3000,)


def test_reconstruction_loss_is_zero_for_equals_and_blind_to_nothing():
    loss = losses.ReconstructionLoss(MODEL, "cpu")
    network = training.start(CONFIG, "cpu").network
    wave = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    truth = network.analyse(wave)
    assert all(v.item() < 1e-6 for v in loss(truth, truth).values())
    louder = loss(network.analyse(2 * wave), truth)
    assert louder["log_magnitude"].item() == pytest.approx(math.log(2), abs=0.01)
    assert louder["log_mel"].item() == pytest.approx(math.log(2), abs=0.01)
    assert 0.85 < louder["convergence"].item() <= 1
    assert louder["advance"] < 1e-6
    opposite = loss(replace(truth, advance=-truth.advance), truth)
    assert opposite["advance"].item() == pytest.approx(4, abs=0.2)
    assert opposite["log_magnitude"] == 0
    silence = network.analyse(torch.zeros(2, 8000))
    assert all(v.item() < 1e-4 for v in loss(silence, silence).values())


def test_kl_term_is_the_closed_form():
    network = training.start(CONFIG, "cpu").network
    wave = 0.1 * torch.randn(2, 4096, generator=torch.Generator().manual_seed(0))
    mean, log_variance = network.encode(network.analyse(wave))
    loss = losses.ReconstructionLoss(MODEL, "cpu")
    _, terms = losses.total_loss(network, loss, wave, torch.zeros(2, 4, 16), 0.1)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(terms["kl"], expected)


def test_learning_rate_warms_up_and_falls():
    config = replace(CONFIG, learning_rate=1.0, warmup_steps=10)
    assert small_run.learning_rate_at(0, 0.0, config) == pytest.approx(0.1)
    assert small_run.learning_rate_at(10, 0.0, config) == pytest.approx(1.0)
    assert small_run.learning_rate_at(99, 0.5, config) == pytest.approx(0.505)
    assert small_run.learning_rate_at(99, 1.2, config) == pytest.approx(0.01)
