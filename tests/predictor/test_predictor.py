"""The one-pass predictor: what it keeps, what its excitations hold, files, chunks and rates."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from segue.audio.analyse import analyse
from segue.audio.chunks import cut, joined, make_plan
from segue.audio.read import read_header
from segue.predictor import BandPredictor, Predictor, PredictorConfig, load_predictor, save_predictor
from segue.predictor.excitation import half_band_filter, harmonic_source, shift_index
from segue.predictor.files import predictor_file
from segue.predictor.network import band_weights
from segue.predictor.resolver import SHIPPED
from segue.types import UserError
from segue.upsampling.enhance import Enhancer

RATES_HZ = (16_000, 24_000, 44_100, 48_000)


def small(rate_hz=16_000):
    torch.manual_seed(0)
    return BandPredictor(PredictorConfig(rate_hz, width=16, blocks=2)).eval()


def low_noise(samples, rate_hz, cutoff_hz, seed=0):
    """[1, T] noise that ends at the cutoff exactly, at the level that files are brought to."""
    wave = torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))
    spectrum = torch.fft.rfft(wave)
    spectrum[:, torch.arange(spectrum.shape[1]) * rate_hz / samples > cutoff_hz] = 0
    wave = torch.fft.irfft(spectrum, samples)
    return 0.2 * wave / wave.square().mean().sqrt()


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_bands_share_every_bin_out_in_whole(rate_hz):
    config = PredictorConfig(rate_hz)
    torch.testing.assert_close(band_weights(config).sum(0), torch.ones(config.window_samples // 2 + 1))
    assert config.hop_samples % 4 == 0 and abs(config.hop_samples / rate_hz - 0.008) < 1e-4


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_what_lies_below_the_cutoff_is_kept_and_what_lies_above_is_made(rate_hz):
    low = low_noise(rate_hz, rate_hz, 4000)
    made = small(rate_hz)(low, torch.tensor([4000.0]), torch.randn(1, rate_hz)).wave.detach()
    spectra = [torch.fft.rfft(x * torch.hann_window(rate_hz)).abs()[0] for x in (low, made)]
    assert (spectra[1] - spectra[0])[:3900].abs().max() < 1e-3 * spectra[0].max()
    assert spectra[1][4200 : rate_hz // 2 - 200].min() > 0


def test_levels_are_those_that_the_network_predicts():
    """Each band's power is what its level says, whatever the excitation."""
    model, low = small(), low_noise(32_000, 16_000, 4000)
    made = model(low, torch.tensor([4000.0]), torch.randn(1, 32_000))
    missing = (torch.arange(257) * model.bin_hz > 4000.0).float()[None]
    power = model.band_levels(model.spectrum(made.wave).abs().square(), missing)
    assert (power - made.levels)[:, 5:-5, 18:].mean().abs() < 0.15


def test_a_lone_sine_gets_all_of_its_multiples_and_nothing_between():
    time_sec = torch.arange(32_000) / 16_000
    made = harmonic_source(0.3 * torch.sin(2 * torch.pi * 700 * time_sec)[None], half_band_filter(), 16_000)
    level_db = 20 * (torch.fft.rfft(made[0, 4000:20_000] * torch.hann_window(16_000)).abs() + 1e-9).log10()
    partials = torch.tensor([level_db[700 * k] for k in range(2, 11)])
    between = torch.stack([level_db[700 * k + 300] for k in range(2, 10)])
    assert partials.min() > between.max() + 10 and partials.median() > between.max() + 30


@pytest.mark.parametrize("cutoff_hz", [1200.0, 4000.0, 7900.0])
def test_what_is_shifted_comes_from_below_the_cutoff(cutoff_hz):
    cutoff = torch.tensor([cutoff_hz / 31.25])
    index = shift_index(cutoff, 257)[0]
    assert index.min() >= 0 and index.max() <= cutoff_hz / 31.25
    assert (index - torch.arange(257)).remainder(4).eq(0).all()


def test_a_source_keeps_its_place_and_its_level(tmp_path, write_stereo):
    """Left and right get the same band at their own levels: a single source stays where it is."""
    wave = low_noise(24_000, 16_000, 4000)[0].numpy()
    path = write_stereo(tmp_path / "a.wav", np.stack([0.3 * wave, 0.1 * wave], axis=1))
    found = analyse(path, read_header(path))
    enhance = Enhancer(Predictor(small(), {}), found, 4000.0, steps=0, seed=0, stereo="left-right")
    made = enhance(np.stack([0.3 * wave, 0.1 * wave], axis=1).astype(np.float32), 0)
    np.testing.assert_allclose(made[:, 0], 3 * made[:, 1], atol=1e-4)


