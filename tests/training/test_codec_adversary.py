from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from segue.codecs.autoencoder import DECODER, Analysis, AutoencoderConfig, load_autoencoder, save_codec
from segue.training import training_audio
from segue.training.codec import adversary as refining
from segue.training.codec import codec_run as training
from segue.training.codec.codec_losses import ReconstructionLoss
from segue.types import UserError
from segue_lab.release.codec import release_codec

MODEL = AutoencoderConfig(
    hop_samples=256, channels=4, encoder_width=16, decoder_width=24, encoder_blocks=(1, 1), decoder_blocks=(1, 1)
)
CONFIG = refining.RefineConfig(
    steps=6, batch_size=3, crop_sec=0.256, warmup_steps=2, adversary_steps=2, guard_steps=3, save_every_sec=1e9
)


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """A folder of 30 decaying tones of 3 s; one in five valid."""
    folder = tmp_path_factory.mktemp("tones")
    time_sec = np.arange(48000) / 16000
    rows = []
    for index in range(30):
        wave = 0.4 * np.exp(-2 * time_sec) * np.sin(2 * np.pi * (110 + 20 * index) * time_sec)
        soundfile.write(folder / f"{index}.flac", wave, 16000)
        rows.append({"path": f"{index}.flac", "split": "train" if index % 5 else "valid", "kind": "note"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture(scope="module")
def codec(tones, tmp_path_factory):
    """A codec as a short training leaves it."""
    config = training.CodecTrainConfig(model=MODEL, steps=60, batch_size=4, crop_sec=0.256, learning_rate=3e-3)
    return training.train_codec(tones, tmp_path_factory.mktemp("codec"), config)


def _batch(count=3):
    time_sec = torch.arange(8192) / 16000
    return torch.stack([0.3 * torch.sin(2 * torch.pi * 220 * (k + 1) * time_sec) for k in range(count)])


def test_only_the_decoder_moves_and_latents_stay_bit_for_bit(codec, tones, tmp_path):
    refined = refining.refine_codec(codec, tones, tmp_path / "out", CONFIG, origin={"steps": 60})
    loaded = load_autoencoder(tmp_path / "out")
    assert torch.equal(loaded.encode(_batch()[:, None]), codec.encode(_batch()[:, None]))
    assert loaded.fingerprint() == codec.fingerprint() == refined.fingerprint()
    assert loaded.weights_sha256() != codec.weights_sha256()
    before, after = (c.network.state_dict() for c in (codec, loaded))
    for name in before:
        assert torch.equal(before[name], after[name]) == (not name.startswith(DECODER)), name
    with safe_open(tmp_path / "out" / "codec.safetensors", "pt") as file:
        assert not any("discriminator" in name for name in file.keys())
    card = release_codec(tmp_path / "out", tmp_path / "s", {"t": tones}, sources=[], command="", commit="")
    assert card["training"] == {"steps": 60}
    assert card["refinement"]["steps"] == 6
    assert card["latents_sha256"] == load_autoencoder(tmp_path / "s").fingerprint()["latents_sha256"]


def test_a_resumed_refinement_equals_an_uninterrupted_one(codec, tones, tmp_path):
    refining.refine_codec(codec, tones, tmp_path / "whole", CONFIG)
    config = replace(CONFIG, latents_sha256=codec.weights_sha256(latents_only=True))
    half = refining.start(codec, config, "cpu")
    loss = ReconstructionLoss(MODEL, "cpu")
    audio = training_audio.read_training_audio(tones, (), 16000)
    for _ in range(4):
        refining.guard(half, loss, audio.valid_waves, config)
        batch = training_audio.draw_crops(audio.training, audio.others, 0.15, 3, 4096, half.generator)
        refining.refine_step(half, loss, batch, config)
    half.save(tmp_path / "parts", config, origin={})
    refining.refine_codec(codec, tones, tmp_path / "parts", CONFIG, resume=True)
    for name in ("state.safetensors", "codec.safetensors"):
        whole, parts = (load_file(tmp_path / run / name) for run in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[k], parts[k]) for k in whole), name


def test_another_codec_or_an_occupied_folder_is_refused(codec, tones, tmp_path):
    refining.refine_codec(codec, tones, tmp_path / "out", replace(CONFIG, steps=1))
    with pytest.raises(UserError, match="--resume"):
        refining.refine_codec(codec, tones, tmp_path / "out", CONFIG)
    other = load_autoencoder(save_codec(codec.network, tmp_path / "other"))
    other.network.latent_std[0] *= 2
    with pytest.raises(UserError, match="another latents_sha256"):
        refining.refine_codec(other, tones, tmp_path / "out", CONFIG, resume=True)
    with pytest.raises(UserError, match="adversarial share 3"):
        refining.refine_codec(codec, tones, tmp_path / "new", replace(CONFIG, adversarial_share=3.0))
    assert not (tmp_path / "new").exists()


def test_discriminators_learn_to_tell_blurred_spectra(codec):
    state = refining.start(codec, replace(CONFIG, discriminator_rate=3e-3), "cpu")
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        level = -5 + torch.randn(2, 16, 257, generator=generator)
        advance = torch.polar(torch.ones_like(level), 6 * torch.rand(level.shape, generator=generator))
        blurred = torch.nn.functional.avg_pool1d(level, 9, 1, 4)
        real, fake = (refining.picture_of(Analysis(x, advance)) for x in (level, blurred))
        value = refining.discriminator_loss(state.discriminators(real), state.discriminators(fake))
        state.discriminator_optimizer.zero_grad()
        value.backward()
        state.discriminator_optimizer.step()
    assert value < 0.25, "0.5 is guessing"
    told = refining.decoder_loss(state.discriminators(real), state.discriminators(fake))
    equal = refining.decoder_loss(state.discriminators(real), state.discriminators(real))
    assert equal["feature_matching"] == 0 < told["feature_matching"]
    assert equal["fooling"] < told["fooling"]


def test_the_modulus_of_an_advance_does_not_give_a_prediction_away():
    level, angle = torch.full((1, 4, 9), -3.0), torch.rand(1, 4, 9)
    pictures = [refining.picture_of(Analysis(level, torch.polar(torch.full_like(level, r), angle))) for r in (1.0, 0.3)]
    torch.testing.assert_close(*pictures, atol=1e-4, rtol=1e-4)
    silent = torch.zeros(1, 4, 9, dtype=torch.complex64, requires_grad=True)
    refining.picture_of(Analysis(level - 20, silent)).sum().backward()
    assert torch.isfinite(torch.view_as_real(silent.grad)).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_are_balanced_and_bad_ones_left_out(bad):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 5, dtype=torch.complex64, generator=generator) for _ in range(2))
    assert refining.balanced(1e6 * a, b, 0.2).norm().item() == pytest.approx(0.2 * b.norm().item(), rel=1e-5)
    a[0, 0] = bad
    assert refining.balanced(a, b, 0.2).abs().max() == 0
    assert refining.balanced(b, a, 0.2).abs().max() == 0


def test_an_adversary_that_harms_is_dropped(codec):
    state, loss = refining.start(codec, CONFIG, "cpu"), training.ReconstructionLoss(MODEL, "cpu")
    waves = list(_batch())
    refining.guard(state, loss, waves, CONFIG)
    assert state.adversary and state.reference > 0
    state.step = 3
    refining.guard(state, loss, waves, CONFIG)
    assert state.adversary, "nothing has changed"
    for parameter in state.ema.to_spectrum.parameters():
        parameter.data *= 0.1
    state.step = 4
    refining.guard(state, loss, waves, CONFIG)
    assert state.adversary, "not a step to look at it"
    state.step = 6
    refining.guard(state, loss, waves, CONFIG)
    assert not state.adversary
    terms = refining.refine_step(state, loss, _batch(), CONFIG)
    assert "fooling" not in terms and math.isfinite(terms["loss"])
