"""Accuracy with what is needed to read it: the number of clips, an interval and the level of chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segue.evaluation.bootstrap import bootstrap_interval
from segue.types import UserError


@dataclass(frozen=True)
class Accuracy:
    """Share of clips whose predicted class is the one that was asked for.

    Attributes:
        value: accuracy in [0, 1].
        n: number of clips.
        interval: bootstrap interval over clips (95 % unless told otherwise).
        chance: expected accuracy when the captions are shuffled among these clips (our definition).
        uniform_chance: one over the number of classes.
    """

    value: float
    n: int
    interval: tuple[float, float]
    chance: float
    uniform_chance: float


def shuffled_chance(predicted: Sequence[int], labels: Sequence[int]) -> float:
    """Expected accuracy when labels are permuted at random among the clips: sum_c count_label(c) count_pred(c) / n^2.

    Exact (each clip meets each label with probability 1/n), so no permutation is drawn. Unlike one over the number of
    classes it credits nothing to a generator that always makes the commonest class.
    """
    got = np.asarray(predicted)
    asked = np.asarray(labels)
    matches = sum(int((got == c).sum()) * int((asked == c).sum()) for c in np.union1d(got, asked))
    return matches / len(labels) ** 2


def accuracy(
    predicted: Sequence[int],
    labels: Sequence[int],
    classes: int,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Accuracy:
    """Accuracy of class indices `predicted` [n] against `labels` [n].

    Args:
        classes: number of classes that the predictor chooses among, for `uniform_chance`.

    Raises:
        UserError: lengths differ, or fewer than two clips.
    """
    got = np.asarray(predicted)
    asked = np.asarray(labels)
    if got.ndim != 1 or got.shape != asked.shape or len(asked) < 2:
        raise UserError(f"accuracy needs two equal lists of >= 2 clips; got {got.shape} and {asked.shape}")
    right = np.equal(got, asked).astype(np.float64)
    return Accuracy(
        value=float(right.mean()),
        n=len(right),
        interval=bootstrap_interval(lambda i: right[i].mean(), len(right), draws=draws, level=level, seed=seed),
        chance=shuffled_chance(predicted, labels),
        uniform_chance=1.0 / classes,
    )
