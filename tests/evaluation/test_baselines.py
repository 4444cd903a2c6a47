"""Super-resolution without weights."""

import numpy as np
import pytest
import torch

from segue.evaluation.baselines import band_replication, sinc
from segue.evaluation.spectral_distances import lsd
from segue.types import UserError


def noise(rate_hz, seconds=1.0, seed=0):
    generator = np.random.default_rng(seed)
    return (0.1 * generator.standard_normal(round(rate_hz * seconds))).astype(np.float32)


def band_power(wave, rate_hz, low_hz, high_hz):
    hz = np.fft.rfftfreq(len(wave), 1 / rate_hz)
    return float((np.abs(np.fft.rfft(wave * np.hanning(len(wave))))[(hz >= low_hz) & (hz < high_hz)] ** 2).sum())


@pytest.mark.parametrize("rates", [(8000, 16000), (11025, 48000), (44100, 16000), (8000, 8000)])
def test_sinc_keeps_the_length_and_a_tone(rates):
    tone = np.sin(2 * np.pi * 1000 * np.arange(9001) / rates[0])
    made = sinc(tone, *rates)
    assert len(made) == round(9001 * rates[1] / rates[0])
    want = np.sin(2 * np.pi * 1000 * np.arange(len(made)) / rates[1])
    assert np.abs(made - want)[400:-400].max() < 1e-3


@pytest.mark.parametrize("rates", [(8000, 16000), (11025, 48000), (16000, 44100)])
def test_sinc_adds_nothing_above_the_old_band_and_loses_nothing_of_it(rates):
    short = noise(rates[0])
    made, half_hz = sinc(short, *rates), rates[0] / 2
    assert made.dtype == short.dtype
    assert band_power(made, rates[1], 1.01 * half_hz, rates[1]) < 1e-6 * band_power(made, rates[1], 0, half_hz)
    edge = [
        band_power(x, hz, 0.96 * half_hz, 0.99 * half_hz) * hz**-2 for x, hz in ((made, rates[1]), (short, rates[0]))
    ]
    assert edge[0] == pytest.approx(edge[1], rel=0.02)
    np.testing.assert_allclose(sinc(made, *rates[::-1])[50:-50], short[50:-50], atol=2e-3)


@pytest.mark.parametrize("samples", [0, 1, 2, 3])
def test_sinc_of_next_to_nothing(samples):
    assert len(sinc(np.ones((samples, 2)), 8000, 16000)) == 2 * samples


@pytest.mark.parametrize("rate_hz, cutoff_hz", [(16000, 4000.0), (48000, 4000.0), (44100, 12000.0), (22050, 1500.0)])
def test_replication_keeps_the_low_band_and_fills_the_high_one(rate_hz, cutoff_hz):
    low = torch.from_numpy(sinc(noise(round(2 * cutoff_hz)), round(2 * cutoff_hz), rate_hz))
    made = band_replication(low, rate_hz, cutoff_hz)
    assert made.shape == low.shape
    added = (made - low).numpy()
    assert band_power(added, rate_hz, 0, 0.97 * cutoff_hz) < 1e-3 * band_power(low.numpy(), rate_hz, 0, cutoff_hz)
    first, second = (
        band_power(made.numpy(), rate_hz, cutoff_hz * a, cutoff_hz * b) for a, b in ((1.1, 1.4), (1.5, 1.8))
    )
    assert first > second > 0  # it falls from copy to copy
    reference = torch.from_numpy(noise(rate_hz))[None]
    score = {name: float(lsd(x[None], reference, rate_hz, "nuwave2")) for name, x in (("sinc", low), ("copy", made))}
    assert score["copy"] < 0.8 * score["sinc"]


def test_replication_looks_around_by_its_window_only():
    low = torch.from_numpy(sinc(noise(8000), 8000, 16000))
    other = low.clone()
    other[:6000] = 0
    change = (band_replication(low, 16000, 3800.0) - band_replication(other, 16000, 3800.0)).abs()
    assert change[: 6000 + 512].max() > 0.01 and change[6000 + 512 :].max() == 0


def test_batches_silence_and_scale():
    low = torch.from_numpy(np.stack([sinc(noise(8000, seed=s), 8000, 16000) for s in (0, 1)]))
    both = band_replication(low, 16000, 3800.0)
    for row, alone in zip(both, low):
        torch.testing.assert_close(row, band_replication(alone, 16000, 3800.0))
    torch.testing.assert_close(band_replication(0.01 * low, 16000, 3800.0), 0.01 * both, rtol=1e-3, atol=1e-6)
    assert not band_replication(torch.zeros(4000), 16000, 3800.0).any()


@pytest.mark.parametrize("cutoff_hz", [0.0, -5.0, 8000.0, 9000.0, 100.0])
def test_a_cutoff_that_cannot_be_is_refused(cutoff_hz):
    with pytest.raises(UserError, match="cutoff"):
        band_replication(torch.zeros(4000), 16000, cutoff_hz)
