"""Telephones, tapes, MP3 files and missing low ends: what is found of them, and what is done about it."""

import math

import numpy as np
import pytest
import soundfile
import torch

from segue.audio.analyse import analyse
from segue.audio.read import read_claim
from segue.tasks.degradation import Degradation, degrade
from segue.upsampling.io_paths import Job
from segue.upsampling.prepare import Settings, prepare
from segue.upsampling.source import Treatment, corrected, treatment_of
from segue.upsampling.upsample import carry_out

RATE_HZ = 16000


@pytest.fixture
def run(stand_in, tmp_path):
    def do(path, **settings):
        model = stand_in(shake=0)
        settings = Settings(**{"rate_hz": RATE_HZ, "overwrite": True, "subtype": "FLOAT", **settings})
        report = carry_out(
            prepare(Job(path, tmp_path / "out", path.stem), model, settings), model, settings, lambda s: None
        )
        wave, _ = soundfile.read(report["output"], always_2d=True)
        return wave[:, 0], report

    return do


def level_db(wave, from_hz, to_hz, rate_hz=RATE_HZ):
    power = np.abs(np.fft.rfft(wave)) ** 2 / len(wave) ** 2
    hz = np.fft.rfftfreq(len(wave), 1 / rate_hz)
    return 10 * math.log10(power[(hz >= from_hz) & (hz < to_hz)].mean() + 1e-20)


def voice(seconds=6.0, f0_hz=110.0, lowest=1):
    """Partials that glide a little and come and go, over a little hiss that comes and goes with them."""
    time_sec = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * f0_hz * (time_sec + 0.002 * np.sin(2 * np.pi * 3 * time_sec))
    partials = [np.sin(k * phase) / (k + 2) for k in range(lowest, int(7500 / f0_hz))]
    swell = np.sin(2 * np.pi * 1.3 * time_sec) ** 2
    hiss = 0.005 * np.random.default_rng(0).standard_normal(len(time_sec))
    return 0.1 * swell * (np.sum(partials, axis=0) + hiss)


@pytest.fixture
def telephoned(write):
    """A voice at the other end of a line: of the kind that a file has (coding), or in its samples alone (PCM_16)."""

    def do(subtype):
        wave = torch.from_numpy(voice()).float()[None]
        low = degrade(wave, RATE_HZ, [Degradation(3400, "butterworth", 10, low_hz=300, coding="alaw")])[0].numpy()
        return write(f"{subtype}.wav", low[::2], 8000, subtype=subtype)

    return do


@pytest.mark.parametrize("subtype", ["ALAW", "PCM_16"])
def test_a_telephone_is_known_by_its_samples_or_by_its_band(telephoned, run, subtype):
    _, report = run(telephoned(subtype), source="auto")
    assert report["source"] == "telephone" and report["cutoff_found_by"] == "telephone"
    assert 3200 <= report["cutoff_hz"] <= 3700
    assert any("taken as telephone" in note for note in report["notes"])
    assert any("its low edge raised by" in note for note in report["notes"])


def test_the_hole_above_a_telephones_band_is_filled(telephoned, run):
    path = telephoned("PCM_16")
    # As files are whose hole is too shallow for the detection: there is no edge, but a rate.
    plain, report = run(path, cutoff_hz=4000.0)
    treated, _ = run(path, source="telephone")
    assert report["source"] == "plain"
    hole, filled, true = (level_db(x, 3600, 3900) for x in (plain, treated, voice()))
    assert hole < true - 10 and abs(filled - true) < 10
    # What lies inside of the band is what it was.
    assert abs(level_db(treated, 600, 2600) - level_db(plain, 600, 2600)) < 0.1


def test_chunks_get_what_the_whole_gets(telephoned, run):
    path = telephoned("PCM_16")
    whole, _ = run(path, source="telephone", low=True, chunk_sec=math.inf)
    cut, report = run(path, source="telephone", low=True, chunk_sec=1.0)
    assert report["chunks"] > 3 and np.abs(cut - whole).max() < 1e-3 * np.abs(whole).max()


