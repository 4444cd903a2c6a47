"""The figures of a study against closed forms: places on known curves, areas, and coverage of the intervals."""

import math

import numpy as np
import pytest

from segue.report.run_curves import Curve, first_reach
from segue.types import UserError
from segue_lab.study.aggregate import StudyCurves, band, compare, mean_height, wall_clock

X = np.linspace(0.25, 1.0, 7) * 16000


def runs(values, seconds=100.0, x=X, replicates=None):
    """seed -> a run whose one measure has these values [S, M]."""
    curves = [Curve(x, np.asarray(v, float), replicates) for v in values]
    return {seed: StudyCurves({"m": curve}, seconds) for seed, curve in enumerate(curves)}


def test_first_reach_on_known_curves():
    assert first_reach([0, 10], [0.0, 1.0], 0.5, higher=True) == 5
    assert first_reach([0, 10, 20], [4.0, 2.0, 1.0], 3.0, higher=False) == 5
    assert first_reach([0, 10, 20, 30], [0.0, 1.0, 0.2, 1.0], 0.5, higher=True) == 5  # the first time, not the last
    assert first_reach([3, 10], [0.7, 1.0], 0.5, higher=True) == 3
    assert first_reach([0, 10], [0.0, 0.4], 0.5, higher=True) == math.inf
    assert first_reach([], [], 0.5, higher=True) == math.inf


def test_mean_height_is_the_trapezoid_over_the_span():
    assert mean_height([0, 1, 3], [0.0, 2.0, 2.0]) == pytest.approx((1 + 4) / 3)
    assert mean_height([5], [0.3]) == 0.3


@pytest.mark.parametrize("higher", [True, False])
def test_a_variant_that_learns_twice_as_fast_needs_half_the_examples(higher):
    sign = 1 if higher else -1
    base, fast = sign * X / 16000, sign * np.minimum(2 * X / 16000, 2.0)
    found = compare(runs([fast] * 3, 150.0), runs([base] * 3), "m", higher=higher)
    assert found.to_target.value == pytest.approx(0.5) and found.to_target.interval == pytest.approx((0.5, 0.5))
    assert found.to_target.sure and not found.at_first_evaluation
    assert found.to_target_by_seed == pytest.approx((0.5,) * 3)
    assert found.seconds_to_target == pytest.approx(0.75)
    assert found.final_difference.value == pytest.approx(sign) and found.final_difference.sure
    assert found.area_difference.value == pytest.approx(sign * 0.625)


def test_not_reached_stays_so():
    found = compare(runs([X * 0.5 / 16000] * 2), runs([X / 16000] * 2), "m", higher=True)
    assert found.to_json()["to_target"] == {
        "value": "not reached",
        "interval": ["not reached"] * 2,
        "includes_null": False,
    }
    assert found.to_json()["to_target_by_seed"] == ["not reached"] * 2


def test_a_variant_there_from_the_start_is_marked():
    found = compare(runs([np.full(7, 2.0)] * 2), runs([X / 16000] * 2), "m", higher=True)
    assert found.at_first_evaluation and found.to_target.value == pytest.approx(0.25)


def test_a_variant_against_itself_is_not_told_apart():
    values = np.random.default_rng(0).normal(size=(3, 7)) + X / 4000
    found = compare(runs(values), runs(values), "m", higher=True)
    assert found.final_difference.value == 0 and not found.final_difference.sure
    assert found.to_target.value == 1 and found.to_target.interval == (1, 1) and not found.to_target.sure


def test_only_seeds_that_both_have_are_compared():
    variant, base = runs(np.ones((3, 7))), runs(np.zeros((2, 7)))
    assert compare(variant, base, "m", higher=True).seeds == (0, 1)
    assert compare(variant, {7: base[0]}, "m", higher=True) is None
    assert compare(variant, base, "other", higher=True) is None


def test_one_seed_without_clips_has_no_interval():
    found = compare(runs([X]), runs([X * 2]), "m", higher=True)
    assert found.final.interval is None and not found.final_difference.sure
    assert "interval" not in found.to_json()["final"]


