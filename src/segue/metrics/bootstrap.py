"""Intervals by resampling clips."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from segue.types import UserError


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], n: int, *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap over clips (Efron 1979): resample n indices with replacement, take the middle `level`.

    A statistic that is biased in n (the Frechet distance is: repeated clips shrink the covariance) keeps that bias in
    every draw; read such an interval as a width, not as a place.

    Args:
        statistic: maps an integer index array [n] to one number.
        n: number of clips.

    Raises:
        UserError: n < 2, draws < 1 or level outside (0, 1).
    """
    if n < 2 or draws < 1 or not 0.0 < level < 1.0:
        raise UserError(
            f"bootstrap needs n >= 2, draws >= 1 and 0 < level < 1; got n={n}, draws={draws}, level={level}"
        )
    generator = np.random.default_rng(seed)
    values = np.array([statistic(generator.integers(0, n, n)) for _ in range(draws)], dtype=np.float64)
    low, high = np.quantile(values, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)
