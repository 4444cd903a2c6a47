"""From curves of many runs to figures with intervals: final values, areas, examples-to-target, wall-clock.

Intervals come from a crossed bootstrap over seeds and clips (our definition, after Owen 2007): a draw moves the mean
curves of variant and baseline together, by what seeds vary and by what resampled clips vary.

- Seeds. Resampling 3 seeds gives intervals that are far too narrow (Hesterberg 2015, section 3). In its place, the mean
  over n seeds is moved by sum_s z_s (c_s - mean) / sqrt(n (n - 1) q), with z_s standard normal and q a chi^2_{n-1} over
  (n - 1). For a linear figure that is the t interval with n - 1 degrees of freedom, paired over seeds; being a draw of
  whole curves, it serves figures that are not linear (the examples to a target) as well. One seed: clips alone.
- Clips. Prompts and noise are the same in all runs, and replicate b resamples the same clips everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from segue.report.run_curves import Curve, first_reaches
from segue.types import UserError

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class StudyCurves:
    """What one finished run contributes.

    Attributes:
        curves: measure -> curve.
        seconds: of training.
    """

    curves: Mapping[str, Curve]
    seconds: float


@dataclass(frozen=True)
class Figure:
    """A number with its interval; infinity = not reached. `sure` is False where the interval includes `null`."""

    value: float
    interval: tuple[float, float] | None
    null: float | None = None

    @property
    def sure(self) -> bool:
        """True where the interval leaves the null value (0 of a difference, 1 of a ratio) out."""
        if self.interval is None or self.null is None:
            return False
        return not self.interval[0] <= self.null <= self.interval[1]

    def to_json(self) -> dict:
        """Plain JSON; "not reached" for infinity."""
        data: dict = {"value": _plain(self.value)}
        if self.interval is not None:
            data["interval"] = [_plain(x) for x in self.interval]
        if self.null is not None:
            data["includes_null"] = not self.sure
        return data


@dataclass(frozen=True)
class Comparison:
    """One variant against the baseline in one measure, over the seeds that both have.

    Attributes:
        seeds: paired seeds.
        final, final_difference: of the variant at the end; minus the baseline.
        area, area_difference: mean height of the curve over examples (trapezoid); minus the baseline's.
        to_target: examples at which the variant's mean curve first reaches the baseline's final mean, over those of
            the baseline.
        at_first_evaluation: the variant was there already when first evaluated: `to_target` is an upper bound.
        to_target_by_seed: the same ratio for each pair of runs; infinity = not reached.
        seconds_to_target: `to_target` times the ratio of seconds per example.
    """

    seeds: tuple[int, ...]
    final: Figure
    final_difference: Figure
    area: Figure
    area_difference: Figure
    to_target: Figure
    at_first_evaluation: bool
    to_target_by_seed: tuple[float, ...]
    seconds_to_target: float

    def to_json(self) -> dict:
        """Plain JSON."""
        figures = ("final", "final_difference", "area", "area_difference", "to_target")
        return {"seeds": list(self.seeds)} | {name: getattr(self, name).to_json() for name in figures} | {
            "at_first_evaluation": self.at_first_evaluation,
            "to_target_by_seed": [_plain(x) for x in self.to_target_by_seed],
            "seconds_to_target": _plain(self.seconds_to_target),
        }  # fmt: skip


@dataclass(frozen=True)
class Band:
    """A mean curve over seeds with its interval at each evaluation."""

    examples: np.ndarray
    mean: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(0))


def mean_height(examples: Sequence[float], values: Sequence[float]) -> float:
    """Area under a curve over its span of examples: the trapezoid rule, divided by the span (one point: its value)."""
    return float(_mean_height(np.asarray(examples, float), np.asarray(values, float)[None])[0])


def compare(
    variant: Mapping[int, StudyCurves],
    baseline: Mapping[int, StudyCurves],
    measure: str,
    *,
    higher: bool,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Comparison | None:
    """A variant against the baseline in one measure; None where no seed has both.

    Args:
        variant, baseline: seed -> curves.
        higher: True where larger values are better.

    Raises:
        UserError: fewer than two draws.
    """
    if draws < 2 or not 0 < level < 1:
        raise UserError(f"a bootstrap needs at least 2 draws and a level in (0, 1); got {draws} and {level}")
    seeds = tuple(
        s for s in variant if s in baseline and measure in variant[s].curves and measure in baseline[s].curves
    )
    if not seeds:
        return None
    # Paired by seed: [draw, side, x], where side 0 is the variant and 1 the baseline.
    # Both on common examples, since their evaluations may stand at other places.
    x, points, clips = _aligned([[side[s].curves[measure] for s in seeds] for side in (variant, baseline)])
    # Variant and baseline move together in every draw: differences keep their pairing.
    drawn = _draws(points, clips, draws, seed)
    mean = points.mean(axis=1)
    certain = len(seeds) == 1 and clips is None  # nothing to draw from: no interval

    def figure(statistic, null: float | None = None) -> Figure:
        value = float(statistic(mean[None])[0])
        return Figure(value, None if certain else _interval(statistic(drawn), level), null)

    def ratio(curves: np.ndarray) -> np.ndarray:
        return _to_target(x, curves if higher else -curves)

    # Seeds one by one, and the mean ratio of wall clocks.
    ratios = [float(ratio(points[:, [k]].transpose(1, 0, 2))[0]) for k in range(len(seeds))]
    rate = np.mean([variant[s].seconds / baseline[s].seconds for s in seeds if baseline[s].seconds > 0] or [math.nan])
    best = mean if higher else -mean
    to_target = figure(ratio, 1.0)
    return Comparison(
        seeds=seeds,
        final=figure(lambda c: c[:, 0, -1]),
        final_difference=figure(lambda c: c[:, 0, -1] - c[:, 1, -1], 0.0),
        area=figure(lambda c: _mean_height(x, c[:, 0])),
        area_difference=figure(lambda c: _mean_height(x, c[:, 0]) - _mean_height(x, c[:, 1]), 0.0),
        to_target=to_target,
        # Reached before it was first looked at: how soon, nobody measured.
        at_first_evaluation=bool(best[0, 0] >= best[1, -1]),
        to_target_by_seed=tuple(ratios),
        seconds_to_target=to_target.value * float(rate),
    )


def wall_clock(
    variant: Mapping[int, StudyCurves], baseline: Mapping[int, StudyCurves], level: float = LEVEL
) -> Figure | None:
    """Training seconds over the baseline's of the same seed: geometric mean and t interval of the log ratio."""
    # Ratios multiply: their mean and interval are taken in the logarithm.
    logs = [
        math.log(variant[s].seconds / baseline[s].seconds) for s in variant if s in baseline and baseline[s].seconds > 0
    ]
    if not logs:
        return None
    mean = float(np.mean(logs))
    if len(logs) == 1:
        return Figure(math.exp(mean), None, 1.0)
    from scipy.stats import t as student

    # Few seeds: Student's t, as for the curves.
    half = float(student.ppf((1 + level) / 2, len(logs) - 1)) * float(np.std(logs, ddof=1)) / math.sqrt(len(logs))
    return Figure(math.exp(mean), (math.exp(mean - half), math.exp(mean + half)), 1.0)


