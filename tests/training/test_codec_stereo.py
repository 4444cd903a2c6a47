"""Training the stereo codec: crops, masks, consistency, resuming, figures."""

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
from segue.codecs.mid_side import MidSideConfig
from segue.codecs.spectral import SpectralCodec
from segue.training import training_audio
from segue.training.codec import codec_losses, codec_run, figures
from segue.training.codec.mid_side_losses import MidSideLoss
from segue.types import UserError

RATE_HZ = 8000
MODEL = MidSideConfig(
    sample_rate_hz=RATE_HZ, hop_samples=128, channels=6, encoder_width=16, decoder_width=16,
    encoder_blocks=(1, 1), decoder_blocks=(1, 1),
)  # fmt: skip
CONFIG = codec_run.config_for(
    MODEL, steps=4, batch_size=2, warmup_steps=2, mask_share=0.5, consistency_weight=0.1, save_every_sec=1e9
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """25 stereo sounds of 4 s, one tone a side, and a mono one; split train, valid and test."""
    folder = tmp_path_factory.mktemp("pairs")
    time_sec = np.arange(4 * RATE_HZ) / RATE_HZ
    rows = []
    for index in range(25):
        sides = [0.3 * np.sin(2 * np.pi * (110 + 20 * index + 55 * s) * time_sec) / (1 + s) for s in range(2)]
        soundfile.write(folder / f"{index}.flac", np.stack(sides if index else sides[:1], axis=1), RATE_HZ)
        rows.append({"path": f"{index}.flac", "split": ("train", "train", "train", "valid", "test")[index % 5]})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_a_resumed_stereo_run_equals_an_uninterrupted_one(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(codec_run, "LINEAR_CROPS", 40)
    codec_run.train_codec(pairs, tmp_path / "whole", CONFIG)
    audio = training_audio.read_training_audio(pairs, (), RATE_HZ, channels=2)
    half = codec_run.start(CONFIG, "cpu")
    codec_run.start_linear(half.network, audio.training)
    half.ema.load_state_dict(half.network.state_dict())
    loss = codec_run.loss_of(half.network, "cpu")
    for _ in range(2):
        batch = codec_run.draw_batch(audio.training, audio.others, CONFIG, half.generator)
        logged = codec_run.train_step(half, loss, batch, CONFIG)
    assert logged["consistency"] < 0.05, "no channel but the level's changes with the gain"
    half.save(tmp_path / "parts", CONFIG)
    codec_run.train_codec(pairs, tmp_path / "parts", CONFIG, resume=True)
    for name in ("state.safetensors", "codec.safetensors"):
        whole, parts = (load_file(tmp_path / run / name) for run in ("whole", "parts"))
        assert all(torch.equal(whole[k], parts[k]) for k in whole), name
    codec = load_codec(str(tmp_path / "whole"))
    report = figures.measure_codec(codec, pairs)
    assert "width_error_db" in report["kinds"]["sound"]
    assert report["kinds"]["sound"]["clips"] == 5
    trips = figures.round_trips({"codec": codec}, pairs, per_kind=1)
    assert trips[0][2]["original"].shape == trips[0][2]["codec"].shape == (2, 4 * RATE_HZ)


def test_stereo_sounds_keep_their_sides_and_mono_ones_get_two(pairs):
    clips = training_audio.clips_of(pairs)
    sounds = training_audio.decode(clips[:2], RATE_HZ, 2).sounds
    mono, stereo = sounds.wave(0), sounds.wave(1)
    assert mono.shape == stereo.shape == (2, 4 * RATE_HZ)
    assert torch.equal(mono[0], mono[1])
    for side in range(2):
        spectrum = torch.fft.rfft(stereo[side]).abs()
        assert spectrum.argmax().item() / 4 == 130 + 55 * side
    with pytest.raises(UserError, match="6 channels"):
        path = pairs.parent / "surround.wav"
        soundfile.write(path, 0.1 * np.ones((RATE_HZ, 6)), RATE_HZ)
        training_audio.read_sounds([replace(clips[0], path=path)], RATE_HZ, channels=2)


def test_crops_of_stereo_sounds_are_moved_but_never_emptied(pairs):
    audio = training_audio.read_training_audio(pairs, (), RATE_HZ, channels=2)
    generator = torch.Generator().manual_seed(0)
    crops = training_audio.draw_crops(audio.training, audio.others, 0.0, 64, 2000, generator)
    assert crops.shape == (64, 2, 2000)
    mono = (crops[:, 0] - crops[:, 1]).abs().amax(-1) == 0
    assert 2 <= int(mono.sum()) < 20
    assert (crops.abs().amax((1, 2)) > 0).all()


def test_long_sounds_are_drawn_more_often_by_the_root_of_their_length():
    sounds = training_audio.Sounds([np.ones(100, np.int16), np.ones(900, np.int16)])
    generator = torch.Generator().manual_seed(0)
    drawn = sum(sounds.draw(generator) for _ in range(400)) / 400
    assert drawn == pytest.approx(0.75, abs=0.06)


def test_masks_take_spans_of_channels_and_never_what_is_given():
    config = replace(CONFIG, mask_share=0.5)
    generator = torch.Generator().manual_seed(0)
    mask = codec_run.draw_mask(400, config, generator)[:, :, 0]
    assert (mask[:, :2] == 1).all()
    hidden = 6 - mask.sum(1)
    assert 120 < int((hidden > 0).sum()) < 280
    assert hidden.max() <= 2, "at most half of the four others"
    for row in mask[hidden > 1]:
        gaps = (row == 0).nonzero()[:, 0]
        assert gaps[-1] - gaps[0] == len(gaps) - 1
    assert (codec_run.draw_mask(3, replace(CONFIG, mask_share=0.0), generator) == 1).all()
    mono = replace(config, model=AutoencoderConfig(channels=6))
    assert (codec_run.draw_mask(400, mono, generator)[:, 0] == 0).any()


def test_consistency_is_zero_where_a_gain_changes_nothing_else():
    torch.manual_seed(0)
    wave = 0.1 * torch.randn(2, 2, 4096)
    network = codec_run.network_of(MODEL)
    gains = torch.tensor([0.5, 2.0])
    assert codec_losses.consistency(network, wave, gains).item() < 1e-3
    old = codec_run.network_of(AutoencoderConfig(hop_samples=256, channels=4, encoder_width=16, decoder_width=16))
    assert codec_losses.consistency(old, wave[:, 0], torch.ones(2)).item() == 0
    assert codec_losses.consistency(old, wave[:, 0], gains).item() > 1e-3


def test_stereo_loss_is_zero_for_equals_and_blind_to_nothing():
    network = codec_run.network_of(MODEL)
    loss = MidSideLoss(network, "cpu")
    generator = torch.Generator().manual_seed(0)
    wave = 0.1 * torch.randn(2, 2, 4096, generator=generator) * torch.tensor([1.0, 0.3])[:, None]
    truth = network.analyse(wave)
    assert all(v.item() < 1e-5 for v in loss(truth, truth).values())
    louder = loss(network.analyse(2 * wave), truth)
    assert louder["log_magnitude"].item() == pytest.approx(1.5 * math.log(2), abs=0.02)
    assert louder["log_mel"].item() == pytest.approx(1.5 * math.log(2), abs=0.02)
    assert louder["advance"] < 1e-6
    swapped = loss(network.analyse(wave.flip(1)), truth)
    assert swapped["log_magnitude"].item() < 1e-5, "mid and side have the same levels"
    assert swapped["turn"].item() > 1
    assert swapped["log_mel"].item() > 0.3, "left and right have not"


def test_figures_of_an_exact_stereo_codec_are_perfect(pairs):
    report = figures.measure_codec(SpectralCodec(RATE_HZ, audio_channels=2), pairs, noise=0.0)
    row = report["kinds"]["sound"]
    assert row["log_mel_l1"] == row["lsd"] == row["width_error_db"] == 0
    assert row["si_sdr_db"] > 100


def test_the_decoded_sound_is_compared_late_and_moves_magnitudes_alone():
    network = codec_run.network_of(MODEL)
    loss = MidSideLoss(network, "cpu")
    wave = 0.1 * torch.randn(2, 2, 4096, generator=torch.Generator().manual_seed(0))
    truth = network.analyse(wave)
    mid, advance = truth.mid.clone().requires_grad_(True), truth.advance.clone().requires_grad_(True)
    near = loss.decoded(replace(truth, mid=mid, advance=advance), wave)
    near.backward()
    assert torch.isfinite(mid.grad).all() and mid.grad.abs().sum() > 0
    assert advance.grad is None
    assert near.item() < loss.decoded(replace(truth, mid=truth.mid - 2, side=truth.side - 2), wave).item() - 1
    run = codec_run.start(CONFIG, "cpu")
    for step, expected in ((0, False), (3, True)):
        run.step = step
        assert ("decoded" in codec_run.train_step(run, loss, wave, CONFIG)) == expected
