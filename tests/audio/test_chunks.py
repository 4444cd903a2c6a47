"""Cutting and joining a stream changes nothing of it."""

import numpy as np
import pytest
import soxr

from segue.audio.chunks import cut, joined, make_plan, windows
from segue.audio.resample import resampled


def blocks_of(wave, size):
    return (wave[i : i + size] for i in range(0, len(wave), size))


@pytest.mark.parametrize("total", [1, 100, 1599, 1600, 1601, 2079, 4000, 4800, 12_345])
@pytest.mark.parametrize("block", [7, 1000, 50_000])
def test_windows_joined_again_are_the_stream(total, block):
    wave = np.random.default_rng(0).standard_normal((total, 2)).astype(np.float32)
    plan = make_plan(total, 1600, 500, 160, 16000)
    pieces = (
        (window, samples[window.first - window.start : window.last - window.start])
        for window, samples in cut(blocks_of(wave, block), plan)
    )
    again = np.concatenate(list(joined(pieces, plan)))
    assert again.shape == wave.shape
    np.testing.assert_allclose(again, wave, atol=1e-6)


def test_windows_begin_on_the_grid_and_carry_their_context():
    plan = make_plan(100_000, 9_000, 500, 160, 16000)
    found = list(windows(plan))
    assert len(found) == plan.count > 10 and found[0].start == 0 and found[-1].last == 100_000
    for before, after in zip(found, found[1:]):
        assert after.start % 160 == 0
        assert before.last - after.first == plan.fade  # both cover the cross-fade ...
        assert after.first - after.start >= 500 and before.stop - before.last >= min(500, 100_000 - before.last)


def test_one_chunk_for_all():
    assert make_plan(100_001, None, 500, 160, 16000).count == 1


@pytest.mark.parametrize("rates", [(8000, 16000), (44100, 16000), (16000, 44100), (16000, 16000)])
def test_a_stream_is_resampled_as_a_whole_file_is(rates):
    wave = np.random.default_rng(0).standard_normal((9_001, 2)).astype(np.float32)
    total = round(len(wave) * rates[1] / rates[0])
    made = np.concatenate(list(resampled(blocks_of(wave, 777), *rates, 2, total)))
    assert made.shape == (total, 2)
    np.testing.assert_allclose(made, soxr.resample(wave, *rates)[:total], atol=1e-6)
