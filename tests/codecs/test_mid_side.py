"""The stereo autoencoder: its sides, its given channels, its file."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch

from segue.codecs import SHIPPED_STEREO, load_codec
from segue.codecs.autoencoder import AutoencoderCodec, load_autoencoder, save_codec
from segue.codecs.mid_side import LOWEST_WIDTH, MidSideAutoencoder, MidSideConfig
from segue.evaluation.spectral_distances import log_mel_l1
from segue.evaluation.stereo import width_error_db
from segue.types import UserError

ROOT = Path(__file__).parents[2]

TINY = MidSideConfig(
    sample_rate_hz=8000,
    hop_samples=128,
    channels=6,
    encoder_width=16,
    decoder_width=16,
    encoder_blocks=(1, 1),
    decoder_blocks=(1, 1),
)


@pytest.fixture
def network() -> MidSideAutoencoder:
    torch.manual_seed(0)
    return MidSideAutoencoder(TINY)


def _wave(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def _chord(rate_hz: int, seconds: float, gains: dict[float, tuple[float, float]]) -> torch.Tensor:
    """[2, T]: decaying tones in Hz, each at its gains on the left and the right."""
    time_sec = torch.arange(round(seconds * rate_hz)) / rate_hz
    sides = [
        sum(pair[i] * torch.sin(2 * math.pi * hz * time_sec) * torch.exp(-time_sec) for hz, pair in gains.items())
        for i in range(2)
    ]
    return torch.stack(sides)


@pytest.mark.parametrize("samples", [1, 127, 128, 129, 1000])
def test_shapes_dtypes_and_channels(network, samples):
    codec = AutoencoderCodec(network)
    assert codec.audio_channels == 2
    latents = codec.encode(_wave(3, 2, samples))
    assert latents.shape == (3, 6, codec.latent_frames(samples))
    assert latents.dtype == torch.float32
    assert codec.decode(latents, samples).shape == (3, 2, samples)
    with pytest.raises(ValueError, match=r"takes waveforms \[B, 2, T\]"):
        codec.encode(_wave(1, 1, samples))


def test_mono_stays_mono_to_the_bit(network):
    codec = AutoencoderCodec(network)
    mono = _wave(2, 1, 2000).expand(-1, 2, -1)
    decoded = codec.decode(codec.encode(mono), 2000)
    assert torch.equal(decoded[:, 0], decoded[:, 1])
    assert decoded.abs().max() > 0
    wide = codec.decode(codec.encode(_wave(2, 2, 2000)), 2000)
    assert not torch.equal(wide[:, 0], wide[:, 1])


def test_a_gain_moves_the_level_alone(network):
    wave = _wave(2, 2, 4096)
    plain, louder = (network.encode(network.analyse(gain * wave))[0] for gain in (1.0, 4.0))
    moved = 3.5 * (louder - plain)[:, 0]
    torch.testing.assert_close(moved, torch.full_like(moved, math.log(4)), atol=1e-3, rtol=0)
    torch.testing.assert_close(louder[:, 1:], plain[:, 1:], atol=2e-3, rtol=0)


def test_the_width_reads_side_over_the_whole(network):
    inner = slice(1, -1)
    for side, expected in ((0.0, LOWEST_WIDTH), (1.0, -0.5 * math.log(2))):
        mid = _wave(1, 4096)[0]
        other = _wave(2, 4096)[1] * side
        given = network.analyse(torch.stack([mid + other, mid - other])[None]).given[0, inner, 1]
        assert given.mean().item() == pytest.approx(expected, abs=0.1)


def test_synthesis_of_a_true_analysis_keeps_places_and_attacks():
    """Without any network error, what is predicted gives the sides back but for absolute phase; none is swapped."""
    network = MidSideAutoencoder(MidSideConfig())
    rate_hz = 44100
    sound = _chord(rate_hz, 1.0, {220.0: (0.2, 0.0), 880.0: (0.02, 0.1), 1500.0: (0.1, 0.1), 3000.0: (0.05, -0.05)})
    wave = torch.cat([torch.zeros(2, 8820), sound], dim=1)[None]
    estimate = network.synthesise(network.analyse(wave), wave.shape[-1])
    window = torch.hann_window(2048)
    before, after = (torch.stft(x[0], 2048, 512, window=window, return_complex=True).abs() for x in (wave, estimate))
    for side in range(2):
        assert (after[side] - before[side]).norm() / before[side].norm() < 0.15
    level_db = 20 * (after.square().sum(2) / before.square().sum(2).clamp_min(1e-9)).log10() / 2
    for hz, sides in ((220, (0,)), (880, (0, 1)), (1500, (0, 1)), (3000, (0, 1))):
        for side in sides:
            assert abs(level_db[side, round(hz * 2048 / rate_hz)].item()) < 1
    assert after[1, round(220 * 2048 / rate_hz)].norm() < 0.1 * after[0, round(220 * 2048 / rate_hz)].norm()
    assert estimate[..., :6000].abs().max() < 1e-3 * estimate.abs().max(), "no sound well before the attack"


def test_bands_are_spread_as_they_were_pooled(network):
    bands = torch.rand(3, network.bands)
    torch.testing.assert_close(network.pool(network.spread(bands)), bands)
    assert network.spread(torch.eye(network.bands)).sum() == network.bins - 1


def test_rows_of_a_batch_do_not_touch(network):
    codec = AutoencoderCodec(network)
    wave = _wave(3, 2, 700)
    torch.testing.assert_close(codec.encode(wave)[1:2], codec.encode(wave[1:2]), rtol=1e-4, atol=1e-5)
    latents = codec.encode(wave)
    torch.testing.assert_close(codec.decode(latents, 700)[1:2], codec.decode(latents[1:2], 700), rtol=1e-3, atol=1e-5)


def test_silence_stays_silent_and_finite(network):
    codec = AutoencoderCodec(network)
    latents = codec.encode(torch.zeros(1, 2, 1000))
    assert torch.isfinite(latents).all()
    mean, log_variance = network.requires_grad_(True).encode(network.analyse(torch.zeros(1, 2, 640)))
    prediction = network.predict(mean)
    (prediction.mid.sum() + prediction.turn.real.sum() + prediction.advance.imag.sum() + log_variance.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    assert torch.isfinite(network.synthesise(prediction, 640)).all()


def test_the_linear_start_is_a_codec_already(network):
    """Fitted to tones of a few pitches, the linear part alone gives their spectra back far better than at random."""
    waves = [_chord(8000, 1.0, {110.0 * k: (0.2, 0.1)}) for k in range(1, 7)]
    truth = network.analyse(waves[2][None])

    def error() -> float:
        made = network.predict(network.encode(truth)[0])
        return (made.mid - truth.mid).abs().mean().item()

    untrained = error()
    network.start_linear(waves)
    assert error() < 0.5 * untrained
    weights = network.linear_in.weight.clone()
    network.start_linear(waves)
    assert torch.equal(network.linear_in.weight, weights), "the fit is deterministic"


def test_a_saved_codec_comes_back(network, tmp_path):
    codec = AutoencoderCodec(network)
    save_codec(network, tmp_path)
    loaded = load_codec(str(tmp_path), audio_channels=2)
    assert loaded.fingerprint() == codec.fingerprint()
    assert loaded.fingerprint()["audio_channels"] == 2
    wave = _wave(1, 2, 500)
    assert torch.equal(loaded.encode(wave), codec.encode(wave))
    with pytest.raises(UserError, match="a stereo codec, not mono"):
        load_codec(str(tmp_path), audio_channels=1)
    # What makes the latents is in the fingerprint, what decodes them is not.
    network.linear_out.weight.data.add_(1.0)
    assert codec.fingerprint() == loaded.fingerprint()
    network.linear_in.weight.data.add_(1.0)
    assert codec.fingerprint() != loaded.fingerprint()


def test_a_file_of_another_sort_is_refused(network, tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "codec.safetensors", metadata={"format": "other"})
    with pytest.raises(UserError, match="'segue-autoencoder-1' or 'segue-mid-side-1'"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize("rate_hz", [16000, 22050, 44100, 48000])
def test_rates_scale_the_hop(rate_hz):
    config = MidSideConfig.for_rate(rate_hz)
    assert config.hop_samples % 32 == 0
    assert 38 < rate_hz / config.hop_samples < 48
    assert AutoencoderCodec(MidSideAutoencoder(config)).frame_rate_hz == rate_hz / config.hop_samples


def test_the_shipped_stereo_codec_is_the_one_of_its_card_and_keeps_places():
    codec = load_codec("stereo-44k")
    card = json.loads((SHIPPED_STEREO / "card.json").read_text())
    assert codec.weights_sha256() == card["weights_sha256"]
    assert (SHIPPED_STEREO / "codec.safetensors").stat().st_size <= 24_000_000
    assert all(source["licence"] for source in card["training"]["sources"])
    assert (codec.sample_rate_hz, codec.audio_channels, codec.channels) == (44100, 2, 64)
    # Two recordings that it was not trained on: both sides keep their levels, and the sound its width.
    for name in ("call-me", "explosion"):
        samples, rate_hz = soundfile.read(ROOT / "docs" / "sounds" / f"{name}-real.flac", dtype="float32")
        assert rate_hz == 44100
        sound = torch.from_numpy(samples.T.copy())[None]
        decoded = codec.decode(codec.encode(sound), sound.shape[-1])
        level_db = 10 * (decoded.square().mean(-1) / sound.square().mean(-1)).log10()
        assert level_db.abs().max() < 2
        assert width_error_db(decoded, sound).item() < 4
        assert log_mel_l1(decoded[0], sound[0], rate_hz).max() < 0.7
    mono = sound.mean(1, keepdim=True).expand(-1, 2, -1)
    narrow = codec.decode(codec.encode(mono), mono.shape[-1])
    assert torch.equal(narrow[:, 0], narrow[:, 1])


def test_another_rate_than_the_shipped_codec_has_is_refused_with_a_choice():
    with pytest.raises(UserError, match=r"the shipped codec: for 16000 Hz, not 44100; hint: --codec stereo-44k"):
        load_codec("autoencoder", 44100)
    with pytest.raises(UserError, match="the shipped codec: for 44100 Hz, not 48000"):
        load_codec("stereo-44k", 48000)


def test_sides_that_are_not_alike_stay_equally_loud():
    """A turn that is unsure is no turn of nothing: else mid and side would add up on the left and cancel on the right."""
    network = MidSideAutoencoder(MidSideConfig())
    generator = torch.Generator().manual_seed(0)
    wave = 0.1 * torch.randn(1, 2, 44100, generator=generator)
    analysis = network.analyse(wave)
    for certainty, least_db, most_db in ((0.0, -1.0, 1.0), (0.5, 1.3, 6.5)):
        turn = torch.full_like(analysis.turn, certainty)
        estimate = network.synthesise(replace(analysis, turn=turn), wave.shape[-1])
        left, right = estimate.square().mean(-1)[0]
        # Mid and side are equally loud: left over right is (1 + c) / (1 - c) by cosine c, less what Griffin-Lim undoes.
        assert least_db < 10 * (left / right).log10().item() < most_db
