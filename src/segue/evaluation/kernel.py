"""Kernel audio distance: the unbiased maximum mean discrepancy between two sets of embeddings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from segue.evaluation.bootstrap import in_fixed_order, two_sample_interval
from segue.evaluation.card import Measure, bootstrap_words, make_measure
from segue.types import UserError

# kadtk multiplies MMD^2 by 100 (Chung et al. 2025), CMMD by 1000 (Jayasumana et al. 2024): a figure names its scale.
SCALES = (100, 1000)


def median_distance(embeddings: np.ndarray) -> float:
    """Median Euclidean distance over the N (N - 1) / 2 pairs of [N, E].

    Raises:
        UserError: it is zero: more than half of the pairs are equal.
    """
    rows = torch.from_numpy(_checked(embeddings, "reference"))
    # pdist holds each pair once, and no clip's distance from itself.
    sigma = float(np.median(torch.nn.functional.pdist(rows).numpy()))
    if sigma <= 0.0:
        raise UserError(
            "the median distance between reference clips is 0: most of them are equal; hint: give other clips"
        )
    return sigma


def mmd_squared(generated: np.ndarray, reference: np.ndarray, sigma: float | None = None) -> float:
    """Unbiased MMD^2 with the kernel exp(-|x - y|^2 / (2 sigma^2)) (Gretton et al. 2012, eq. 3), float64.

    It is negative about half the time where both sets are of one distribution: that is what unbiased means, and
    it is not cut.

    Args:
        generated, reference: [N, E] and [M, E].
        sigma: kernel width; default: the median pairwise distance of the reference set (Chung et al. 2025).

    Raises:
        UserError: fewer than two clips in a set, dimensions that differ, values that are not finite, sigma <= 0.
    """
    x, y = _checked(generated, "generated"), _checked(reference, "reference")
    _same_dimension(x, y)
    kernels = _kernels(x, y, _width(y, sigma))
    return _unbiased(*kernels, np.ones(len(x)), np.ones(len(y)))


def kernel_audio_distance(
    generated: np.ndarray,
    reference: np.ndarray,
    *,
    scale: int = 100,
    sigma: float | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    embedding: Mapping | None = None,
) -> Measure:
    """KAD = scale x MMD^2 (`mmd_squared`); lower is better, 0 on average for equal distributions.

    The interval resamples clips of both sets; two copies of one clip are no pair, so repeats add no bias.

    Raises:
        UserError: as `mmd_squared`, or another scale than the two that are published.
    """
    if scale not in SCALES:
        raise UserError(f"KAD is published at the scales {SCALES}; got {scale}")
    x, y = in_fixed_order(_checked(generated, "generated")), in_fixed_order(_checked(reference, "reference"))
    _same_dimension(x, y)
    # Held while clips are resampled: the width is part of the kernel, not of the sample.
    width = _width(y, sigma)
    # Kernels are computed once; a bootstrap draw only weighs their rows and columns.
    kernels = _kernels(x, y, width)

    def again(i: np.ndarray, j: np.ndarray) -> float:
        return scale * _unbiased(*kernels, np.bincount(i, minlength=len(x)), np.bincount(j, minlength=len(y)))

    # All weights 1: the value itself is the draw without resampling.
    value = scale * _unbiased(*kernels, np.ones(len(x)), np.ones(len(y)))
    interval = two_sample_interval(again, len(x), len(y), draws=draws, level=level, seed=seed)
    about = {
        "definition": "unbiased MMD^2, kernel exp(-|x-y|^2 / (2 sigma^2)), float64",
        "scale": scale,
        "sigma": width,
        "sigma_from": "median pairwise distance of the reference set" if sigma is None else "given",
        "n_generated": len(x),
        "n_reference": len(y),
        "interval": bootstrap_words(draws, level, seed, "bootstrap over clips of both sets, sigma held"),
    }
    return make_measure(
        f"KAD (x{scale})", value, interval, len(x), better="lower", parameters=about, embedding=embedding
    )


def _kernels(x: np.ndarray, y: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first = torch.from_numpy(x)
    second = torch.from_numpy(y)

    def kernel(a: Tensor, b: Tensor) -> np.ndarray:
        return torch.exp(-torch.cdist(a, b).square() / (2.0 * sigma**2)).numpy()

    return kernel(first, first), kernel(second, second), kernel(first, second)


def _unbiased(kxx: np.ndarray, kyy: np.ndarray, kxy: np.ndarray, w: np.ndarray, v: np.ndarray) -> float:
    """MMD^2 where clip i counts w_i (v_j) times; pairs of a clip with itself are left out."""
    w = w.astype(np.float64)
    v = v.astype(np.float64)
    return _within(kxx, w) + _within(kyy, v) - 2.0 * float(w @ kxy @ v) / (w.sum() * v.sum())


def _within(kernel: np.ndarray, w: np.ndarray) -> float:
    # A draw of nothing but one clip has no pair; so rare beyond a handful of clips that 1, a clip's own kernel, stands.
    pairs = w.sum() ** 2 - np.square(w).sum()
    return float(w @ kernel @ w - np.square(w) @ np.diag(kernel)) / pairs if pairs > 0 else 1.0


def _width(reference: np.ndarray, sigma: float | None) -> float:
    if sigma is None:
        return median_distance(reference)
    if not np.isfinite(sigma) or sigma <= 0.0:
        raise UserError(f"the kernel's sigma must be positive; got {sigma}")
    return float(sigma)


def _checked(embeddings: np.ndarray, name: str) -> np.ndarray:
    embeddings = np.ascontiguousarray(embeddings, dtype=np.float64)
    if embeddings.ndim != 2 or len(embeddings) < 2:
        raise UserError(f"KAD needs at least 2 {name} clips as [N, E]; got {list(embeddings.shape)}")
    if not np.isfinite(embeddings).all():
        raise UserError(f"{name} embeddings hold values that are not finite")
    return embeddings


def _same_dimension(x: np.ndarray, y: np.ndarray) -> None:
    if x.shape[1] != y.shape[1]:
        raise UserError(f"embeddings differ in dimension: generated {x.shape[1]}, reference {y.shape[1]}")
