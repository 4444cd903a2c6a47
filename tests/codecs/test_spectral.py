from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.codecs import load_codec
from segue.codecs.spectral import SpectralCodec
from segue.types import UserError


def _snr_db(estimate: torch.Tensor, wave: torch.Tensor) -> float:
    error = (estimate.double() - wave.double()).square().sum()
    return 10 * math.log10(wave.double().square().sum() / error) if error > 0 else math.inf


def _signals(rate_hz: int, samples: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    time_sec = torch.arange(samples) / rate_hz
    noise = torch.randn(samples, generator=generator)
    harmonics = sum(torch.sin(2 * math.pi * 120 * k * time_sec) / k for k in range(1, 20))
    return {
        "noise": 0.1 * noise,
        "sine": 0.5 * torch.sin(2 * math.pi * 440.3 * time_sec),
        # Voiced harmonics under a syllable envelope with silent gaps, a little breath: five decades of level.
        "speech-like": 0.1 * (harmonics + 0.01 * noise) * torch.sin(2 * math.pi * 3 * time_sec).clamp_min(0) ** 2,
        "constant": torch.full((samples,), 0.3),
        "impulse": torch.nn.functional.one_hot(torch.tensor(samples // 3), samples).float(),
        "faint": 1e-6 * noise,
    }


@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 44100, 48000])
def test_reconstruction_is_exact_to_float32(rate_hz):
    codec = SpectralCodec(rate_hz)
    for name, wave in _signals(rate_hz, rate_hz + 7).items():
        estimate = codec.decode(codec.encode(wave[None, None]), len(wave))[0, 0]
        assert _snr_db(estimate, wave) >= 100, name


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 2000), level_db=st.integers(-120, 0))
def test_any_length_and_level_comes_back(samples, level_db):
    codec = SpectralCodec(16000)
    wave = 10 ** (level_db / 20) * torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(samples))
    latents = codec.encode(wave)
    assert latents.shape == (2, codec.channels, codec.latent_frames(samples))
    assert latents.dtype == torch.float32
    estimate = codec.decode(latents, samples)
    assert estimate.shape == wave.shape
    assert _snr_db(estimate, wave) >= 100


def test_silence_is_exactly_zero_both_ways():
    codec = SpectralCodec(16000)
    latents = codec.encode(torch.zeros(1, 1, 5000))
    assert not latents.any()
    assert not codec.decode(latents, 5000).any()


def test_no_channel_is_dead_and_the_scale_is_stated():
    codec = SpectralCodec(16000)
    latents = codec.encode(0.1 * torch.randn(1, 1, 16000, generator=torch.Generator().manual_seed(1)))
    assert codec.channels == 512
    assert codec.frame_rate_hz == 62.5
    assert latents.std(dim=(0, 2)).min() > 0.05
    # A full-scale sine at the centre of bin 20 has magnitude 1, whatever the compression.
    sine = torch.sin(2 * math.pi * 20 * torch.arange(16000) / 512)
    spectrum = codec.encode(sine[None, None])[0]
    magnitude = (spectrum[20].square() + spectrum[257 + 19].square()).sqrt()
    torch.testing.assert_close(magnitude[2:-2], torch.ones(len(magnitude) - 4), rtol=1e-4, atol=0)


def test_compression_acts_on_magnitudes_only():
    wave = 0.1 * torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(2))
    plain, compressed = (SpectralCodec(16000, c).encode(wave) for c in (1.0, 0.3))
    real, imag = plain[:, 1:256], plain[:, 257:]
    gain = torch.complex(real, imag).abs() ** -0.7
    torch.testing.assert_close(compressed[:, 1:256], real * gain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compressed[:, 257:], imag * gain, rtol=1e-4, atol=1e-5)


def test_without_compression_energy_is_kept():
    """The frame is tight: summed over both signs of frequency, latent energy is waveform energy times a constant."""
    codec = SpectralCodec(16000, 1.0)
    wave = torch.zeros(1, 1, 8192)
    wave[..., 1000:7000] = torch.randn(6000, generator=torch.Generator().manual_seed(3))
    latents = codec.encode(wave).double()
    energy = 2 * latents.square().sum() - latents[:, [0, 256]].square().sum()
    expected = wave.double().square().sum() * codec.window_samples * codec.scale**2
    torch.testing.assert_close(energy, expected, rtol=1e-5, atol=0)


def test_decoding_an_edited_latent_is_finite():
    codec = SpectralCodec(16000)
    latents = torch.randn(1, codec.channels, 5, generator=torch.Generator().manual_seed(4))
    assert torch.isfinite(codec.decode(latents, 1280)).all()


def test_fingerprint_tells_settings_apart():
    prints = [SpectralCodec(r, c).fingerprint() for r, c in ((16000, 0.3), (16000, 0.5), (48000, 0.3))]
    assert prints[0] == SpectralCodec(16000).fingerprint()
    assert len({str(p) for p in prints}) == 3


def test_bad_settings_and_names_names_the_hint():
    for call in (
        lambda: SpectralCodec(16000).encode(torch.zeros(1, 1, 0)),
        lambda: SpectralCodec(500),
        lambda: SpectralCodec(16000, 0.0),
    ):
        with pytest.raises(UserError, match="hint"):
            call()
    with pytest.raises(UserError, match="spectral, gain-shape, autoencoder"):
        load_codec("spectrall")
    assert load_codec("spectral", 48000).sample_rate_hz == 48000
    assert load_codec("spectral").sample_rate_hz == 16000
