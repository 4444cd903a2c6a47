"""Real files, written by soundfile, and a model that needs no weights."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

spec = importlib.util.spec_from_file_location("standin", Path(__file__).with_name("standin.py"))
standin = importlib.util.module_from_spec(spec)
spec.loader.exec_module(standin)


def band_limited(seconds=3.0, cutoff_hz=4000, rate_hz=16000, seed=0, level=0.1):
    """Pink-ish noise in syllables, resampled to twice the cutoff and back: a steep edge there."""
    generator = np.random.default_rng(seed)
    low_hz = 2 * cutoff_hz
    wave = generator.standard_normal(round(seconds * low_hz))
    spectrum = np.fft.rfft(wave)
    spectrum *= (np.arange(len(spectrum)) + 50.0) ** -0.4
    wave = np.fft.irfft(spectrum, len(wave))
    wave *= 0.2 + np.sin(2 * np.pi * 1.7 * np.arange(len(wave)) / low_hz) ** 2
    wave *= level / np.sqrt(np.mean(wave**2))
    return wave if rate_hz == low_hz else soxr.resample(wave, low_hz, rate_hz)


@pytest.fixture
def stand_in():
    return standin.StandIn


@pytest.fixture
def sound():
    return band_limited


@pytest.fixture
def write(tmp_path):
    def make(name, wave, rate_hz=16000, **form):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, rate_hz, **form)
        return path

    return make
