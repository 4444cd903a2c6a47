import numpy as np
import pytest
import torch
from scipy import signal

from segue.tasks.degradation import (
    CODING_UNIFORMS,
    PROTOCOLS,
    UNIFORMS,
    Degradation,
    DegradationConfig,
    degrade,
    drawn_from,
    protocol,
    with_coding,
)
from segue.types import UserError

RATE_HZ = 16000
WAVE = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DESIGNS = {
    "chebyshev1": lambda order, fs, hz: signal.cheby1(order, 0.05, hz, fs=fs, output="sos"),
    "butterworth": lambda order, fs, hz: signal.butter(order, hz, fs=fs, output="sos"),
    "bessel": lambda order, fs, hz: signal.bessel(order, hz, fs=fs, output="sos", norm="mag"),
    "elliptic": lambda order, fs, hz: signal.ellip(order, 0.05, 60, hz, fs=fs, output="sos"),
}


@pytest.mark.parametrize("family", DESIGNS)
@pytest.mark.parametrize("order", [2, 5, 8, 10])
def test_filters_agree_with_scipys_zero_phase_ones_away_from_edges(family, order):
    wanted = signal.sosfiltfilt(DESIGNS[family](order, RATE_HZ, 4000), WAVE[0].numpy())
    low = degrade(WAVE, RATE_HZ, [Degradation(4000, family, order, resample="none")])[0]
    np.testing.assert_allclose(low[4000:-4000].numpy(), wanted[4000:-4000], atol=2e-6)


def test_fft_zeroing_and_exact_resampling_leave_nothing_above_and_touch_nothing_below():
    whole = torch.fft.rfft(WAVE.float())
    size = WAVE.shape[1]
    zeroed = degrade(torch.nn.functional.pad(WAVE, (8000, 8000)), RATE_HZ, [Degradation(4000, "fft")])[0]
    low = torch.fft.rfft(zeroed[8000 : 8000 + size])
    hz = torch.arange(len(low)) * RATE_HZ / size
    error = (low - whole[0]).abs() / whole[0].abs().mean()
    assert error[hz < 3900].max() < 0.05 and low[hz > 4100].abs().max() / whole[0].abs().mean() < 0.05


def test_resample_poly_is_scipys_both_ways():
    low = degrade(WAVE, RATE_HZ, list(protocol("nuwave2-poly", 4000)))[0].numpy()
    filtered = signal.sosfiltfilt(DESIGNS["chebyshev1"](8, RATE_HZ, 4000), WAVE[0].numpy())
    wanted = signal.resample_poly(signal.resample_poly(filtered, 8000, RATE_HZ), RATE_HZ, 8000)
    np.testing.assert_allclose(low[4000:-4000], wanted[4000:-4000], atol=5e-6)


def test_protocols_are_fixed():
    (nuwave2,) = protocol("nuwave2", 4000.0)
    assert nuwave2 == Degradation(4000.0, "chebyshev1", 8, 0.05, "fft")
    assert len(PROTOCOLS["ssr-eval"]) == 13 and {d.order for d in PROTOCOLS["ssr-eval"][1:]} == {3, 6, 9}
    with pytest.raises(UserError, match="nuwave2"):
        protocol("nuwave3", 4000.0)


def test_drawn_degradations_fill_their_ranges():
    config = DegradationConfig()
    drawn = [drawn_from(config, u) for u in np.random.default_rng(0).random((300, UNIFORMS))]
    assert {d.family for d in drawn} == set(config.families.split(","))
    assert {d.order for d in drawn} == set(range(2, 11))
    assert all(3400 <= d.cutoff_hz <= 4000 and 0.001 <= d.ripple_db <= 1 for d in drawn)
    assert 0.4 < np.mean([d.cutoff_hz == 4000 for d in drawn]) < 0.6


def test_a_config_that_names_noise_is_read_where_there_was_none():
    older = {"order_min": 3, "noise_share": 0.0, "noise_min_db": 30.0, "noise_max_db": 60.0, "companded_share": 0.0}
    assert DegradationConfig.from_json(older) == DegradationConfig(order_min=3)
    with pytest.raises(UserError, match=r"degradation\.noise_share is 0\.5, but this setting was removed"):
        DegradationConfig.from_json(older | {"noise_share": 0.5})


@pytest.mark.parametrize(
    "change",
    [
        {"families": "cheby"},
        {"order_min": 11},
        {"cutoff_min_hz": 5000.0},
        {"top_share": 1.5},
        {"telephone_share": -0.1},
        {"telephone_share": 0.6, "coded_share": 0.6},
    ],
)
def test_a_range_that_makes_no_sense_is_refused(change):
    with pytest.raises(UserError, match="degradation"):
        DegradationConfig(**change)


def test_a_cutoff_above_half_the_rate_is_refused():
    with pytest.raises(UserError, match="nothing would be missing"):
        degrade(WAVE, RATE_HZ, [Degradation(8000)])


def test_some_clips_come_from_telephones_and_some_from_files():
    config = DegradationConfig(telephone_share=0.3, coded_share=0.2)
    assert config.codes and not DegradationConfig().codes
    drawn = [with_coding(Degradation(4000), config, u) for u in np.random.default_rng(0).random((600, CODING_UNIFORMS))]
    telephones = [d for d in drawn if d.low_hz == 300]
    assert {d.coding for d in telephones} == {"alaw", "mulaw", "gsm"} and 0.25 < len(telephones) / 600 < 0.35
    assert all(3300 <= d.cutoff_hz <= 3500 for d in telephones)
    assert {d.coding for d in drawn} == {"alaw", "mulaw", "gsm", "opus", "mp3", ""}
    assert 0.45 < np.mean([d == Degradation(4000) for d in drawn]) < 0.55


def test_a_telephone_takes_both_ends_and_leaves_its_noise():
    plain, telephone = (Degradation(3400, "fft", low_hz=300, coding=coding) for coding in ("", "alaw"))
    wave = 0.1 * WAVE.repeat(2, 1)
    low = degrade(wave, RATE_HZ, [plain, telephone])
    hz = torch.fft.rfftfreq(WAVE.shape[1], 1 / RATE_HZ)
    power = torch.fft.rfft(low).abs().square()
    through = power[:, (hz > 500) & (hz < 3300)].mean(dim=1)
    assert (power[:, hz < 150].mean(dim=1) < 1e-2 * through).all()
    # A-law rounds to 13 segments: its noise lies some 38 dB below the sound, up to half of 8 kHz and no further.
    noise = 10 * (power[:, (hz > 3600) & (hz < 3900)].mean(dim=1) / through).log10()
    assert noise[0] < -42 and -45 < noise[1] < -30
    assert (power[:, hz > 4200].mean(dim=1) < 1e-4 * through).all()
    for unknown in ({"coding": "vinyl"}, {"low_hz": 4000.0}):
        with pytest.raises(UserError):
            Degradation(3400, **unknown)
