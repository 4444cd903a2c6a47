"""Signal distances against closed forms; band filters against their definition."""

import math
import sys

import numpy as np
import pytest
import torch

from segue.evaluation.mel import mel_edges_hz, mel_magnitude, stft_magnitude, triangular_bands
from segue.evaluation.spectral_distances import (
    LSD_PRESETS,
    log_mel_l1,
    log_spectral_distance,
    lsd,
    match_loudness,
    multi_resolution_stft,
    si_sdr_db,
    snr_db,
    visqol_mos,
)
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


def numpy_lsd(estimate, reference, n_fft, hop, logs, inside=slice(None)):
    """LSD of one pair by numpy alone: `logs` maps magnitudes (E, R) of a frame to the log power ratio of its bins."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    padded = [np.pad(x, n_fft // 2) for x in (estimate, reference)]
    frames = []
    for start in range(0, len(padded[0]) - n_fft + 1, hop):
        e, r = (np.abs(np.fft.rfft(window * x[start : start + n_fft])) for x in padded)
        frames.append(np.sqrt(np.mean(logs(e, r)[inside] ** 2)))
    return np.mean(frames)


LOGS = {
    "ssr_eval": lambda e, r: np.log10(r**2 / (e + 1e-12) ** 2 + 1e-12),
    "nuwave2": lambda e, r: np.log10(np.maximum(r**2, 1e-8) / np.maximum(e**2, 1e-8)),
    "universr": lambda e, r: np.log10(np.maximum(r**2, 1e-6) / np.maximum(e**2, 1e-6)),
}


@pytest.mark.parametrize("preset", LSD_PRESETS)
def test_presets_agree_with_numpy_in_every_band(preset, noise):
    rate_hz, cutoff_hz = 48000, 8000.0
    sizes = {"ssr_eval": (int(2048 * 48000 / 44100), 480), "nuwave2": (2048, 512), "universr": (1024, 256)}
    n_fft, hop = sizes[preset]
    estimate, reference = noise[:1].double() * 0.3, noise[1:2].double()
    bins_hz = np.arange(n_fft // 2 + 1) * rate_hz / n_fft
    for band, inside in (("full", bins_hz >= 0), ("low", bins_hz <= cutoff_hz), ("high", bins_hz > cutoff_hz)):
        expected = numpy_lsd(estimate[0].numpy(), reference[0].numpy(), n_fft, hop, LOGS[preset], inside)
        found = lsd(estimate, reference, rate_hz, preset, band=band, cutoff_hz=cutoff_hz)
        assert found.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("preset", LSD_PRESETS)
def test_a_gain_is_its_power_in_decades_and_matching_takes_it_out(preset, noise):
    assert lsd(10.0 * noise, noise, 16000, preset).tolist() == pytest.approx([2.0] * 3, abs=1e-6)
    exact = noise.double()  # ten times a float32 is rounded
    assert lsd(10.0 * exact, exact, 16000, preset, loudness_matched=True).max() < 1e-9
    matched = match_loudness(0.01 * noise + 1.0, noise)
    torch.testing.assert_close(matched.square().mean(-1), noise.square().mean(-1))


def test_si_sdr_ignores_gains_of_either_and_snr_does_not(noise):
    estimate, reference = noise[:2] + 0.3 * noise[1:], noise[:2]
    first = si_sdr_db(estimate, reference)
    torch.testing.assert_close(si_sdr_db(-3.0 * estimate, reference), first, atol=1e-5, rtol=0)
    torch.testing.assert_close(si_sdr_db(estimate, 0.2 * reference), first, atol=1e-5, rtol=0)
    assert (snr_db(3.0 * estimate, reference) - snr_db(estimate, reference)).abs().min() > 1
    e, r = estimate.double().numpy(), reference.double().numpy()
    expected = []
    for x, y in zip(e, r):
        projected = y * (x @ y) / (y @ y)
        expected.append(10 * np.log10(projected @ projected / ((x - projected) @ (x - projected))))
    assert first.tolist() == pytest.approx(expected, abs=1e-6)


def test_multi_resolution_stft_of_a_gain_and_against_numpy(noise):
    reference = noise[:1].double()
    gain = multi_resolution_stft(2.0 * reference, reference)
    assert gain.item() == pytest.approx(1.0 + math.log(2.0), abs=1e-3)  # convergence |1 - 2|, ln 2
    assert multi_resolution_stft(reference, reference).item() == 0.0
    estimate, expected = noise[1:2].double(), 0.0
    for n_fft, hop, length in ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)):
        window = np.zeros(n_fft)
        left = (n_fft - length) // 2
        window[left : left + length] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
        spectra = []
        for x in (estimate, reference):
            padded = np.pad(x[0].numpy(), n_fft // 2)
            starts = range(0, len(padded) - n_fft + 1, hop)
            spectra.append(np.array([np.abs(np.fft.rfft(window * padded[s : s + n_fft])) for s in starts]))
        e, r = spectra
        logs = np.abs(np.log(np.maximum(e, 1e-5)) - np.log(np.maximum(r, 1e-5))).mean()
        expected += np.linalg.norm(r - e) / np.linalg.norm(r) + logs
    assert multi_resolution_stft(estimate, reference).item() == pytest.approx(expected / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: lsd(x, x, 16000, "mine"), "presets"),
        (lambda x: lsd(x, x, 16000, "nuwave2", band="low"), "cutoff None"),
        (lambda x: lsd(x, x, 16000, "nuwave2", band="high", cutoff_hz=8000.0), "empty"),
        (lambda x: lsd(0 * x, x, 16000, "nuwave2", loudness_matched=True), "no loudness"),
        (lambda x: multi_resolution_stft(x, 0 * x), "silent reference"),
    ],
)
def test_refuses_what_has_no_figure(make, words, noise):
    with pytest.raises(UserError, match=words):
        make(noise)


def test_visqol_is_measured_or_refused(noise, monkeypatch):
    monkeypatch.setitem(sys.modules, "visqol", None)
    with pytest.raises(UserError, match="pip install visqol-python"):
        visqol_mos(noise, noise, 48000)