def band(runs: Mapping[int, StudyCurves], measure: str, *, level: float = LEVEL, seed: int = 0) -> Band | None:
    """Mean curve of a variant over its seeds, with intervals; None where no run has the measure."""
    having = [run for run in runs.values() if measure in run.curves]
    if not having:
        return None
    x, points, clips = _aligned([[run.curves[measure] for run in having]])
    mean = points.mean(axis=1)[0]
    # The run's seconds spread evenly over its examples.
    total = max(float(run.curves[measure].examples[-1]) for run in having)
    seconds = x / total * float(np.mean([run.seconds for run in having]))
    if len(having) == 1 and clips is None:
        return Band(x, mean, None, None, seconds)
    low, high = np.quantile(_draws(points, clips, DRAWS, seed)[:, 0], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Band(x, mean, low, high, seconds)


def _aligned(sides: list[list[Curve]]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Curves [A][S] on common examples: x [M], values [A, S, M], deviations of clip replicates [R, A, M] or None.

    The common examples are those of the curve with the fewest points (of several, the longest); the others are
    interpolated, and a run that ended earlier stays at its final value.
    """
    every = [curve for side in sides for curve in side]
    x = min((curve.examples for curve in every), key=lambda x: (len(x), -x[-1])).astype(float)
    points = np.stack([[np.interp(x, c.examples, c.values) for c in side] for side in sides])
    # Losses have no replicates: then seeds alone vary.
    if any(curve.replicates is None for curve in every):
        return x, points, None
    # Deviations from the replicates' own mean: a Frechet distance is biased on resampled clips, its spread is not.
    clips = []
    for side in sides:
        moved = np.mean([[np.interp(x, c.examples, row) for row in c.replicates] for c in side], axis=0)
        clips.append(moved - moved.mean(axis=0))
    return x, points, np.stack(clips, axis=1)


def _draws(points: np.ndarray, clips: np.ndarray | None, draws: int, seed: int) -> np.ndarray:
    """Mean curves [draws, A, M] as seeds and clips would vary them. points [A, S, M], clips [R, A, M] or None."""
    generator = np.random.default_rng(seed)
    n = points.shape[1]
    # All draws begin at the mean curves.
    drawn = np.repeat(points.mean(axis=1)[None], draws, axis=0)
    if n > 1:
        # One z for each seed, for all points and both sides: a draw moves whole curves.
        z = generator.standard_normal((draws, n))
        spread = np.sqrt(n * generator.chisquare(n - 1, draws))  # sqrt(n (n - 1) q)
        drawn += np.einsum("ds,asm->dam", z / spread[:, None], points - points.mean(axis=1, keepdims=True))
    if clips is not None:
        # One replicate for a draw: variant and baseline meet the same clips.
        drawn += clips[generator.integers(0, len(clips), draws)]
    return drawn


def _to_target(x: np.ndarray, curves: np.ndarray) -> np.ndarray:
    """[D, 2, M] (variant, baseline; larger is better) -> [D] ratios of examples to the baseline's final value."""
    target = curves[:, 1, -1]
    return first_reaches(x, curves[:, 0], target) / first_reaches(x, curves[:, 1], target)


def _mean_height(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[D, M] -> [D]."""
    if len(x) == 1:
        return y[:, 0]
    return ((y[:, 1:] + y[:, :-1]) / 2 * np.diff(x)).sum(axis=1) / (x[-1] - x[0])


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    # Without interpolation between order statistics: between two infinities it gives NaN.
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return float(low), float(high)


def _plain(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return "not reached" if math.isinf(value) else float(value)