def test_with_few_seeds_the_interval_is_students():
    """For a linear figure: mean +- t_{n-1} s / sqrt(n), paired over seeds."""
    from scipy.stats import t as student

    generator = np.random.default_rng(1)
    shared = generator.normal(size=(3, 1)) * 10  # what seeds share cancels in the pair
    variant, base = shared + generator.normal(size=(3, 7)) + 0.5, shared + generator.normal(size=(3, 7))
    found = compare(runs(variant), runs(base), "m", higher=True, draws=40_000).final_difference
    d = variant[:, -1] - base[:, -1]
    half = student.ppf(0.975, 2) * d.std(ddof=1) / math.sqrt(3)
    assert found.value == pytest.approx(d.mean())
    assert found.interval == pytest.approx((d.mean() - half, d.mean() + half), rel=0.08)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_coverage_of_the_paired_difference(seeds):
    """95 % intervals hold the truth in 95 % of studies, few seeds or not; 400 studies: +- 3 standard errors of 1.1 %."""
    generator = np.random.default_rng(2)
    held = 0
    for trial in range(400):
        shared = generator.normal(size=(seeds, 1))
        variant, base = (shared + 0.3 * generator.normal(size=(seeds, 7)) for _ in range(2))
        found = compare(runs(variant + 1.0), runs(base), "m", higher=True, draws=400, seed=trial)
        held += found.final_difference.interval[0] <= 1.0 <= found.final_difference.interval[1]
    assert 0.915 <= held / 400 <= 0.985


def test_clips_alone_give_the_bootstrap_over_clips():
    """One seed: the interval is that of resampled clips, paired between variants (the same clips in both)."""
    generator = np.random.default_rng(3)
    right = generator.random((2, 100)) < 0.5
    resampled = np.stack([right[:, generator.integers(0, 100, 100)].mean(axis=1) for _ in range(200)])  # [200, 2]
    variant, base = (runs([[right[k].mean()]], x=X[-1:], replicates=resampled[:, [k]]) for k in range(2))
    found = compare(variant, base, "m", higher=True)
    half = 1.96 * np.diff(right.astype(float), axis=0).std() / 10
    low, high = found.final_difference.interval
    assert (high - low) / 2 == pytest.approx(half, rel=0.2)
    assert (low + high) / 2 == pytest.approx(found.final_difference.value, abs=0.03)


def test_a_bias_of_resampled_clips_moves_nothing():
    replicates = 5.0 + np.random.default_rng(4).normal(size=(200, 7))  # biased upward by 5, as Frechet distances are
    found = compare(
        runs([np.zeros(7)] * 3, replicates=replicates),
        runs([np.zeros(7)] * 3, replicates=replicates),
        "m",
        higher=False,
    )
    assert abs(sum(found.final.interval)) < 0.5 and found.final_difference.interval == (0, 0)


def test_curves_of_other_moments_are_interpolated():
    fine = np.linspace(0.25, 1.0, 16) * 16000
    found = compare(runs([2 * fine / 16000] * 2, x=fine), runs([X / 16000] * 2), "m", higher=True)
    assert found.to_target.value == pytest.approx(0.5) and found.final.value == pytest.approx(2.0)


def test_a_shorter_run_stays_at_its_final_value():
    base, short = X / 16000, 2 * X / 16000  # the short run ends at 8,000 examples, where it stands at 2 * 0.5
    found = compare(runs([short] * 3, x=X / 2), runs([base] * 3), "m", higher=True)
    assert found.final.value == pytest.approx(2.0) and found.final_difference.value == pytest.approx(1.0)
    assert found.to_target.value == pytest.approx(0.25, abs=0.02)
    never = compare(runs([base * 0.9] * 3, x=X / 2), runs([base] * 3), "m", higher=True)
    assert never.to_target.value == math.inf and never.final.value == pytest.approx(0.9)


def test_wall_clock_is_the_geometric_mean_over_pairs():
    variant = {s: StudyCurves({}, v) for s, v in enumerate((110.0, 121.0))}
    base = {s: StudyCurves({}, 100.0) for s in range(3)}
    found = wall_clock(variant, base)
    assert found.value == pytest.approx(math.sqrt(1.1 * 1.21)) and found.interval[0] < 1 < found.interval[1]
    assert not found.sure and wall_clock({9: variant[0]}, base) is None
    assert wall_clock({0: variant[0]}, base).interval is None


def test_bands_hold_the_mean_and_know_the_clock():
    values = np.random.default_rng(5).normal(size=(3, 7))
    found = band(runs(values, 320.0), "m")
    assert found.mean == pytest.approx(values.mean(axis=0)) and found.seconds[-1] == pytest.approx(320)
    assert (found.low <= found.mean).all() and (found.mean <= found.high).all()
    assert band(runs(values[:1]), "m").low is None and band({}, "m") is None


def test_too_few_draws_are_refused():
    with pytest.raises(UserError, match="draws"):
        compare(runs([X]), runs([X]), "m", higher=True, draws=1)
