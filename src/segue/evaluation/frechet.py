"""Frechet distance between two sets of embeddings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from segue.evaluation.bootstrap import in_fixed_order, two_sample_interval
from segue.evaluation.card import Measure, bootstrap_words, make_measure
from segue.types import UserError

_DEFINITION = "|mean difference|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2, unbiased covariances, float64, eigvalsh"
_INTERVAL = "bootstrap over clips of both sets, shifted to the value (repeats inflate every draw)"


def frechet_distance(generated: np.ndarray, reference: np.ndarray, *, allow_few: bool = False) -> float:
    """Squared 2-Wasserstein distance between the Gaussians fitted to two embedding sets (Heusel et al. 2017, eq. 6).

    Falls as the number of clips grows: always print both N beside it, and compare only figures of equal N.

    Args:
        generated, reference: [N, E] embeddings; N may differ between the two.
        allow_few: accept N < E, where the covariance is singular and the figure mostly measures N.

    Raises:
        UserError: N < 2, N < E without `allow_few`, dimensions that differ, values that are not finite.
    """
    first = _checked(generated, "generated", allow_few)
    second = _checked(reference, "reference", allow_few)
    if first.shape[1] != second.shape[1]:
        raise UserError(f"embeddings differ in dimension: generated {first.shape[1]}, reference {second.shape[1]}")
    return frechet_between_gaussians(*gaussian_of(first), *gaussian_of(second))


def frechet_measure(
    generated: np.ndarray,
    reference: np.ndarray,
    *,
    draws: int = 100,
    level: float = 0.95,
    seed: int = 0,
    embedding: Mapping | None = None,
) -> Measure:
    """`frechet_distance` with its interval and card; lower is better. Compare figures of equal N alone.

    Raises:
        UserError: as `frechet_distance`; fewer clips than dimensions are refused, `kernel_audio_distance` needs two.
    """
    x, y = (
        in_fixed_order(_checked(generated, "generated", False)),
        in_fixed_order(_checked(reference, "reference", False)),
    )
    value = frechet_distance(x, y)
    interval = two_sample_interval(
        lambda i, j: frechet_between_gaussians(*gaussian_of(x[i]), *gaussian_of(y[j])),
        len(x), len(y), draws=draws, level=level, seed=seed, about=value,
    )  # fmt: skip
    about = {
        "definition": _DEFINITION,
        "n_generated": len(x),
        "n_reference": len(y),
        "dimension": x.shape[1],
        "interval": bootstrap_words(draws, level, seed, _INTERVAL),
    }
    # An interval about the value can reach below zero, where no distance is.
    # No distance is negative, and the shift could lead there.
    interval = (max(interval[0], 0.0), interval[1])
    return make_measure(
        "Frechet distance", value, interval, len(x), better="lower", parameters=about, embedding=embedding
    )


def fad_infinity(
    generated: np.ndarray,
    reference: np.ndarray,
    *,
    steps: int = 12,
    draws: int = 50,
    level: float = 0.95,
    seed: int = 0,
    embedding: Mapping | None = None,
) -> Measure:
    """The Frechet distance extrapolated to endless generated clips (Chong & Forsyth 2020; Gui et al. 2024, section 3).

    Distances of random subsets of n generated clips (without replacement) to the whole reference are fitted by
    a + b / n, `steps` sizes equally spaced in 1 / n from twice the dimension (or N / 5, if that is more) to N; the
    value is a, and may be below zero. The card holds b, the sizes and the fit's R^2: where that is low, quote it not.

    Raises:
        UserError: fewer generated clips than three times the dimension, or as `frechet_distance`.
    """
    x, y = (
        in_fixed_order(_checked(generated, "generated", False)),
        in_fixed_order(_checked(reference, "reference", False)),
    )
    if x.shape[1] != y.shape[1]:
        raise UserError(f"embeddings differ in dimension: generated {x.shape[1]}, reference {y.shape[1]}")
    # A line through fewer sizes, or through nearly singular covariances, extrapolates noise.
    if len(x) < 3 * x.shape[1] or steps < 3:
        raise UserError(
            f"FAD-infinity needs at least 3 x {x.shape[1]} generated clips and 3 steps; got {len(x)} and {steps}"
        )
    # Sizes that are evenly spaced in 1/n, the axis of the fitted line.
    smallest = max(2 * x.shape[1], len(x) // 5)
    sizes = np.unique(np.round(1.0 / np.linspace(1.0 / smallest, 1.0 / len(x), steps)).astype(int))

    def fit(some: np.ndarray, real: np.ndarray) -> tuple[float, float, float]:
        generator = np.random.default_rng(seed)
        gaussian = gaussian_of(real)
        distances = [
            frechet_between_gaussians(*gaussian_of(some[generator.permutation(len(some))[:n]]), *gaussian)
            for n in sizes
        ]
        return line_fit(1.0 / sizes, np.array(distances))

    # The intercept at 1/n = 0 is the distance of an infinite set.
    value, slope, r2 = fit(x, y)
    interval = two_sample_interval(
        lambda i, j: fit(x[i], y[j])[0], len(x), len(y), draws=draws, level=level, seed=seed, about=value
    )
    about = {
        "definition": f"intercept over 1/n of: {_DEFINITION}",
        "sizes": sizes.tolist(),
        "seed": seed,
        "slope": slope,
        "r2": r2,
        "n_generated": len(x),
        "n_reference": len(y),
        "dimension": x.shape[1],
        "interval": bootstrap_words(draws, level, seed, _INTERVAL),
    }
    return make_measure("FAD-infinity", value, interval, len(x), better="lower", parameters=about, embedding=embedding)


def line_fit(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Least squares of y = a + b x: (a, b, R^2).

    Raises:
        UserError: fewer than three different x, or y is constant.
    """
    if len(np.unique(x)) < 3 or np.ptp(y) == 0.0:
        raise UserError("a line needs three different places and values that vary; hint: give more clips")
    b, a = np.polyfit(x, y, 1)
    return float(a), float(b), float(1.0 - np.square(y - a - b * x).sum() / np.square(y - y.mean()).sum())


