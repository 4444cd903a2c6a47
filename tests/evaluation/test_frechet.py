"""The Frechet distance: closed forms, an independent formula, and refusals."""

import numpy as np
import pytest
import scipy.linalg

from segue.evaluation.frechet import (
    fad_infinity,
    frechet_between_gaussians,
    frechet_distance,
    frechet_measure,
    gaussian_of,
    line_fit,
)
from segue.types import UserError


def random_covariance(rng, dimension):
    factor = rng.standard_normal((dimension, dimension))
    return factor @ factor.T / dimension


def test_diagonal_gaussians_match_the_closed_form():
    rng = np.random.default_rng(0)
    mean_a, mean_b = rng.standard_normal((2, 8))
    deviation_a, deviation_b = rng.uniform(0.1, 2.0, (2, 8))
    expected = np.square(mean_a - mean_b).sum() + np.square(deviation_a - deviation_b).sum()
    found = frechet_between_gaussians(mean_a, np.diag(deviation_a**2), mean_b, np.diag(deviation_b**2))
    assert found == pytest.approx(expected, rel=1e-12)


def test_isotropic_scaling_matches_the_closed_form():
    cov = random_covariance(np.random.default_rng(1), 6)
    zero = np.zeros(6)
    assert frechet_between_gaussians(zero, cov, zero, 9.0 * cov) == pytest.approx(4.0 * np.trace(cov), rel=1e-10)


@pytest.mark.parametrize("dimension", [2, 16, 64])
def test_agrees_with_the_square_root_of_the_product(dimension):
    rng = np.random.default_rng(dimension)
    cov_a, cov_b = random_covariance(rng, dimension), random_covariance(rng, dimension)
    mean_a, mean_b = rng.standard_normal((2, dimension))
    cross = np.trace(scipy.linalg.sqrtm(cov_a @ cov_b)).real
    expected = np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross
    assert frechet_between_gaussians(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, abs=1e-6)


def test_is_zero_with_itself_symmetric_and_blind_to_rotation():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((200, 12)), 0.5 + 2.0 * rng.standard_normal((150, 12))
    rotation = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_singular_covariances_stay_real_and_non_negative():
    rng = np.random.default_rng(3)
    a = rng.standard_normal((5, 40))
    assert 0.0 <= frechet_distance(a, a + 1e-9, allow_few=True) < 1e-6


def test_moments_are_unbiased():
    a = np.random.default_rng(4).standard_normal((30, 3)).astype(np.float32)
    mean, cov = gaussian_of(a)
    assert mean.dtype == cov.dtype == np.float64
    np.testing.assert_allclose(cov, np.cov(a.T.astype(np.float64)), rtol=1e-12)


@pytest.mark.parametrize(
    ("generated", "reference", "words"),
    [
        (np.zeros((1, 2)), np.zeros((9, 2)), "at least 2 generated"),
        (np.zeros((9, 2)), np.zeros((9, 3)), "generated 2, reference 3"),
        (np.zeros((3, 4)), np.zeros((9, 4)), "too few"),
        (np.full((9, 2), np.nan), np.zeros((9, 2)), "generated embeddings"),
        (np.zeros((9, 2)), np.full((9, 2), np.inf), "reference embeddings"),
        (np.zeros(9), np.zeros((9, 2)), r"\[9\]"),
    ],
)
def test_refuses(generated, reference, words):
    with pytest.raises(UserError, match=words):
        frechet_distance(generated, reference)


def test_agrees_with_sqrtm_of_fitted_covariances():
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((60, 10)), 1.0 + 1.5 * rng.standard_normal((70, 10))
    cross = np.trace(scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(np.cov(x.T)) + np.trace(np.cov(y.T)) - 2 * cross
    found = frechet_measure(x, y, draws=40)
    assert found.value == pytest.approx(expected, abs=1e-3)
    assert found.interval[0] < found.value < found.interval[1] and found.n == 60 and found.card["dimension"] == 10
    again = frechet_measure(x[::-1], y[::-1], draws=40)
    assert again.value == pytest.approx(found.value) and again.interval == pytest.approx(found.interval)


def test_infinity_takes_out_most_of_what_few_clips_add():
    """Of one distribution the distance is zero; of N clips it is not."""
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((300, 8)), rng.standard_normal((20000, 8))
    plain, found = frechet_distance(x, y), fad_infinity(x, y, draws=5)
    assert plain > 0.05 and abs(found.value) < 0.5 * plain
    assert found.card["r2"] > 0.7 and found.card["slope"] > 0 and found.card["seed"] == 0
    again = fad_infinity(x[::-1], y[rng.permutation(20000)], draws=5)
    assert again.value == pytest.approx(found.value) and again.interval == pytest.approx(found.interval)


def test_line_fit_of_a_line():
    x = np.linspace(0.1, 1.0, 7)
    assert line_fit(x, 2.0 + 3.0 * x) == pytest.approx((2.0, 3.0, 1.0))
    with pytest.raises(UserError, match="three different places"):
        line_fit(x[:2], x[:2])


def test_few_clips_are_refused_and_kad_is_offered():
    rng = np.random.default_rng(7)
    with pytest.raises(UserError, match="read KAD"):
        frechet_measure(rng.standard_normal((9, 10)), rng.standard_normal((30, 10)))
    with pytest.raises(UserError, match="at least 3 x 10"):
        fad_infinity(rng.standard_normal((20, 10)), rng.standard_normal((30, 10)))
