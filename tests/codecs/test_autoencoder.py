from __future__ import annotations

import json
import math
import os
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from segue.codecs import SHIPPED, load_codec
from segue.codecs.autoencoder import (
    DECODER,
    Autoencoder,
    AutoencoderCodec,
    AutoencoderConfig,
    load_autoencoder,
    save_codec,
)
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


def _spectrogram(wave: torch.Tensor) -> torch.Tensor:
    return torch.stft(wave, 2048, 512, window=torch.hann_window(2048), return_complex=True).abs()


@pytest.mark.parametrize("samples", [1, 63, 64, 65, 1000])
def test_shapes_and_dtypes(network, samples):
    codec = AutoencoderCodec(network)
    latents = codec.encode(_wave(3, samples)[:, None])
    assert latents.shape == (3, 4, codec.latent_frames(samples))
    assert latents.dtype == torch.float32
    assert codec.decode(latents, samples).shape == (3, 1, samples)


def test_the_transform_is_inverted_by_its_inverse(network):
    wave = _wave(2, 640)
    torch.testing.assert_close(network.istft(network.stft(wave)), wave, rtol=1e-4, atol=1e-6)


def test_a_full_scale_sine_reads_one_and_advances_at_its_frequency():
    network = Autoencoder(AutoencoderConfig())
    frequency_hz = 1005.0  # 5 Hz above the centre of bin 64
    analysis = network.analyse(torch.sin(2 * math.pi * frequency_hz * torch.arange(16384) / 16000)[None])
    inner = slice(4, -4)
    assert analysis.log_magnitude[0, inner, 64].exp().min() > 0.9
    expected = 2 * math.pi * network.stft_hop / 16000 * (frequency_hz - 15.625 * torch.tensor([63.0, 64.0, 65.0]))
    advance = analysis.advance[0, inner, 63:66].angle()
    torch.testing.assert_close(advance, expected.expand_as(advance), atol=1e-3, rtol=0)
    assert analysis.advance[0, 0].abs().max() == 0, "the first frame has no frame before it"


def test_synthesis_of_a_true_analysis_keeps_tones_and_attacks():
    """Without any network error, magnitudes and advances alone give a plucked chord back but for absolute phase."""
    network = Autoencoder(AutoencoderConfig())
    time_sec = torch.arange(24576) / 16000
    pluck = (time_sec > 0.2) * torch.exp(-3 * (time_sec - 0.2).clamp_min(0))
    partials = [f * k for f in (196.0, 246.9, 293.7) for k in (1, 2, 3)]
    wave = 0.1 * pluck * sum(torch.sin(2 * math.pi * f * time_sec) / (f / 196) for f in partials)
    estimate = network.synthesise(network.analyse(wave[None]), 24576)[0]
    before, after = (_spectrogram(x) for x in (wave, estimate))
    assert (after - before).norm() / before.norm() < 0.1
    assert estimate[:2400].abs().max() < 1e-3 * estimate.abs().max(), "no sound well before the attack"


def test_the_gate_lowers_only_what_was_not_predicted(network):
    wave = _wave(2, 640)
    magnitude = network.stft(wave).abs()
    torch.testing.assert_close(network._gate(wave, magnitude), wave)
    magnitude[:, 8:] = 0
    gated = network._gate(wave, magnitude)
    assert torch.equal(gated[:, : 6 * 32], wave[:, : 6 * 32])
    assert gated[:, 8 * 32 :].abs().max() < 1e-4


def test_standardisation_is_undone_by_decode(network):
    codec = AutoencoderCodec(network)
    wave = _wave(2, 640)
    mean, _ = network.encode(network.analyse(wave))
    expected = (mean - network.latent_mean[:, None]) / network.latent_std[:, None]
    torch.testing.assert_close(codec.encode(wave[:, None]), expected)
    decoded = codec.decode(codec.encode(wave[:, None]), 640)
    torch.testing.assert_close(decoded[:, 0], network.synthesise(network.predict(mean), 640))


def test_rows_of_a_batch_do_not_touch(network):
    codec = AutoencoderCodec(network)
    wave = _wave(3, 500)[:, None]
    torch.testing.assert_close(codec.encode(wave)[1:2], codec.encode(wave[1:2]), rtol=1e-4, atol=1e-6)


