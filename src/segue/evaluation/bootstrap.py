"""Intervals by resampling clips."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from segue.types import UserError


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    n: int,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    about: float | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap over clips (Efron 1979): resample n indices with replacement, take the middle `level`.

    Args:
        statistic: maps an integer index array [n] to one number.
        n: number of clips.
        about: where given, the draws are shifted so that their mean lies there. For statistics that repeated clips
            bias (the inception score: fewer different clips are less varied) the plain interval may miss the value
            (our definition).

    Raises:
        UserError: n < 2, draws < 1 or level outside (0, 1).
    """
    if n < 2 or draws < 1 or not 0.0 < level < 1.0:
        raise UserError(
            f"bootstrap needs n >= 2, draws >= 1 and 0 < level < 1; got n={n}, draws={draws}, level={level}"
        )
    generator = np.random.default_rng(seed)
    values = np.array([statistic(generator.integers(0, n, n)) for _ in range(draws)], dtype=np.float64)
    return _middle(values, level, about)


def _middle(values: np.ndarray, level: float, about: float | None) -> tuple[float, float]:
    low, high = np.quantile(values, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    # The width of the draws is kept; only their centre moves, since repeats bias that.
    shift = 0.0 if about is None else about - values.mean()
    return float(low + shift), float(high + shift)


def two_sample_interval(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    n: int,
    m: int,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    about: float | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap over the clips of two sets, each resampled by itself.

    Args:
        statistic: maps two integer index arrays [n] and [m] to one number.
        about: where given, the draws are shifted so that their mean lies there. For statistics that repeated clips
            inflate (Frechet distance, FAD-infinity) the plain interval lies wholly above the value (our definition).

    Raises:
        UserError: n or m < 2, draws < 1 or level outside (0, 1).
    """
    if min(n, m) < 2 or draws < 1 or not 0.0 < level < 1.0:
        raise UserError(
            f"bootstrap needs 2 clips in each set, draws >= 1 and 0 < level < 1; got {n} and {m}, {draws}, {level}"
        )
    generator = np.random.default_rng(seed)
    # Both sets are drawn from one generator, in this order: another order would be another interval.
    values = np.array(
        [statistic(generator.integers(0, n, n), generator.integers(0, m, m)) for _ in range(draws)], dtype=np.float64
    )
    return _middle(values, level, about)


def in_fixed_order(embeddings: np.ndarray) -> np.ndarray:
    """Rows [N, E] in lexicographic order: what is drawn by index then depends on the clips, not on their order."""
    # lexsort's last key counts most, so that the columns are turned around.
    return embeddings[np.lexsort(embeddings.T[::-1])]
