import math

import numpy as np
import pytest
from scipy import stats

from segue.stage.slope import log_slope


def test_an_exact_line_in_ln_n_is_found_exactly():
    n = list(range(100, 2100, 100))
    line = log_slope(n, [3.0 - 0.25 * math.log(x) for x in n])
    assert line.slope == pytest.approx(-0.25, abs=1e-12)
    assert line.fitted == pytest.approx(3.0 - 0.25 * math.log(2000), abs=1e-12)
    assert line.residual_sd == pytest.approx(0, abs=1e-12) and line.standard_error == pytest.approx(0, abs=1e-12)
    assert line.points == 11  # 1000 to 2000


def test_it_agrees_with_scipy():
    rng = np.random.default_rng(0)
    n = np.sort(rng.choice(np.arange(500, 1000), 40, replace=False))
    y = 1.0 - 0.1 * np.log(n) + 0.02 * rng.standard_normal(40)
    line, reference = log_slope(n.tolist(), y.tolist()), stats.linregress(np.log(n), y)
    assert line.slope == pytest.approx(reference.slope, rel=1e-9)
    assert line.standard_error == pytest.approx(reference.stderr, rel=1e-9)
    assert line.fitted == pytest.approx(reference.intercept + reference.slope * math.log(n[-1]), rel=1e-9)


def test_only_the_window_counts():
    n = list(range(10, 1010, 10))
    early = [5.0 if x < 500 else 1.0 - 0.1 * math.log(x) for x in n]
    assert log_slope(n, early).slope == pytest.approx(-0.1, abs=1e-9)
    assert log_slope(n, early, window=4.0).slope < -0.5


def test_few_points_widen_the_window_and_fewer_give_none():
    n = [2**k for k in range(10)]
    values = [-0.1 * math.log(x) for x in n]
    assert log_slope(n, values).points == 8
    assert log_slope(n, values).slope == pytest.approx(-0.1)
    assert log_slope(n[:7], values[:7]) is None
    assert log_slope([], []) is None


def test_the_slope_is_covered_by_its_standard_error():
    rng = np.random.default_rng(1)
    n = np.geomspace(500, 1000, 12)
    inside = 0
    for _ in range(400):
        line = log_slope(n.tolist(), (2.0 - 0.3 * np.log(n) + 0.1 * rng.standard_normal(12)).tolist())
        inside += abs(line.slope + 0.3) < stats.t.ppf(0.95, 10) * line.standard_error
    assert inside / 400 == pytest.approx(0.9, abs=0.045)


@pytest.mark.parametrize("examples", [[0, *range(2, 9)], [1, 2, 3, 3, 4, 5, 6, 7], [8, 7, 6, 5, 4, 3, 2, 1]])
def test_positions_that_do_not_grow_are_refused(examples):
    with pytest.raises(ValueError, match="positive and increasing"):
        log_slope(examples, [0.0] * 8)
    with pytest.raises(ValueError, match="8 positions but 7 values"):
        log_slope(examples, [0.0] * 7)
