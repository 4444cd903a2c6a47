"""Precision, recall, density and coverage: which clips lie within the other set's neighbourhoods."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from segue.evaluation.card import Measure, mean_over_clips
from segue.types import UserError


def manifold_measures(
    generated: np.ndarray,
    reference: np.ndarray,
    *,
    k: int = 5,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    embedding: Mapping | None = None,
) -> list[Measure]:
    """The four figures of `manifold_by_clip`, each a mean over clips with its interval; higher is better.

    Neighbourhoods are held while clips are resampled: repeats would shrink their radii to zero.

    Raises:
        UserError: as `manifold_by_clip`.
    """
    by_clip = manifold_by_clip(generated, reference, k=k)
    about = {
        "definition": "strictly within the distance to the k-th neighbour (Kynkaanniemi 2019; Naeem 2020)",
        "k": k,
        "n_generated": len(generated),
        "n_reference": len(reference),
        "interval_over": "generated clips for precision and density, reference clips for recall and coverage",
    }
    return [
        mean_over_clips(
            name, values, better="higher", parameters=about, embedding=embedding, draws=draws, level=level, seed=seed
        )
        for name, values in by_clip.items()
    ]


def manifold_by_clip(generated: np.ndarray, reference: np.ndarray, *, k: int = 5) -> dict[str, np.ndarray]:
    """One number a clip; each figure is its mean.

    precision [N]: the generated clip lies in some reference clip's ball (radius: distance to its k-th neighbour in its
        own set). recall [M]: the reference clip lies in some generated clip's ball (Kynkaanniemi et al. 2019, eq. 1-3).
    density [N]: reference balls that hold the generated clip, over k; may exceed 1. coverage [M]: the reference clip's
        ball holds a generated clip (Naeem et al. 2020, eq. 5-6).

    Args:
        generated, reference: [N, E] and [M, E].

    Raises:
        UserError: k < 1, a set of k clips or fewer, dimensions that differ, values that are not finite.
    """
    x, y = (_checked(e, name, k) for e, name in ((generated, "generated"), (reference, "reference")))
    if x.shape[1] != y.shape[1]:
        raise UserError(f"embeddings differ in dimension: generated {x.shape[1]}, reference {y.shape[1]}")
    between = _distances(y, x)
    # Strictly within, so that a clip on the edge of a ball does not count.
    in_reference = between < _radii(y, k)[:, None]  # [M, N]
    in_generated = between < _radii(x, k)[None, :]
    return {
        "precision": in_reference.any(axis=0).astype(np.float64),
        "recall": in_generated.any(axis=1).astype(np.float64),
        "density": in_reference.sum(axis=0) / k,
        "coverage": in_reference.any(axis=1).astype(np.float64),
    }


def nearest(generated: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each generated clip the distance to the nearest reference clip and its index, [N] each; to rank clips by."""
    distances = _distances(np.asarray(generated, np.float64), np.asarray(reference, np.float64))
    return distances.min(axis=1), distances.argmin(axis=1)


def _radii(rows: np.ndarray, k: int) -> np.ndarray:
    # Column 0 of a sorted row is the clip itself.
    # A partial sort is enough for the k-th smallest.
    return np.partition(_distances(rows, rows), k, axis=1)[:, k]


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # Without the matrix product, whose rounding would tell a clip from its copy.
    first = torch.from_numpy(np.ascontiguousarray(a))
    second = torch.from_numpy(np.ascontiguousarray(b))
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist").numpy()


def _checked(embeddings: np.ndarray, name: str, k: int) -> np.ndarray:
    embeddings = np.asarray(embeddings, dtype=np.float64)
    if k < 1 or embeddings.ndim != 2:
        raise UserError(f"precision and recall: k is {k} and the embeddings {list(embeddings.shape)}, not [N, E]")
    if len(embeddings) <= k:
        raise UserError(
            f"{len(embeddings)} {name} clips are too few for precision and recall with k = {k}; "
            f"hint: give at least {k + 1}, or a smaller k (--k)"
        )
    if not np.isfinite(embeddings).all():
        raise UserError(f"{name} embeddings hold values that are not finite")
    return embeddings
