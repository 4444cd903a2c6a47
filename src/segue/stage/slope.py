"""The slope of a training curve against the logarithm of the examples seen (docs/method.md, section 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Slope:
    """A straight line through the end of a curve, value = fitted + slope (ln n - ln n_last).

    Attributes:
        slope: change of the value per unit of ln n.
        standard_error: of the slope.
        fitted: the line's value at the last point.
        residual_sd: standard deviation of the points about the line (m - 2 degrees of freedom).
        points: m, how many points the line goes through.
    """

    slope: float
    standard_error: float
    fitted: float
    residual_sd: float
    points: int


def log_slope(
    examples: Sequence[int], values: Sequence[float], window: float = 2.0, min_points: int = 8
) -> Slope | None:
    """Least-squares line of values on ln n over [n / window, n], n the last point; float64.

    A window of constant ratio covers the same part of a power law wherever it lies, so the estimate depends neither on
    the length of the run nor on the spacing of its probes. A window with fewer than `min_points` points (early, or with
    few probes) is widened to the last `min_points`; it then includes some of the steeper past, which errs towards
    "still learning".

    Args:
        examples: [P] n of each point, positive, increasing.
        values: [P] finite values.
        window: rho > 1, ratio of the last n to the first.
        min_points: fewest points of a line, at least 3.

    Returns:
        The line, or None where there are fewer than `min_points` points.

    Raises:
        ValueError: lengths differ, or n is not positive and increasing.
    """
    if len(examples) != len(values):
        raise ValueError(f"{len(examples)} positions but {len(values)} values")
    if len(examples) < min_points:
        return None
    n, y = np.asarray(examples, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if n[0] <= 0 or (np.diff(n) <= 0).any():
        raise ValueError("examples must be positive and increasing")
    # The window, widened to the last `min_points` points where it holds fewer.
    start = min(int(np.searchsorted(n, n[-1] / window)), len(n) - min_points)
    x, y = np.log(n[start:]), y[start:]
    # The line, about the means: the sums of squares are then of the window's spread, not of ln n itself.
    x_mean, y_mean = x.mean(), y.mean()
    spread = float(((x - x_mean) ** 2).sum())
    slope = float(((x - x_mean) * (y - y_mean)).sum()) / spread
    residual = y - y_mean - slope * (x - x_mean)
    # Two degrees of freedom went into the line. Its slope's standard error is residual_sd / sqrt(spread).
    residual_sd = math.sqrt(float((residual**2).sum()) / (len(x) - 2))
    fitted = float(y_mean + slope * (x[-1] - x_mean))
    return Slope(slope, residual_sd / math.sqrt(spread), fitted, residual_sd, len(x))
