"""Real files, written by soundfile, and inputs that people really had (tests/cases)."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from segue.audio import decoders

CASES = Path(__file__).parents[1] / "cases"


@pytest.fixture
def cases():
    return CASES


@pytest.fixture
def write_sine(tmp_path):
    """write_sine(name, hz, seconds, rate_hz, channels) -> path under tmp_path."""

    def write(name, hz=440.0, seconds=0.5, rate_hz=8000, channels=1, **form):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)
        soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), rate_hz, **form)
        return path

    return write


@pytest.fixture
def sound():
    """Pink-ish noise in syllables, resampled to twice the cutoff and back: a steep edge there."""

    def band_limited(seconds=3.0, cutoff_hz=4000, rate_hz=16000, seed=0, level=0.1):
        generator = np.random.default_rng(seed)
        low_hz = 2 * cutoff_hz
        wave = generator.standard_normal(round(seconds * low_hz))
        spectrum = np.fft.rfft(wave)
        spectrum *= (np.arange(len(spectrum)) + 50.0) ** -0.4
        wave = np.fft.irfft(spectrum, len(wave))
        wave *= 0.2 + np.sin(2 * np.pi * 1.7 * np.arange(len(wave)) / low_hz) ** 2
        wave *= level / np.sqrt(np.mean(wave**2))
        return wave if rate_hz == low_hz else soxr.resample(wave, low_hz, rate_hz)

    return band_limited


@pytest.fixture
def write(tmp_path):
    def make(name, wave, rate_hz=16000, **form):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, rate_hz, **form)
        return path

    return make


@pytest.fixture
def without_decoders(monkeypatch):
    """As on a machine that has neither PyAV nor ffmpeg."""
    monkeypatch.setattr(decoders, "pyav", lambda: None)
    monkeypatch.setattr(decoders.shutil, "which", lambda _: None)
