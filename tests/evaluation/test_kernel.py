"""KAD: unbiased on one distribution, the formula written out, the reference's own width."""

import numpy as np
import pytest

from segue.evaluation.kernel import kernel_audio_distance, median_distance, mmd_squared
from segue.types import UserError


def test_mean_is_zero_over_draws_of_one_law():
    rng = np.random.default_rng(0)
    values = np.array([mmd_squared(rng.standard_normal((24, 6)), rng.standard_normal((30, 6))) for _ in range(200)])
    assert abs(values.mean()) < 2.5 * values.std() / np.sqrt(200)
    assert (values < 0).mean() > 0.3  # unbiased, so not cut at zero


def test_agrees_with_the_sums_written_out():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((7, 3)), 0.4 + rng.standard_normal((9, 3))
    distances = [np.linalg.norm(y[i] - y[j]) for i in range(9) for j in range(i)]
    sigma = np.median(distances)

    def k(a, b):
        return np.exp(-np.sum((a - b) ** 2) / (2 * sigma**2))

    xx = sum(k(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / 42
    yy = sum(k(y[i], y[j]) for i in range(9) for j in range(9) if i != j) / 72
    xy = sum(k(a, b) for a in x for b in y) / 63
    assert median_distance(y) == pytest.approx(sigma, rel=1e-12)
    assert mmd_squared(x, y) == pytest.approx(xx + yy - 2 * xy, abs=1e-6)


def test_gaussians_match_the_closed_form():
    """E k(x, y) of two normal distributions in one dimension is sigma / s exp(-d^2 / (2 s^2)), s^2 = sigma^2 + 2."""
    rng = np.random.default_rng(2)
    shift, sigma = 1.5, 1.0
    found = [
        mmd_squared(rng.standard_normal((60, 1)) + shift, rng.standard_normal((60, 1)), sigma=sigma) for _ in range(200)
    ]
    spread = sigma**2 + 2
    expected = 2 * sigma / np.sqrt(spread) * (1 - np.exp(-(shift**2) / (2 * spread)))
    assert abs(np.mean(found) - expected) < 2.5 * np.std(found) / np.sqrt(200)


def test_measure_names_scale_and_width_and_ignores_order():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((20, 4)), rng.standard_normal((25, 4)) + 1
    first = kernel_audio_distance(x, y, draws=60)
    other = kernel_audio_distance(x[::-1], y[rng.permutation(25)], draws=60)
    assert first.value == pytest.approx(100 * mmd_squared(x, y), rel=1e-9)
    assert other.value == pytest.approx(first.value, rel=1e-9) and other.interval == pytest.approx(first.interval)
    assert first.interval[0] < first.value < first.interval[1] and first.n == 20
    assert first.card["scale"] == 100 and first.card["sigma"] == pytest.approx(median_distance(y))
    assert kernel_audio_distance(x, y, scale=1000, draws=20).value == pytest.approx(10 * first.value)


def test_interval_covers_zero_for_one_law_as_often_as_it_says():
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(40):
        low, high = kernel_audio_distance(
            rng.standard_normal((40, 2)), rng.standard_normal((40, 2)), draws=60
        ).interval  # fmt: skip
        held += low <= 0 <= high
    assert held >= 34


@pytest.mark.parametrize(
    ("x", "y", "options", "words"),
    [
        (np.zeros((1, 2)), np.eye(2), {}, "at least 2 generated"),
        (np.eye(2), np.zeros((4, 2)), {}, "median distance"),
        (np.eye(2), np.eye(3), {}, "generated 2, reference 3"),
        (np.eye(2), np.full((3, 2), np.nan), {}, "not finite"),
        (np.eye(2), np.eye(2), {"scale": 7}, "published at the scales"),
        (np.eye(2), np.eye(2), {"sigma": 0.0}, "must be positive"),
    ],
)
def test_refuses(x, y, options, words):
    with pytest.raises(UserError, match=words):
        kernel_audio_distance(x, y, **options)
