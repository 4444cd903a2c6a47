"""Interpolation is exact up to half the input's rate, in streams as in one piece."""

import numpy as np
import pytest

from segue.audio.interpolate import interpolate, interpolated


def streamed(wave, from_hz, to_hz, block=5000):
    total = round(len(wave) * to_hz / from_hz)
    blocks = (wave[i : i + block] for i in range(0, len(wave), block))
    made = list(interpolated(blocks, from_hz, to_hz, wave.shape[1], total))
    assert all(part.dtype == np.float32 for part in made)
    return np.concatenate(made)


def sines(hz, rate_hz, seconds):
    return np.stack([np.sin(2 * np.pi * f * np.arange(round(seconds * rate_hz)) / rate_hz + 0.3) for f in hz], axis=1)


@pytest.mark.parametrize(
    "from_hz, to_hz", [(8000, 16000), (8000, 48000), (11025, 16000), (44100, 48000), (48000, 16000)]
)
def test_a_sine_comes_out_as_it_went_in_at_any_frequency_below_half_the_rate(from_hz, to_hz):
    half_hz = min(from_hz, to_hz) / 2
    hz = [0.0, 50.0, 0.3 * half_hz, 0.91 * half_hz, 0.97 * half_hz, 0.996 * half_hz]
    seconds = 12.0 if from_hz < 20_000 else 4.0
    made = streamed(sines(hz, from_hz, seconds).astype(np.float32), from_hz, to_hz)
    wanted = sines(hz, to_hz, seconds)
    assert made.shape == wanted.shape
    # The ends are guessed, and what lies near half the rate takes long to forget them.
    error = np.abs(made - wanted)
    assert error[to_hz:-to_hz].max() < (1e-4 if to_hz > from_hz else 1e-3)
    assert error[200:-200, :3].max() < 1e-4


def test_an_impulse_becomes_a_sinc():
    wave = np.zeros((40_000, 1), np.float32)
    wave[20_000] = 1.0
    made = streamed(wave, 8000, 32000)[:, 0]
    time = (np.arange(len(made)) - 80_000) / 4
    np.testing.assert_allclose(made, np.sinc(time), atol=2e-5)


def test_blocks_and_windows_leave_no_mark():
    noise = np.random.default_rng(0).standard_normal((150_000, 2)).astype(np.float32)
    whole = streamed(noise, 8000, 16000, block=len(noise))
    assert (streamed(noise, 8000, 16000, block=777) == whole).all()
    # One piece against streamed windows: the same within the noise's own last hertz.
    once = interpolate(noise, 8000, 16000, 300_000)
    assert np.abs(once - whole)[4000:-4000].max() < 0.02 * np.abs(noise).max()
    spectrum = np.fft.rfft(noise, axis=0)
    spectrum[int(0.995 * len(spectrum)) :] = 0
    band = np.fft.irfft(spectrum, len(noise), axis=0).astype(np.float32)
    difference = interpolate(band, 8000, 16000, 300_000) - streamed(band, 8000, 16000)
    assert np.abs(difference)[100_000:-100_000].max() < 1e-4


@pytest.mark.parametrize("samples", [80, 441, 8191, 32769])
@pytest.mark.parametrize("from_hz, to_hz", [(8000, 16000), (44100, 16000), (8001, 16000)])
def test_any_length_and_rate(samples, from_hz, to_hz):
    wave = np.full((samples, 1), 0.25, np.float32)
    made = streamed(wave, from_hz, to_hz)
    assert made.shape == (round(samples * to_hz / from_hz), 1)
    np.testing.assert_allclose(made, 0.25, atol=1e-4)
    assert interpolate(wave, from_hz, to_hz, len(made)).shape == made.shape
