"""How well clips match their captions, in a space that sound and text share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from segue.evaluation.card import Measure, mean_over_clips
from segue.types import UserError


def similarity_by_clip(sounds: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Cosine between row i of sounds [N, E] and row i of texts [N, E], float64 -> [N] in [-1, 1].

    Raises:
        UserError: shapes that differ, values that are not finite, or a row of zeros.
    """
    sounds = np.asarray(sounds, dtype=np.float64)
    texts = np.asarray(texts, dtype=np.float64)
    if sounds.ndim != 2 or sounds.shape != texts.shape:
        raise UserError(f"expected a caption a clip, both [N, E]; got {list(sounds.shape)} and {list(texts.shape)}")
    return (_unit(sounds, "clip") * _unit(texts, "caption")).sum(axis=1)


def text_audio_similarity(
    sounds: np.ndarray,
    texts: np.ndarray,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    embedding: Mapping | None = None,
) -> Measure:
    """Mean cosine of clips with their own captions ("CLAP score" with CLAP embeddings); higher is better.

    The card holds `mismatched`, the mean cosine of clips with other clips' captions, exact over all N (N - 1) pairs:
    what a generator gets that ignores its prompt. One candidate a caption, none chosen.

    Raises:
        UserError: fewer than two clips, or as `similarity_by_clip`.
    """
    own = similarity_by_clip(sounds, texts)
    first = _unit(np.asarray(sounds, np.float64), "clip")
    second = _unit(np.asarray(texts, np.float64), "caption")
    n = len(own)
    if n < 2:
        raise UserError(f"text-audio similarity needs at least 2 clips; got {n}")
    # The sum over all pairs is the product of the sums; own pairs are taken off it.
    mismatched = float((first.sum(axis=0) @ second.sum(axis=0) - own.sum()) / (n * (n - 1)))
    about = {"definition": "cosine, not scaled", "mismatched": mismatched, "candidates": 1, "pairs": "by id"}
    return mean_over_clips(
        "text-audio similarity", own, better="higher", parameters=about, embedding=embedding, draws=draws, level=level,
        seed=seed,
    )  # fmt: skip


def _unit(rows: np.ndarray, name: str) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(rows).all() or (lengths == 0.0).any():
        raise UserError(f"a {name}'s embedding is zero or not finite: no cosine")
    return rows / lengths
