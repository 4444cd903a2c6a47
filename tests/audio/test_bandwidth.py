"""Where a band ends: known filters, codecs and rates; natural sounds are left whole."""

import numpy as np
import pytest
import scipy.signal
import soundfile
import soxr

from segue.audio.analyse import analyse
from segue.audio.read import read_claim


def bandwidth_of(path):
    return analyse(path, read_claim(path)).bandwidth


def hissing(sound, seconds=3.0, rate_hz=16000):
    """Full-band syllables."""
    return sound(seconds, rate_hz / 2, rate_hz)


@pytest.mark.parametrize("cutoff_hz", [2500, 4000, 5500])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8", "FLOAT"])
def test_the_edge_of_a_steep_filter(sound, write, cutoff_hz, subtype):
    wave = sound(cutoff_hz=cutoff_hz)
    found = bandwidth_of(write("a.wav", wave, subtype=subtype))
    assert found.found_by == "edge"
    assert 0.92 * cutoff_hz <= found.cutoff_hz <= 1.02 * cutoff_hz


@pytest.mark.parametrize("design", ["cheby1", "butter", "ellip"])
def test_the_edge_of_analogue_filters_forth_and_back(sound, write, design):
    ripple = {"cheby1": (0.05,), "butter": (), "ellip": (0.05, 60)}[design]
    sos = getattr(scipy.signal, design)(8, *ripple, 3000, fs=16000, output="sos")
    found = bandwidth_of(write("a.wav", scipy.signal.sosfiltfilt(sos, hissing(sound))))
    assert found.cutoff_hz == pytest.approx(3000, rel=0.08)


def test_mp3_ends_where_its_encoder_did(sound, tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, hissing(sound, rate_hz=44100), 44100)
    found = bandwidth_of(path)
    assert found.found_by == "edge" and 14_000 < found.cutoff_hz < 19_500


def test_a_sound_that_fills_its_rate_is_whole(sound, write):
    found = bandwidth_of(write("a.wav", hissing(sound)))
    assert (found.found_by, found.cutoff_hz) == ("rate", 8000.0)


@pytest.mark.parametrize("quality, share", [("HQ", (0.93, 0.98)), ("VHQ", (0.93, 0.98))])
def test_a_sound_that_fills_its_rate_but_for_a_resamplers_droop_ends_in_its_flank(sound, write, quality, share):
    wave = soxr.resample(hissing(sound), 16000, 8000, quality=quality)
    found = bandwidth_of(write("a.wav", wave, 8000))
    assert found.found_by == "rate" and share[0] * 4000 < found.cutoff_hz < share[1] * 4000


@pytest.mark.parametrize("share", [0.96, 0.98, 1.0])
def test_a_wall_near_half_the_rate_is_found_where_it_stands(sound, write, share):
    spectrum = np.fft.rfft(sound(3.0, 4000, 8000))
    spectrum[int(share * len(spectrum)) :] = 0
    found = bandwidth_of(write("a.wav", np.fft.irfft(spectrum), 8000))
    assert found.found_by == "rate" and found.cutoff_hz == pytest.approx(4000 * share, abs=40)


def test_a_gentle_slope_and_the_partials_of_a_note_are_no_edges(write):
    generator = np.random.default_rng(0)
    time_sec = np.arange(48_000) / 16000
    slope = 1 / (1 + (np.arange(24_001) / 1500) ** 2)  # 12 dB an octave from 500 Hz
    falling = np.fft.irfft(np.fft.rfft(generator.standard_normal(48_000)) * slope)
    partials = sum(np.sin(2 * np.pi * 440 * k * time_sec + k) / k**1.5 for k in range(1, 18))
    note = 0.2 * partials * np.exp(-time_sec) + 3e-4 * generator.standard_normal(48_000)
    assert bandwidth_of(write("slope.wav", 0.3 * falling)).found_by == "rate"
    assert bandwidth_of(write("note.wav", note)).cutoff_hz > 7400


def test_a_hole_is_told_from_an_end(sound, write):
    low = sound(cutoff_hz=4000)
    far = scipy.signal.sosfiltfilt(
        scipy.signal.butter(10, 6500, "high", fs=16000, output="sos"),
        0.3 * np.random.default_rng(1).standard_normal(48_000),
    )
    found = bandwidth_of(write("a.wav", low + 0.05 * far, subtype="PCM_24"))
    assert found.found_by == "hole" and found.cutoff_hz == pytest.approx(4000, rel=0.08)


def test_a_rare_sound_counts_and_a_click_does_not(sound, write):
    low = sound(10.0, cutoff_hz=3000)
    clicked, hissed = low.copy(), low.copy()
    clicked[50_000] = 0.9
    hissed[80_000:84_800] += 0.02 * np.random.default_rng(0).standard_normal(4800)  # 3 % of the time
    assert bandwidth_of(write("click.wav", clicked)).cutoff_hz < 3100
    assert bandwidth_of(write("hiss.wav", hissed)).cutoff_hz > 7000


def test_silence_has_no_band(write):
    assert bandwidth_of(write("a.wav", np.zeros(16000))).found_by == "silence"


def test_a_file_that_falls_to_its_quantisation_noise_rolls_off(write):
    hiss = np.random.default_rng(0).standard_normal(64_000)
    sos = scipy.signal.butter(3, 600, fs=16000, output="sos")
    found = bandwidth_of(write("a.wav", 0.2 * scipy.signal.sosfiltfilt(sos, hiss)))
    assert found.found_by == "roll-off" and 2000 < found.cutoff_hz < 5000
