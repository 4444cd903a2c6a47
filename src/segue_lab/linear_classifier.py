"""A linear classifier of embeddings: what a linear probe is fitted with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segue.types import UserError, import_extra


@dataclass(frozen=True)
class LinearClassifier:
    """Multinomial logistic regression from embeddings to classes.

    Attributes:
        classes: K names.
        weight: [K, E].
        bias: [K].
    """

    classes: tuple[str, ...]
    weight: np.ndarray
    bias: np.ndarray

    def predict(self, embedding: np.ndarray) -> list[str]:
        """[N, E] -> N names."""
        return [self.classes[k] for k in (embedding @ self.weight.T + self.bias).argmax(axis=1)]


def fit_linear_classifier(embedding: np.ndarray, names: Sequence[str]) -> LinearClassifier:
    """Fit on N clips whose class is known; standardised features, L2 penalty of strength 10 (C = 0.1). Deterministic.

    Args:
        embedding: [N, E].
        names: class of each clip.

    Raises:
        UserError: fewer than two classes.
    """
    # Sorted, so that the same names always get the same rows.
    classes = sorted(set(names))
    if len(classes) < 2:
        raise UserError(f"a linear classifier needs two classes at least, found {', '.join(classes) or 'none'}")
    linear = import_extra("sklearn.linear_model", "lab")
    mean = embedding.mean(axis=0)
    # A feature that never moves must not be divided by zero.
    deviation = np.maximum(embedding.std(axis=0), 1e-6)
    model = linear.LogisticRegression(C=0.1, max_iter=1000)
    model.fit((embedding - mean) / deviation, [classes.index(name) for name in names])
    weight, bias = model.coef_, model.intercept_
    if len(classes) == 2:  # scikit-learn keeps one row for two classes
        weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
    # The standardisation goes into the weights: prediction then takes raw embeddings.
    weight = weight / deviation
    return LinearClassifier(tuple(classes), weight, bias - weight @ mean)