def test_low_harmonics_come_back_at_about_their_level(telephoned, run):
    path = telephoned("PCM_16")
    plain, _ = run(path, source="telephone")
    treated, report = run(path, source="telephone", low=True)
    assert 200 <= report["low_hz"] <= 350 and any("harmonics are added" in note for note in report["notes"])
    for hz in (110, 220):
        true_db = level_db(voice(), hz - 8, hz + 8)
        assert level_db(plain, hz - 8, hz + 8) < true_db - 8
        assert abs(level_db(treated, hz - 8, hz + 8) - true_db) < 8
    # Between them there is no haze.
    assert level_db(treated, 150, 180) < level_db(treated, 102, 118) - 12


def test_the_low_edge_of_a_telephones_band_is_raised(telephoned):
    path = telephoned("PCM_16")
    header = read_claim(path)
    treatment = treatment_of("telephone", False, header, analyse(path, header))
    assert 0.5 < max(gain for _, gain in treatment.curve) <= 10
    wave, _ = soundfile.read(path, dtype="float32")
    made = corrected(torch.from_numpy(wave)[None], treatment, 8000)[0].numpy()
    before, after, true = (level_db(x, 320, 340, 8000) for x in (wave, made, voice()[::2]))
    assert before < after < true + 1 and abs(level_db(made, 600, 3000, 8000) - level_db(wave, 600, 3000, 8000)) < 0.1


def test_a_sound_with_its_low_end_or_without_low_harmonics_gets_none(write, run):
    _, report = run(write("a.wav", voice()[::2], 8000), low=True)
    assert report["low_hz"] == 0 and any("nothing is added there" in note for note in report["notes"])
    time_sec = np.arange(RATE_HZ) / RATE_HZ
    flute = torch.from_numpy(0.1 * sum(np.sin(2 * np.pi * 700 * k * time_sec) / k for k in (1, 2, 3))).float()[None]
    made = corrected(flute, Treatment("plain", 4000, "", low_hz=300), RATE_HZ) - flute
    assert made[0, 2000:-2000].square().mean() < 1e-4 * flute.square().mean()


def test_a_tape_ends_where_its_sound_sinks_into_hiss(write, run):
    noise = np.random.default_rng(1).standard_normal(8 * RATE_HZ)
    spectrum = np.fft.rfft(noise)
    hz = np.fft.rfftfreq(len(noise), 1 / RATE_HZ)
    sound = (
        np.fft.irfft(spectrum / (1 + (hz / 800) ** 4)) * np.sin(2 * np.pi * 0.7 * np.arange(len(noise)) / RATE_HZ) ** 4
    )
    hiss = 1e-3 * np.random.default_rng(2).standard_normal(len(noise))
    path = write("tape.wav", 0.2 * sound + hiss)
    for source in ("tape", "auto"):
        _, report = run(path, source=source)
        assert report["source"] == "tape" and report["cutoff_found_by"] == "hiss"
        assert 2000 < report["cutoff_hz"] < 5500 and any("hiss at" in note for note in report["notes"])
    assert "copied" in run(path)[1]["status"]


def test_holes_are_filled_and_what_lies_between_them_is_kept(write, run):
    generator = np.random.default_rng(3)
    frames = generator.standard_normal((64, 4096))
    spectra = np.fft.rfft(frames)
    hz = np.fft.rfftfreq(4096, 1 / RATE_HZ)
    spectra[:, hz > 7000] = 0
    holes = np.arange(64) % 2 == 0  # every other 256 ms
    spectra[np.ix_(holes, hz > 5000)] = 0
    wave = 0.05 * np.fft.irfft(spectra).reshape(-1)
    out, report = run(write("a.wav", wave, subtype="FLOAT"), source="mp3", cutoff_hz=None)
    assert report["source"] == "mp3" and 4500 < report["cutoff_hz"] < 5300
    assert any("are filled" in note for note in report["notes"])
    before, after = wave.reshape(64, 4096)[8:56, 800:-800], out.reshape(64, 4096)[8:56, 800:-800]
    at = holes[8:56]
    inside = [level_db(x.reshape(-1), 5300, 6800) for x in (before[at], after[at])]
    assert inside[1] > inside[0] + 10
    kept = after[~at] - before[~at]
    assert level_db(kept.reshape(-1), 5300, 6800) < level_db(before[~at].reshape(-1), 5300, 6800) - 20
