"""Other estimates of the regime: the slope of a curve, its slope over the steepest so far, the cosine of gradients.

The recipe `stage` uses the condition gain; these are compared with it (docs/method.md, docs/results.md). All
are our definitions, except where a docstring cites a source.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from segue.stage import regime
from segue.stage.regime import RegimeConfig
from segue.stage.regime_state import RegimeState, percent, signal_name
from segue.stage.slope import Slope, log_slope

CONFIDENCE = 1.64  # standard errors added to the slope, so that noise reads as "still learning"
ONSET = 2.3  # residual standard deviations that the improvement must exceed before r may leave 0
ONSET_PROBES = 3  # on how many consecutive probes
RISE = 2.0  # residual standard deviations above its running minimum at which r is held: a rise is never convergence
_ROUNDING = 1e-12  # relative: a change smaller than this is float64 noise, on curves without any noise of their own


def scale_free(config: RegimeConfig, state: RegimeState, line: Slope, n: int) -> tuple[RegimeState, float | None, str]:
    """r* = 1 - min(1, kappa g+ ln 2 / G): improvement expected of the next doubling over the improvement so far.

    At kappa 4, r = 0.5 when an eighth of the improvement so far is still to be expected.
    """
    name = signal_name(config.signal)
    reference = _reference(state)
    # The mean of some probes, not one: the minimum of many noisy probes lies sigmas below the curve, and r would always
    # be held. Nor the end of the line: on a convex curve it undershoots, and later points would look like a rise.
    level = fmean(point[1] for point in state.history[-max(3, line.points // 4) :])
    low = level if state.low is None else min(state.low, level)
    state = replace(state, low=low)
    # Until progress stands out of the noise r* is 0; once found, it is not asked for again.
    if state.onset_at is None:
        state = replace(state, promising=state.promising + 1 if _stands_out(reference, line) else 0)
        if state.promising < ONSET_PROBES:
            return state, 0.0, f"the {name} shows no gain above its noise yet"
        state = replace(state, onset_at=n)
    rise = level - low
    if rise > max(RISE * line.residual_sd, _ROUNDING * abs(level)):
        sigmas = f"by {rise / line.residual_sd:.1f} sigma" if line.residual_sd > 0 else "above its minimum"
        return state, None, f"holding: the {name} rose {sigmas}"
    # r* itself (docs/method.md, section 2).
    gain = reference - line.fitted
    if gain <= 0:
        return state, None, f"holding: the {name} is back at its reference"
    expected = _expected(config, line, gain)
    words = f"the next doubling is expected to bring {percent(expected / config.kappa)} of the gain so far"
    return state, 1.0 - min(1.0, expected), words


def slope_over_peak(config: RegimeConfig, state: RegimeState, line: Slope, n: int) -> tuple[RegimeState, float, str]:
    """r* = 1 - (slope per example) / (steepest so far): the plain estimator, without guards, for comparison."""
    descent = max(0.0, -line.slope / n)
    state = replace(state, peak=max(state.peak, descent), onset_at=n if state.onset_at is None else state.onset_at)
    share = descent / state.peak if state.peak > 0 else 1.0
    return state, 1.0 - share, f"the slope is {percent(share)} of its steepest"


def gradient_cosine(config: RegimeConfig, state: RegimeState, line: Slope, n: int) -> tuple[RegimeState, float, str]:
    """r* = 1 - cosine / early cosine, 1 from cosine <= 0 on: where alignment begins to oppose denoising.

    After HASTE, arXiv 2505.16792.
    """
    reference = _reference(state)
    if reference <= 0:
        return state, 0.0, "the gradients of alignment and denoising never agreed"
    state = replace(state, onset_at=n if state.onset_at is None else state.onset_at)
    share = min(1.0, max(0.0, line.fitted / reference))
    words = f"the gradient cosine is {line.fitted:.3f}, {percent(share)} of its early value"
    return state, 1.0 - share, words


ESTIMATES = {
    "discrepancy": scale_free,
    "validation": scale_free,
    "slope-over-peak": slope_over_peak,
    "gradient-cosine": gradient_cosine,
}


def remaining_by_time(
    config: RegimeConfig, state: RegimeState, times: Sequence[float]
) -> tuple[tuple[float, float], ...]:
    """How far each probe time still has to improve: (t, remaining in [0, 1]), from the curve of that time alone.

    remaining = min(1, kappa g+ ln 2 / G), which is 1 - r* of that curve (our definition). A time whose improvement does
    not exceed the noise either has not begun to improve, or had finished before the reference was taken (low noise).
    Its level tells which: remaining is then the level over the largest reference of any time. Before progress is
    detected at all, remaining is 1.

    Raises:
        ValueError: the number of times differs from what the state holds.
    """
    if state.history and len(state.history[-1][2]) not in (0, len(times)):
        raise ValueError(f"{len(times)} times but {len(state.history[-1][2])} values in each probe")
    if state.onset_at is None or len(state.reference_by_time) != len(times):
        return tuple((float(t), 1.0) for t in times)
    examples = [n for n, _, _ in state.history]
    largest = max(state.reference_by_time)
    out = []
    for k, t in enumerate(times):
        # As `scale_free`, on the curve of one time.
        line = log_slope(examples, [by[k] for _, _, by in state.history], regime.WINDOW, regime.MIN_POINTS)
        reference = state.reference_by_time[k]
        if line is None:
            remaining = 1.0
        elif _stands_out(reference, line):
            remaining = _expected(config, line, reference - line.fitted)
        else:
            # No improvement above the noise: it has not begun, or was over early. The level tells which.
            remaining = line.fitted / largest if largest > 0 else 1.0
        out.append((float(t), min(1.0, max(0.0, remaining))))
    return tuple(out)


def _reference(state: RegimeState) -> float:
    """Where improvement is counted from; it is set before any line has points enough."""
    assert state.reference is not None
    return state.reference


def _stands_out(reference: float, line: Slope) -> bool:
    return reference - line.fitted > max(ONSET * line.residual_sd, _ROUNDING * abs(reference))


def _expected(config: RegimeConfig, line: Slope, gain: float) -> float:
    """kappa g+ ln 2 / G, with g+ the upper end of the slope's confidence interval."""
    descent = max(0.0, -line.slope + CONFIDENCE * line.standard_error)
    return config.kappa * descent * math.log(2) / gain
