"""Accuracy, its chance level and its interval."""

import numpy as np
import pytest

from segue.evaluation.accuracy import accuracy, shuffled_chance
from segue.evaluation.bootstrap import bootstrap_interval
from segue.types import UserError


def test_chance_is_the_mean_over_all_permutations():
    from itertools import permutations

    predicted, labels = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 2, 0])
    exact = np.mean([(predicted == np.array(order)).mean() for order in permutations(labels)])
    assert shuffled_chance(predicted, labels) == pytest.approx(exact, abs=1e-12)


def test_a_generator_of_one_class_gets_no_credit():
    labels = np.array([0] * 60 + [1] * 40)
    result = accuracy(np.zeros(100, dtype=int), labels, 12)
    assert result.value == result.chance == pytest.approx(0.6)
    assert result.uniform_chance == pytest.approx(1 / 12)
    assert result.n == 100


def test_interval_covers_and_repeats():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        right = (rng.random(150) < 0.7).astype(int)
        low, high = accuracy(right, np.ones(150, dtype=int), 2, draws=200, seed=trial).interval
        covered += low <= 0.7 <= high
    assert 0.88 <= covered / 200 <= 0.99
    assert accuracy(right, right, 2, seed=3) == accuracy(right, right, 2, seed=3)


def test_interval_width_is_that_of_the_normal_law():
    values = np.random.default_rng(1).standard_normal(400)
    low, high = bootstrap_interval(lambda i: values[i].mean(), 400, draws=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)


@pytest.mark.parametrize("n, draws, level", [(1, 10, 0.9), (5, 0, 0.9), (5, 10, 1.0)])
def test_bootstrap_refuses(n, draws, level):
    with pytest.raises(UserError):
        bootstrap_interval(lambda i: 0.0, n, draws=draws, level=level)


def test_refuses_unequal_lists():
    with pytest.raises(UserError, match="equal lists"):
        accuracy([0, 1, 1], [0, 1], 2)