def test_silence_stays_finite_in_value_and_gradient(network):
    mean, log_variance = network.requires_grad_(True).encode(network.analyse(torch.zeros(1, 640)))
    prediction = network.predict(mean)
    (prediction.log_magnitude.sum() + prediction.advance.real.sum() + log_variance.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    assert torch.isfinite(network.synthesise(prediction, 640)).all()


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
    wave = _wave(1, 640)[:, None]
    original = AutoencoderCodec(network)
    assert torch.equal(codec.encode(wave), original.encode(wave))
    assert codec.fingerprint() == original.fingerprint()
    assert json.loads(json.dumps(codec.fingerprint()))["latents_sha256"]
    with pytest.raises(UserError, match="16000 Hz, not 48000"):
        load_codec(str(tmp_path / "codec"), 48000)


def test_the_fingerprint_is_of_the_latents(network):
    codec = AutoencoderCodec(network)
    before, whole, latents = codec.fingerprint(), codec.weights_sha256(), codec.encode(_wave(1, 640)[:, None])
    for name, parameter in network.named_parameters():
        parameter.data += name.startswith(DECODER)
    assert codec.fingerprint() == before, "a cache of latents stays good under another decoder"
    assert codec.weights_sha256() != whole
    assert torch.equal(codec.encode(_wave(1, 640)[:, None]), latents)
    network.to_posterior[1].bias.data[0] += 1
    assert codec.fingerprint() != before
    assert not torch.equal(codec.encode(_wave(1, 640)[:, None]), latents)


def test_half_precision_is_half_the_size_and_close(network, tmp_path):
    full, half = (save_codec(network, tmp_path / n, half=h) for n, h in (("full", False), ("half", True)))
    assert half.stat().st_size < 0.7 * full.stat().st_size
    wave = _wave(1, 640)[:, None]
    a, b = (load_autoencoder(p).encode(wave) for p in (full, half))
    torch.testing.assert_close(a, b, atol=0.02, rtol=0.02)
    assert load_autoencoder(full).fingerprint() != load_autoencoder(half).fingerprint()


def test_unusable_files_names_the_hint(network, tmp_path):
    with pytest.raises(UserError, match="0 samples"):
        AutoencoderCodec(network).encode(torch.zeros(1, 1, 0))
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
    with pytest.raises(UserError, match=r"do not fit \(from_latent.weight is \[12, 4\], not \[12, 5\]\)"):
        load_codec(str(tmp_path))
    save_file({"a": torch.zeros(1)}, tmp_path / "codec.safetensors", {**metadata, "format": "segue-autoencoder-0"})
    with pytest.raises(UserError, match=r"'segue-autoencoder-0', not 'segue-autoencoder-1'.*retrain"):
        load_codec(str(tmp_path))
    tensors = {k: v for k, v in network.state_dict().items() if k != "up.bias"}
    save_file(tensors, tmp_path / "codec.safetensors", {**metadata, "config": json.dumps(asdict(TINY))})
    with pytest.raises(UserError, match=r"up\.bias is missing"):
        load_codec(str(tmp_path))
    save_file(tensors, tmp_path / "codec.safetensors", {**metadata, "config": '{"colour": 3}'})
    with pytest.raises(UserError, match=r"unreadable configuration.*colour"):
        load_codec(str(tmp_path))


def test_the_shipped_codec_loads_or_says_how_to_train_one():
    if not (SHIPPED / "codec.safetensors").is_file():
        with pytest.raises(UserError, match="segue codec train"):
            load_codec("autoencoder")
        return
    codec = load_codec("autoencoder")
    card = json.loads((SHIPPED / "card.json").read_text())
    assert codec.weights_sha256() == card["weights_sha256"]
    assert (SHIPPED / "codec.safetensors").stat().st_size <= 10_000_000
    time_sec = torch.arange(32768) / 16000
    for hz in (110, 220, 440):  # tones that it never met; their level suffers (docs/log.md), their shape must not
        partials = sum(torch.sin(2 * torch.pi * hz * k * time_sec) / k for k in range(1, 6))
        note = 0.3 * (-4 * time_sec).exp() * partials
        estimate = codec.decode(codec.encode(note[None, None]), 32768)[0, 0]
        window = torch.hann_window(512)
        spectra = [torch.stft(x, 512, 128, window=window, return_complex=True).abs() for x in (note, estimate)]
        shapes = torch.stack([(spectrum + 1e-3).log().flatten() for spectrum in spectra])
        assert torch.corrcoef(shapes)[0, 1] > 0.9, f"a plain decaying note at {hz} Hz must come back recognisably"


def test_a_gradient_passes_to_latents_that_ask_for_one():
    from segue.codecs.autoencoder import Autoencoder, AutoencoderCodec, AutoencoderConfig

    codec = AutoencoderCodec(Autoencoder(AutoencoderConfig(encoder_width=16, decoder_width=16, channels=4)))
    latents = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))
    assert not codec.decode(latents, 3000).requires_grad
    latents.requires_grad_(True)
    codec.decode(latents, 3000).square().mean().backward()
    assert bool(torch.isfinite(latents.grad).all()) and float(latents.grad.abs().sum()) > 0
