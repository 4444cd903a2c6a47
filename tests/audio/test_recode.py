"""Lossy codes in memory: telephones' as their tables have them, and no code moves a sound in time."""

import numpy as np
import pytest

from segue.audio.recode import CODINGS, recoded

# Rows of ITU-T G.711's decoder tables on a scale of 16 bits (positive half): segment by segment, the first of each.
A_LAW = [8, 264, 528, 1056, 2112, 4224, 8448, 16896]
MU_LAW = [0, 132, 396, 924, 1980, 4092, 8316, 16764]


@pytest.mark.parametrize("coding, segments, step", [("alaw", A_LAW, [16, 16, 32, 64, 128, 256, 512, 1024]),
                                                    ("mulaw", MU_LAW, [8, 16, 32, 64, 128, 256, 512, 1024])])  # fmt: skip
def test_g711_has_the_levels_of_its_tables(coding, segments, step):
    table = np.array([first + s * i for first, s in zip(segments, step) for i in range(16)])
    # All levels of 16 bits, and what the code makes of them: its table, and always one of the two levels beside it.
    every = np.arange(-32768, 32768) / 32768
    made = np.round(recoded(every, 8000, coding, 4000.0) * 32768).astype(int)
    assert set(np.abs(made)) == set(table)
    error = np.abs(made - np.arange(-32768, 32768))
    inside = np.abs(every) < 0.97
    coarsest = np.interp(np.abs(every) * 32768, segments, step)
    assert (error <= 1.05 * np.maximum(coarsest, 16))[inside].all()


@pytest.mark.parametrize("coding", CODINGS)
def test_a_code_keeps_length_time_and_most_of_the_sound(coding):
    generator = np.random.default_rng(0)
    spectrum = np.fft.rfft(generator.standard_normal(24_000))
    hz = np.fft.rfftfreq(24_000, 1 / 16000)
    spectrum *= (hz > 300) * (hz < 3000) / (hz + 500)
    wave = np.fft.irfft(spectrum)
    wave *= 0.2 / wave.std()
    made = recoded(wave, 16000, coding, 3400.0)
    assert made.shape == wave.shape and made.dtype == np.float32
    lags = range(-800, 801)
    middle = slice(4000, 20_000)
    match = [float(np.dot(np.roll(made, lag)[middle], wave[middle])) for lag in lags]
    assert abs(lags[int(np.argmax(match))]) <= 1
    assert max(match) > 0.6 * np.dot(wave[middle], wave[middle])
    assert np.abs(made - wave)[middle].max() > 1e-5
