"""Measures and intervals: what they carry, and that nothing stands for a figure that is not there."""

import json

import numpy as np
import pytest

from segue.evaluation.bootstrap import in_fixed_order, two_sample_interval
from segue.evaluation.card import make_measure, mean_over_clips
from segue.types import UserError


def test_a_mean_carries_interval_number_and_card():
    values = np.random.default_rng(0).standard_normal(50)
    found = mean_over_clips("m", values, better="lower", unit="dB", parameters={"a": 1}, embedding={"weights": "x"})
    assert found.value == pytest.approx(values.mean()) and found.n == 50
    half = 1.96 * values.std() / np.sqrt(50)
    assert found.interval == pytest.approx((found.value - half, found.value + half), abs=0.1 * half)
    assert found.card["a"] == 1 and found.card["embedding"] == {"weights": "x"} and "numpy" in found.card["versions"]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["unit"] == "dB"
    assert mean_over_clips("m", values[::-1], better="lower").interval == found.interval


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_raises(broken):
    with pytest.raises(UserError, match="1 of 3"):
        mean_over_clips("m", np.array([1.0, broken, 2.0]), better="lower")
    with pytest.raises(UserError, match="cannot be computed"):
        make_measure("m", broken, (0.0, 1.0), 3, better="lower")


def test_one_clip_has_no_interval():
    with pytest.raises(UserError, match="at least 2 clips"):
        mean_over_clips("m", np.ones(1), better="lower")


def test_two_samples_are_drawn_apart_and_may_be_shifted():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal(60) + 1, rng.standard_normal(80)
    low, high = two_sample_interval(lambda i, j: x[i].mean() - y[j].mean(), 60, 80, draws=400)
    half = 1.96 * np.sqrt(x.var() / 60 + y.var() / 80)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
    shifted = two_sample_interval(lambda i, j: x[i].mean() - y[j].mean(), 60, 80, draws=400, about=10.0)
    assert shifted[1] - shifted[0] == pytest.approx(high - low) and shifted[0] < 10 < shifted[1]
    with pytest.raises(UserError, match="2 clips in each set"):
        two_sample_interval(lambda i, j: 0.0, 1, 80)


def test_fixed_order_is_the_same_for_every_order():
    rows = np.random.default_rng(2).integers(0, 3, (20, 3)).astype(float)
    np.testing.assert_array_equal(in_fixed_order(rows), in_fixed_order(rows[::-1]))
