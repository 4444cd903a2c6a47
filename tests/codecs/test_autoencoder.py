from __future__ import annotations

import json
import os
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from segue.codecs import SHIPPED, load_codec
from segue.codecs.autoencoder import Autoencoder, AutoencoderCodec, AutoencoderConfig, load_autoencoder, save_codec
from segue.types import UserError

TINY = AutoencoderConfig(
    hop_samples=64, channels=4, encoder_width=8, decoder_width=12, encoder_blocks=(1, 1), decoder_blocks=(1, 1)
)


@pytest.fixture
def network() -> Autoencoder:
    torch.manual_seed(0)
    net = Autoencoder(TINY)
    net.latent_mean.copy_(torch.randn(4))
    net.latent_std.copy_(torch.rand(4) + 0.5)
    return net


def _wave(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("samples", [1, 63, 64, 65, 1000])
def test_shapes_and_dtypes(network, samples):
    codec = AutoencoderCodec(network)
    latents = codec.encode(_wave(3, samples))
    assert latents.shape == (3, 4, codec.latent_frames(samples))
    assert latents.dtype == torch.float32
    assert codec.decode(latents, samples).shape == (3, samples)


def test_analysis_and_synthesis_are_inverse(network):
    """The network's own STFT and overlap-add: what stands between is the network's to learn."""
    wave, side, hop = _wave(2, 640), 32, 32
    spectrum = torch.stft(
        torch.nn.functional.pad(wave, (side, side)), 96, hop, window=network.window, center=False, return_complex=True
    )
    torch.testing.assert_close(network._overlap_add(spectrum.transpose(1, 2)), wave, rtol=1e-4, atol=1e-6)


def test_standardisation_is_undone_by_decode(network):
    codec = AutoencoderCodec(network)
    wave = _wave(2, 640)
    mean, _ = network.encode(wave)
    expected = (mean - network.latent_mean[:, None]) / network.latent_std[:, None]
    torch.testing.assert_close(codec.encode(wave), expected)
    torch.testing.assert_close(codec.decode(codec.encode(wave), 640), network.decode(mean, 640), rtol=1e-4, atol=1e-6)


def test_rows_of_a_batch_do_not_touch(network):
    codec = AutoencoderCodec(network)
    wave = _wave(3, 500)
    torch.testing.assert_close(codec.encode(wave)[1:2], codec.encode(wave[1:2]), rtol=1e-4, atol=1e-6)


def test_silence_stays_finite_in_value_and_gradient(network):
    mean, log_variance = network.requires_grad_(True).encode(torch.zeros(1, 640))
    network.decode(mean, 640).square().sum().backward()
    assert torch.isfinite(log_variance).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_rate_scales_the_hop_only():
    for rate_hz in (8000, 16000, 22050, 44100, 48000):
        config = AutoencoderConfig.for_rate(rate_hz)
        assert rate_hz / config.hop_samples == pytest.approx(31.25, rel=0.02)
        assert config.hop_samples % 2 == 0
    assert AutoencoderConfig.for_rate(16000) == AutoencoderConfig()


def test_save_and_load_are_inverse(network, tmp_path):
    save_codec(network, tmp_path / "codec")
    assert os.listdir(tmp_path / "codec") == ["codec.safetensors"]
    codec = load_codec(str(tmp_path / "codec"))
    wave = _wave(1, 640)
    original = AutoencoderCodec(network)
    assert torch.equal(codec.encode(wave), original.encode(wave))
    assert codec.fingerprint() == original.fingerprint()
    assert json.loads(json.dumps(codec.fingerprint()))["weights_sha256"]
    with pytest.raises(UserError, match="16000 Hz, not 48000"):
        load_codec(str(tmp_path / "codec"), 48000)


def test_half_precision_is_half_the_size_and_close(network, tmp_path):
    full, half = (save_codec(network, tmp_path / n, half=h) for n, h in (("full", False), ("half", True)))
    assert half.stat().st_size < 0.7 * full.stat().st_size
    wave = _wave(1, 640)
    a, b = (load_autoencoder(p).encode(wave) for p in (full, half))
    torch.testing.assert_close(a, b, atol=0.02, rtol=0.02)
    assert load_autoencoder(full).fingerprint() != load_autoencoder(half).fingerprint()


def test_unusable_files_say_the_mend(network, tmp_path):
    with pytest.raises(UserError, match="segue codec train"):
        load_codec(str(tmp_path))
    (tmp_path / "codec.safetensors").write_text("no")
    with pytest.raises(UserError, match="not a readable safetensors"):
        load_codec(str(tmp_path))
    save_file({"a": torch.zeros(1)}, tmp_path / "codec.safetensors")
    with pytest.raises(UserError, match="retrain"):
        load_codec(str(tmp_path))
    metadata = {"format": "segue-autoencoder-1", "config": json.dumps({**asdict(TINY), "channels": 5})}
    save_file(dict(network.state_dict()), tmp_path / "codec.safetensors", metadata)
    with pytest.raises(UserError, match="do not fit"):
        load_codec(str(tmp_path))


def test_the_shipped_codec_loads_or_says_how_to_train_one():
    if not (SHIPPED / "codec.safetensors").is_file():
        with pytest.raises(UserError, match="segue codec train"):
            load_codec("autoencoder")
        return
    codec = load_codec("autoencoder")
    card = json.loads((SHIPPED / "card.json").read_text())
    assert codec.fingerprint()["weights_sha256"] == card["weights_sha256"]
    assert (SHIPPED / "codec.safetensors").stat().st_size <= 10_000_000
    time_sec = torch.arange(16000) / 16000
    envelope = (-4 * time_sec).exp()
    note = 0.3 * envelope * sum(torch.sin(2 * torch.pi * 220 * k * time_sec) / k for k in range(1, 6))
    estimate = codec.decode(codec.encode(note[None]), 16000)[0]
    error = (estimate - note).square().sum() / note.square().sum()
    assert error < 0.5, "a plain decaying note must come back recognisably"
