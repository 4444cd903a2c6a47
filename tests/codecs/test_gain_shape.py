from __future__ import annotations

import pytest
import torch

from segue.codecs import load_codec
from segue.codecs.gain_shape import FLOOR, OFFSET, GainShapeCodec


def _noise(rows, samples, seed=0):
    return 0.1 * torch.randn(rows, 1, samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rate_hz", [2000, 16000, 22050, 44100, 48000])
def test_reconstruction_is_exact_to_float32(rate_hz):
    codec = load_codec("gain-shape", rate_hz)
    wave = _noise(2, rate_hz // 2 + 7) * torch.linspace(-6, 0, rate_hz // 2 + 7).pow(1).mul(2.3).exp()
    latents = codec.encode(wave)
    assert latents.shape == (2, codec.channels, codec.latent_frames(wave.shape[-1]))
    error = (codec.decode(latents, wave.shape[-1]) - wave).square().mean().sqrt() / wave.square().mean().sqrt()
    assert error < 1e-5


def test_silence_is_the_floor_and_comes_back_as_zero():
    codec = GainShapeCodec(16000)
    latents = codec.encode(torch.zeros(1, 1, 4000))
    torch.testing.assert_close(latents[:, : codec.levels], torch.full((1, 32, 16), OFFSET) + torch.tensor(FLOOR).log())
    assert not latents[:, codec.levels :].any() and not codec.decode(latents, 4000).any()


def test_a_gain_moves_levels_and_leaves_shapes():
    codec = GainShapeCodec(16000)
    loud, quiet = codec.encode(_noise(1, 8000)), codec.encode(_noise(1, 8000) / 10)
    torch.testing.assert_close(loud[:, 32:], quiet[:, 32:], atol=0.05, rtol=0)
    moved = loud[:, :32].exp() - quiet[:, :32].exp()  # rms ratio is 10^0.3, up to the floor
    torch.testing.assert_close(moved, (loud[:, :32].exp() - FLOOR * 12.1825) * (1 - 10**-0.3), atol=1e-3, rtol=1e-3)


def test_decoding_gives_each_band_its_level_whatever_the_scale_of_its_shape():
    codec = GainShapeCodec(16000)
    latents = codec.encode(_noise(1, 8000))
    shrunk = latents.clone()
    shrunk[:, codec.levels :] *= 0.3  # as an average over what could have been
    torch.testing.assert_close(codec.decode(shrunk, 8000), codec.decode(latents, 8000), atol=1e-6, rtol=1e-5)


def test_bands_below_a_cutoff_are_levels_and_bins_of_whole_bands():
    codec = GainShapeCodec(16000)  # 31.25 Hz to a bin, 250 Hz to a band
    below = codec.bands_below(torch.tensor([4000.0, 3900.0, 8000.0, 100.0]))
    assert below[:, :32].sum(1).tolist() == [16, 15, 32, 0]
    real, imaginary = below[:, 32 : 32 + 257], below[:, 32 + 257 :]
    assert real.sum(1).tolist() == [128, 120, 257, 0]
    assert torch.equal(real[:, 1:-1], imaginary)  # DC and Nyquist have no imaginary part
