"""Signal distances against closed forms; band filters against their definition."""

import math

import pytest
import torch

from segue.metrics.mel import mel_edges_hz, mel_magnitude, stft_magnitude, triangular_bands
from segue.metrics.spectral import log_mel_l1, log_spectral_distance, si_sdr_db, snr_db
from segue.types import UserError


@pytest.fixture
def noise():
    return torch.randn(3, 8000, generator=torch.Generator().manual_seed(0))


def test_a_gain_shifts_log_mel_by_its_logarithm(noise):
    found = log_mel_l1(noise * 3.0, noise, 16000)
    torch.testing.assert_close(found, torch.full((3,), math.log(3.0)), rtol=1e-4, atol=1e-5)


def test_a_gain_shifts_lsd_by_its_power_in_decades(noise):
    found = log_spectral_distance(noise * 10.0, noise)
    torch.testing.assert_close(found, torch.full((3,), 2.0), rtol=1e-4, atol=1e-4)


def test_lsd_against_silence_is_the_distance_to_the_floor():
    silence = torch.zeros(1, 4096)
    loud = torch.zeros(1, 4096)
    loud[:, 2048] = 1.0  # an impulse: flat magnitude, the window's value at its place, in every frame that holds it
    window = torch.hann_window(2048, dtype=torch.float64)
    places = [2048 + 1024 - 512 * frame for frame in range(9)]
    power = torch.tensor([float(window[p]) ** 2 if 0 <= p < 2048 else 0.0 for p in places])
    expected = (power.clamp(min=1e-8).log10() + 8.0).mean()
    torch.testing.assert_close(log_spectral_distance(silence, loud), expected[None], rtol=1e-4, atol=1e-4)


def test_distances_to_itself_are_zero(noise):
    assert log_mel_l1(noise, noise, 16000).max() == 0.0
    assert log_spectral_distance(noise, noise).max() == 0.0
    assert torch.isinf(snr_db(noise, noise)).all()


@pytest.mark.parametrize("wanted_db", [-10.0, 0.0, 20.0, 60.0])
def test_snr_and_si_sdr_of_orthogonal_noise(wanted_db):
    t = torch.arange(1000, dtype=torch.float64) / 1000
    signal, error = torch.sin(2 * math.pi * 5 * t)[None], torch.cos(2 * math.pi * 5 * t)[None]
    estimate = signal + error * 10 ** (-wanted_db / 20)
    assert snr_db(estimate, signal).item() == pytest.approx(wanted_db, abs=1e-8)
    assert si_sdr_db(0.3 * estimate, signal).item() == pytest.approx(wanted_db, abs=1e-8)
    assert snr_db(0.3 * signal, signal).item() == pytest.approx(-20 * math.log10(0.7), abs=1e-8)


def test_refuses_unequal_lengths(noise):
    with pytest.raises(UserError, match="equal shape"):
        snr_db(noise, noise[:, 1:])


def test_bands_are_triangles_that_sum_to_one_between_the_outer_centres():
    edges = mel_edges_hz(40, 0.0, 8000.0)
    filters = triangular_bands(edges, 4096, 16000)
    bins_hz = torch.arange(2049) * 16000 / 4096
    between = (bins_hz > edges[1]) & (bins_hz < edges[-2])
    # slopes narrower than a bin are widened, so only bands wider than a bin tile exactly
    wide = between & (bins_hz > 300)
    torch.testing.assert_close(filters.sum(0)[wide], torch.ones(int(wide.sum())), atol=1e-5, rtol=0)
    assert (filters.sum(1) > 0).all()


def test_mel_scale_is_htk():
    edges = mel_edges_hz(2, 0.0, 1000.0)
    assert edges[-1].item() == pytest.approx(1000.0)
    assert 2595 * math.log10(1 + edges[1].item() / 700) == pytest.approx(2595 * math.log10(1 + 1000 / 700) / 3)


def test_narrow_bands_interpolate_and_are_never_empty():
    edges = 55.0 * 2.0 ** (torch.arange(-1, 169, dtype=torch.float64) / 24)
    assert (triangular_bands(edges, 2048, 16000).sum(1) > 0.5).all()


def test_a_sine_lands_in_its_band():
    wave = torch.sin(2 * math.pi * 1000 * torch.arange(16000) / 16000)[None]
    mel = mel_magnitude(wave, 16000)[0, :, 20]
    centres = mel_edges_hz(80, 0.0, 8000.0)[1:-1]
    assert abs(centres[mel.argmax()].item() - 1000) < 40
    assert stft_magnitude(wave, 1024, 256)[0, 64, 20].item() == pytest.approx(256.0, rel=1e-3)
