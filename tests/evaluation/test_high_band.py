"""Figures of a generated upper band against constructed ones."""

import torch

from segue.evaluation.high_band import harmonic_to_noise_error_db, level_correlation, log_mel_l1_above

RATE_HZ, CUTOFF_HZ = 16_000, 4000.0
TIME_SEC = torch.arange(32_000, dtype=torch.float64) / RATE_HZ
TONE = sum(torch.sin(2 * torch.pi * 250 * k * TIME_SEC) / k for k in range(1, 32))[None] * 0.1
NOISE = torch.randn(1, 32_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.05
SWELL = (torch.sin(2 * torch.pi * 3 * TIME_SEC) ** 2)[None]


def low(wave):
    spectrum = torch.fft.rfft(wave)
    spectrum[:, 8001:] = 0
    return torch.fft.irfft(spectrum, wave.shape[1])


def test_equal_sounds_have_no_distance():
    wave = SWELL * (TONE + 0.1 * NOISE)
    assert torch.allclose(level_correlation(wave, wave, RATE_HZ, CUTOFF_HZ), torch.ones(1, dtype=torch.float64))
    assert log_mel_l1_above(wave, wave, RATE_HZ, CUTOFF_HZ) == 0
    assert harmonic_to_noise_error_db(wave, wave, RATE_HZ, CUTOFF_HZ) == 0


def test_levels_that_move_the_other_way_are_anticorrelated():
    true, other = SWELL * NOISE, (1 - SWELL) * NOISE
    assert level_correlation(other, true, RATE_HZ, CUTOFF_HZ) < -0.5
    assert level_correlation(3 * SWELL * NOISE.flip(1), true, RATE_HZ, CUTOFF_HZ) > 0.7


def test_noise_in_place_of_partials_is_an_error_of_many_db():
    haze = low(TONE) + (NOISE - low(NOISE)) * 0.2
    assert harmonic_to_noise_error_db(haze, TONE, RATE_HZ, CUTOFF_HZ) > 10
    assert harmonic_to_noise_error_db(low(TONE) + 0.3 * (TONE - low(TONE)), TONE, RATE_HZ, CUTOFF_HZ) < 2
    assert harmonic_to_noise_error_db(haze, NOISE, RATE_HZ, CUTOFF_HZ).isnan()


def test_a_gain_above_the_cutoff_is_its_logarithm():
    wave = low(NOISE) + 2 * (NOISE - low(NOISE))
    assert abs(log_mel_l1_above(wave, NOISE, RATE_HZ, CUTOFF_HZ) - torch.tensor(2.0).log()) < 0.05
