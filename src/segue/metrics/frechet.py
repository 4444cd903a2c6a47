"""Frechet distance between two sets of embeddings."""

from __future__ import annotations

import numpy as np

from segue.types import UserError


def frechet_distance(generated: np.ndarray, reference: np.ndarray, *, allow_few: bool = False) -> float:
    """Squared 2-Wasserstein distance between the Gaussians fitted to two embedding sets (Heusel et al. 2017, eq. 6).

    Falls as the number of clips grows: always print both N beside it, and compare only figures of equal N.

    Args:
        generated, reference: [N, E] embeddings; N may differ between the two.
        allow_few: accept N < E, where the covariance is singular and the figure mostly measures N.

    Raises:
        UserError: N < 2, N < E without `allow_few`, dimensions that differ, values that are not finite.
    """
    first, second = _checked(generated, "generated", allow_few), _checked(reference, "reference", allow_few)
    if first.shape[1] != second.shape[1]:
        raise UserError(f"embeddings differ in dimension: generated {first.shape[1]}, reference {second.shape[1]}")
    return frechet_between_gaussians(*gaussian_of(first), *gaussian_of(second))


def gaussian_of(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, E] -> mean [E] and unbiased covariance [E, E], float64."""
    embeddings = np.asarray(embeddings, dtype=np.float64)
    return embeddings.mean(axis=0), np.atleast_2d(np.cov(embeddings, rowvar=False))


def frechet_between_gaussians(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A^1/2 B A^1/2)^1/2), in float64 (Dowson & Landau 1982).

    The symmetrised product has the eigenvalues of A B but is symmetric, so `eigvalsh` gives them real; `sqrtm` of A B
    itself returns imaginary parts and negative distances on singular covariances.
    """
    mean_a, cov_a, mean_b, cov_b = (np.asarray(x, dtype=np.float64) for x in (mean_a, cov_a, mean_b, cov_b))
    root_a = _symmetric_root(cov_a)
    product = root_a @ cov_b @ root_a
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2.0)
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
            f"mend: give at least {dimension}, or allow_few=True"
        )
    if not np.isfinite(embeddings).all():
        raise UserError(f"the {name} embeddings hold values that are not finite; look for NaN in those clips")
    return embeddings