def test_chunks_equal_the_whole(tmp_path, write_stereo):
    wave = low_noise(64_000, 16_000, 4000)[0].numpy()[:, None]
    path = write_stereo(tmp_path / "a.wav", 0.3 * wave)
    found, predictor = analyse(path, read_header(path)), Predictor(small(), {})
    enhance = Enhancer(predictor, found, 4000.0, steps=0, seed=0, stereo="left-right")

    def do(core):
        plan = make_plan(len(wave), core, predictor.context_samples, predictor.hop_samples, 16_000)
        made = ((w, enhance(x, w.start)[w.first - w.start : w.last - w.start]) for w, x in cut([0.3 * wave], plan))
        return np.concatenate(list(joined(made, plan)))[:, 0]

    whole = do(None)
    assert np.abs(do(8192) - whole).max() < 1e-3 * np.abs(whole).max()


def test_a_file_brings_back_the_predictor(tmp_path):
    save_predictor(small(), tmp_path, {"cutoffs_hz": [3400, 6800]})
    loaded, card = load_predictor(tmp_path / "predictor.safetensors")
    assert card["cutoffs_hz"] == [3400, 6800] and loaded.config == small().config
    low, noise = low_noise(8000, 16_000, 4000), torch.randn(1, 8000)
    cutoff = torch.tensor([4000.0])
    torch.testing.assert_close(loaded(low, cutoff, noise).wave, small()(low, cutoff, noise).wave, atol=2e-3, rtol=0)
    assert Predictor.load(tmp_path).cutoffs_hz == (3400.0, 6800.0)


@pytest.mark.parametrize("rate_hz", sorted(SHIPPED))
def test_shipped_predictors_add_a_band_and_leave_what_is_there(rate_hz):
    """The partials of a bright tone go on upwards, at a level near the true one; below the cutoff nothing changes."""
    predictor = Predictor.load(rate_hz=rate_hz)
    assert predictor.sample_rate_hz == rate_hz and predictor_file(SHIPPED[rate_hz]).stat().st_size < 24e6
    cutoff_hz, samples = rate_hz / 4, rate_hz // 2
    time_sec = torch.arange(samples) / rate_hz
    tone = sum(torch.sin(2 * torch.pi * 220 * k * time_sec) / k for k in range(1, int(cutoff_hz / 220)))
    low = (0.2 * tone / tone.square().mean().sqrt())[None, None]
    noise = predictor.noise(predictor.frames(samples), 0)[None]
    wide = predictor.resolve(low, torch.tensor([cutoff_hz]), noise)[0, 0]
    hz = torch.fft.rfftfreq(samples, 1 / rate_hz)
    was, now = (torch.fft.rfft(x * torch.hann_window(samples)).abs().square() for x in (low[0, 0], wide))
    below, above = hz < 0.95 * cutoff_hz, (hz > 1.1 * cutoff_hz) & (hz < 1.6 * cutoff_hz)
    assert (now - was)[below].abs().sum() < 1e-3 * was[below].sum()
    assert was[above].sum() < 1e-6 * was.sum() < now[above].sum() < 0.1 * was.sum()
    # Most of the new band lies on multiples of 220 Hz: bins within 8 Hz of them are a fourteenth of all.
    on = above & (((hz + 110) % 220 - 110).abs() < 8)
    assert now[on].sum() > 0.3 * now[above].sum()


def test_what_is_no_predictor_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no predictor"):
        Predictor.load(tmp_path)
    with pytest.raises(UserError, match="at most 48000"):
        Predictor.load(None, rate_hz=96_000)
    with pytest.raises(UserError, match="no steps"):
        predictor = Predictor(small(), {})
        predictor.resolve(torch.zeros(1, 1, 1280), torch.tensor([4000.0]), predictor.noise(10, 0)[None], steps=4)


def test_noise_is_a_function_of_its_place():
    predictor = Predictor(small(), {})
    assert torch.equal(predictor.noise(40, 3)[:, 21:], predictor.noise(19, 3, 21))
    assert not torch.equal(predictor.noise(4, 3), predictor.noise(4, 4))
