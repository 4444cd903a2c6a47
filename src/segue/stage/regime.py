"""The regime r in [0, 1]: 0 = the model is still learning what captions mean, 1 = it refines detail (docs/method.md).

    state = RegimeState()
    state, reading = update_regime(config, state, examples_seen=n, total_examples=N, value=discrepancy)   # each probe

At each probe the last values of a signal give a target r*, and r follows it, smoothed and limited in speed. In the
recipe `stage` the signal is "condition-gain": r* is read off the slope of that curve (condition_gain.py).
`RegimeConfig()` itself names "discrepancy", our first signal: the slope of its curve, which is in
variants/slope_regime.py with others. All of it is our definition: the abstract of arXiv 2605.04547 names a
progress-based regime variable and gives no equation.

Everything with a time scale is measured in doublings of n, never in probes: the window of the line, the half-life of
the average, the largest move. The same curve probed 50 or 200 times, evenly or log-spaced, gives the same r.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from segue.stage.regime_state import SIGNALS, RegimeReading, RegimeState, percent, signal_name, stage_name
from segue.stage.slope import Slope, log_slope
from segue.types import UserError

REFERENCES = ("burn-in", "start")
WINDOW = 2.0  # the line is fitted over [n / WINDOW, n]
MIN_POINTS = 8  # fewest points of a line
BURN_IN = 0.02  # share of N whose probes are not used (the end of the warm-up, if that is later)
SMOOTHING = 0.1  # half-life of the moving average of r, in doublings of n
MAX_MOVE = 1.0  # the most that r moves in a doubling of n, in which the line's window is renewed once
MAX_FALL = 0.5  # the most that r_s falls in a doubling of n
FALLBACK_AT = 0.3  # share of N by which progress must be detected; otherwise r follows n / N from there
GAIN_BY = 10_000  # examples that a condition gain is waited for all the same: a run of some hundred shows none yet
_REFERENCE_POINTS = 3  # the reference is their median, so that one odd probe does not set it
_MISSING = 3  # probes without a finite value, in a row, after which the reading says that r is held


@dataclass(frozen=True)
class RegimeConfig:
    """How r is measured. The constants are ours; docs/method.md says what each was tuned on.

    Attributes:
        signal: "level" (where the discrepancy lies between `level_open` and `level_closed`), "condition-gain" (slope of
            that curve: condition_gain.py), "time" (r = n / N), "constant", or one of variants/slope_regime.py:
            "discrepancy" and "validation" (the slope of that curve), "slope-over-peak", "gradient-cosine".
        constant: r of the signal "constant".
        kappa: of the slope: r = 1 - kappa (improvement expected of the next doubling) / (improvement so far).
        reference: where the improvement so far is counted from: "burn-in" (the first probes after it), or "start" (the
            untrained model's probe at n = 0; kappa must then be larger, as the whole first fall counts).
        level_open, level_closed: the discrepancies at which r* is 0 and 1; between them it goes by ln D, so that on a
            power law each doubling of n moves it alike. They are the demo set's: another teacher or other sounds want
            their own (docs/foreign-loops.md says how to find them).
        guard: force r >= clip((n / N - 0.5) / 0.3, 0, 1): a variant that ends in refinement whatever is measured.
    """

    signal: str = "discrepancy"
    constant: float = 0.0
    kappa: float = 4.0
    reference: str = "burn-in"
    guard: bool = False
    level_open: float = field(default=0.1, metadata={"later": True})  # not written at defaults: older hashes hold
    level_closed: float = field(default=0.05, metadata={"later": True})

    def __post_init__(self) -> None:
        for name, choices in (("signal", SIGNALS), ("reference", REFERENCES)):
            value = getattr(self, name)
            _require(name, repr(value), value in choices, f"choose one of {', '.join(choices)}")
        _require("constant", self.constant, 0.0 <= self.constant <= 1.0, "give a number from 0 to 1")
        _require("kappa", self.kappa, 0.0 < self.kappa < math.inf, "give a positive number")
        _require("level_closed", self.level_closed, self.level_closed > 0, "give a positive number")
        above = self.level_closed < self.level_open < math.inf
        _require("level_open", self.level_open, above, "give more than regime.level_closed")
        unread = self.guard and self.signal == "constant"
        _require("guard", "true", not unread, "it moves no constant regime: give a signal")


def _require(name: str, value: object, holds: bool, hint: str) -> None:
    if not holds:
        raise UserError(f"regime.{name} is {value}; {hint}")


# (config, state, line through the last window, n) -> (state, r* or None where r is held, the reason)
Estimate = Callable[[RegimeConfig, RegimeState, Slope, int], tuple[RegimeState, "float | None", str]]


def level(config: RegimeConfig, state: RegimeState, line: Slope, n: int) -> tuple[RegimeState, float, str]:
    """r* = ln(D_open / D) / ln(D_open / D_closed), clipped: how far along, not how fast. Our definition."""
    # A level needs no proof of progress: from the first line on, the time ramp does not take over.
    state = replace(state, onset_at=n if state.onset_at is None else state.onset_at)
    if line.fitted >= config.level_open:
        return state, 0.0, f"the discrepancy is {line.fitted:.3f}; r leaves 0 below {config.level_open:g}"
    passed = math.log(config.level_open / max(line.fitted, config.level_closed))
    reason = f"the discrepancy is {line.fitted:.3f}, on its way from {config.level_open:g} to {config.level_closed:g}"
    return state, passed / math.log(config.level_open / config.level_closed), reason


def update_regime(
    config: RegimeConfig,
    state: RegimeState,
    *,
    examples_seen: int,
    total_examples: int,
    value: float | None = None,
    by_time: Sequence[float] = (),
    warmup_end: int = 0,
    held: bool = False,
    estimate: Estimate = level,
) -> tuple[RegimeState, RegimeReading]:
    """One probe: the next state and its reading. A pure function: ranks that pass the same numbers get the same answer.

    A value that is missing or not finite is skipped. From the start of the learning-rate decay, which moves any curve
    by itself, r is held; the time ramp, as signal or as fallback, goes on.

    Args:
        config: how r is measured.
        state: what the previous call returned.
        examples_seen: n, over all ranks.
        total_examples: N.
        value: of the signal, already reduced over ranks; "time" and "constant" need none.
        by_time: the discrepancy of each probe time, for the per-time distribution.
        warmup_end: n at which the learning-rate warm-up ends.
        held: the learning-rate decay has begun.
        estimate: turns a line into r*; `Policy.estimate` is the one of the policy's signal.

    Raises:
        ValueError: n went back, N is not positive, or the number of probe times changed.
    """
    if total_examples <= 0:
        raise ValueError(f"total_examples is {total_examples}; it must be positive")
    if examples_seen < state.examples_seen:
        raise ValueError(f"examples_seen went back from {state.examples_seen} to {examples_seen}")
    n = examples_seen
    share = min(1.0, n / total_examples)
    doublings = math.log2(n / state.examples_seen) if state.examples_seen > 0 else 0.0
    line, signal = None, config.signal

    # r that needs no measurement.
    if signal == "constant":
        r = r_s = config.constant
        reason = f"regime fixed (r {r:.2f})"
    elif signal == "time":
        r = r_s = share
        reason = f"following the time ramp (r {r:.2f})"
    else:
        # r that is measured: a line through the last probes, the target r* that it gives, and how fast r follows.
        burn_in_end = max(BURN_IN * total_examples, warmup_end)
        state = _record(config, state, n, value, tuple(by_time), n >= burn_in_end)
        line = log_slope([p[0] for p in state.history], [p[1] for p in state.history], WINDOW, MIN_POINTS)
        state, target, why = _estimate(config, state, line, n, burn_in_end, estimate)
        # Asked at every probe: progress that is found late ends the fallback.
        late = share >= FALLBACK_AT and (n >= GAIN_BY or signal != "condition-gain")
        state = replace(state, fallback=state.onset_at is None and late)
        if state.fallback:
            # The ramp has no noise to average: r moves to it and then is n / N exactly.
            r = _approach(state.r, share, MAX_MOVE * doublings)
            signal = "time (fallback)"
            why = f"no gain by {percent(FALLBACK_AT)} of the run: following the time ramp"
        elif held:
            r = state.r
            why = "holding: the learning-rate decay has begun"
        elif target is None:
            r = state.r
        else:
            # Per doubling of n, so that r does not depend on the number of probes (docs/method.md, section 2).
            average = state.r + (target - state.r) * (1 - 0.5 ** (doublings / SMOOTHING))
            r = _approach(state.r, average, MAX_MOVE * doublings)
        r_s = max(r, state.r_s - MAX_FALL * doublings)
        stage = "" if why.startswith(("holding", "no gain by")) else f"{stage_name(r)}: "
        reason = f"{stage}{why} (r {r:.2f})"
    if config.guard and (forced := min(1.0, max(0.0, (share - 0.5) / 0.3))) > r:
        r = forced
        r_s = max(r_s, forced)
        reason = f"forced by the budget guard (r {forced:.2f})"

    # r_m never falls, so that an alignment that has decayed does not come back.
    state = replace(state, examples_seen=n, r=r, r_m=max(state.r_m, r), r_s=r_s)
    return state, RegimeReading(r, state.r_m, r_s, None if line is None else line.slope, signal, reason)


def _record(
    config: RegimeConfig, state: RegimeState, n: int, value: float | None, by_time: tuple[float, ...], counts: bool
) -> RegimeState:
    """The state with this probe in its history, without points that no later line needs, and with the reference set."""
    if value is None or not all(map(math.isfinite, (value, *by_time))):
        return replace(state, missing=state.missing + 1)
    state = replace(state, missing=0)
    # The untrained model's value can be a reference, but no point of a line: ln 0 is infinite.
    if n == 0 and config.reference == "start":
        return replace(state, reference=float(value), reference_by_time=tuple(map(float, by_time)))
    # A second value at the same n is left out: a line needs increasing n.
    if not counts or n <= 0 or (state.history and state.history[-1][0] == n):
        return state
    if state.history and len(state.history[-1][2]) != len(by_time):
        raise ValueError(f"{len(by_time)} probe times after {len(state.history[-1][2])}")
    history = (*state.history, (n, float(value), tuple(map(float, by_time))))
    keep = max(MIN_POINTS, sum(point[0] >= n / WINDOW for point in history))
    state = replace(state, history=history[-keep:])
    if state.reference is None and len(history) == _REFERENCE_POINTS:
        columns = zip(*(by for _, _, by in history))
        by_time = tuple(median(column) for column in columns)
        state = replace(state, reference=median(point[1] for point in history), reference_by_time=by_time)
    return state


def _estimate(
    config: RegimeConfig, state: RegimeState, line: Slope | None, n: int, burn_in_end: float, estimate: Estimate
) -> tuple[RegimeState, float | None, str]:
    """(state, r*, reason) of a measured signal; r* is None where r is to be held."""
    name = signal_name(config.signal)
    if state.missing >= _MISSING:
        return state, None, f"holding: the {name} was not finite on {state.missing} probes in a row"
    if state.missing:
        return state, None, f"the {name} was not finite on this probe, which is skipped"
    if n < burn_in_end:
        return state, None, f"burn-in until {math.ceil(burn_in_end):,} examples"
    if line is None:
        return state, None, f"{len(state.history)} of the {MIN_POINTS} probes that a slope needs"
    return estimate(config, state, line, n)


def _approach(r: float, target: float, limit: float) -> float:
    """`target`, or as near to it as a move of `limit` comes."""
    return min(r + limit, max(r - limit, target))