def gaussian_of(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, E] -> mean [E] and unbiased covariance [E, E], float64."""
    embeddings = np.asarray(embeddings, dtype=np.float64)
    # With one dimension np.cov gives a scalar.
    return embeddings.mean(axis=0), np.atleast_2d(np.cov(embeddings, rowvar=False))


def frechet_between_gaussians(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A^1/2 B A^1/2)^1/2), in float64 (Dowson & Landau 1982).

    The symmetrised product has the eigenvalues of A B but is symmetric, so `eigvalsh` gives them real; `sqrtm` of A B
    itself returns imaginary parts and negative distances on singular covariances.
    """
    mean_a, cov_a, mean_b, cov_b = (np.asarray(x, dtype=np.float64) for x in (mean_a, cov_a, mean_b, cov_b))
    root_a = _symmetric_root(cov_a)
    product = root_a @ cov_b @ root_a
    # Rounding leaves a product that is not quite symmetric, and eigvalsh reads one triangle only.
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2.0)
    # Eigenvalues that rounding has made negative count as zero.
    cross = np.sqrt(np.clip(eigenvalues, 0.0, None)).sum()
    distance = np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross
    return float(max(distance, 0.0))


def _symmetric_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2.0)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T


def _checked(embeddings: np.ndarray, name: str, allow_few: bool) -> np.ndarray:
    embeddings = np.asarray(embeddings, dtype=np.float64)
    if embeddings.ndim != 2 or embeddings.shape[0] < 2:
        raise UserError(f"the Frechet distance needs at least 2 {name} clips as [N, E]; got {list(embeddings.shape)}")
    n, dimension = embeddings.shape
    if n < dimension and not allow_few:
        raise UserError(
            f"{n} {name} clips are too few for a Frechet distance in {dimension} dimensions; "
            f"hint: give at least {dimension}, or read KAD instead"
        )
    if not np.isfinite(embeddings).all():
        raise UserError(f"the {name} embeddings hold values that are not finite; hint: look for NaN in those clips")
    return embeddings
