"""The regime variable r in [0, 1]: 0 = semantic acquisition, 1 = refinement (METHOD section 2 in docs/method.md).

    state = start_regime()
    state, reading = update_regime(config, state, examples_seen=n, total_examples=N, value=discrepancy)   # each probe

Our definition throughout: the abstract of arXiv 2605.04547 names a progress-based regime variable "derived from the
training-time slope of an SSL-space discrepancy", and gives no equation.

Everything that has a time scale is measured in doublings of n, never in probes: the fit's window is one doubling, the
half-life of the average and the largest move are per doubling. The same curve probed 50 or 200 times, evenly or
log-spaced, gives the same r; a limit of 0.04 a probe, right for 200 even probes, would let 50 log-spaced probes of a
run never finish the transition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, median

from segue.stage.slope import Slope, log_slope
from segue.types import UserError

SIGNALS = ("discrepancy", "level", "slope-over-peak", "validation", "gradient-cosine", "time", "constant")
FALLBACKS = ("time", "none")
REFERENCES = ("burn-in", "start")
_NAMES = {
    "discrepancy": "discrepancy",
    "level": "discrepancy",
    "slope-over-peak": "discrepancy",
    "validation": "validation loss",
    "gradient-cosine": "gradient cosine",
}
_REFERENCE_POINTS = 3  # the reference is their median, so that one odd probe does not set it
_MISSING = 3  # probes without a finite value, in a row, after which the reading says that r is held
_ROUNDING = 1e-12  # relative: a change smaller than this is float64 noise, on curves without any noise of their own


@dataclass(frozen=True)
class RegimeConfig:
    """How r is read. Our constants; docs/method.md says what each was tuned on.

    Attributes:
        signal: what the value is: `discrepancy` (SSL-space), `validation` (loss), both through the scale-free
            estimator; `level` (where the discrepancy stands between `level_open` and `level_closed`: no slope, and no
            N); `slope-over-peak` (the plain estimator on the discrepancy: slope per example over the steepest
            so far); `gradient-cosine` (between the gradients of alignment and denoising, after HASTE, arXiv
            2505.16792); `time` (r = n / N); `constant`.
        constant: r of signal `constant`.
        kappa: r = 1 - kappa (gain expected of the next doubling) / (gain so far): at 4, r = 0.5 when an eighth of the
            gain so far is still to be expected.
        reference: where the gain so far is counted from. "burn-in": the first probes after it, METHOD's way; on a power
            law r is then a function of n / N alone. "start": the untrained model's probe at n = 0, so that r says where
            a run stands whatever length was planned; kappa must then be larger, as the whole first fall counts.
        level_open, level_closed: of the signal `level`, the discrepancies at which r* is 0 and 1; between them it goes
            by ln D, so that on a power law each doubling of n moves it alike. They are the demo set's (docs/method.md):
            another teacher or other sounds want their own.
        window: rho, the line is fitted over [n / rho, n].
        min_points: fewest points of a line.
        burn_in: share of N whose probes are not used (the end of the learning-rate warm-up, if that is later).
        confidence: standard errors added to the slope, so that noise reads as "still learning".
        smoothing: half-life of the moving average of r, in doublings of n.
        max_move: the most that r moves in one doubling of n. The fit renews itself in one doubling, so r cannot
            cross its range faster than its evidence is replaced; no curve that we fitted needs more.
        max_fall: the most that r_s falls in one doubling of n.
        onset: residual standard deviations by which the gain must stand out before r may leave 0.
        onset_probes: on how many consecutive probes.
        rise: residual standard deviations above its running minimum at which r is held.
        fallback_at: share of N by which progress must have been detected.
        fallback: `time` (r = n / N from there, until progress is detected) or `none` (r stays 0).
        guard: force r >= clip((n / N - 0.5) / 0.3, 0, 1), as an arm; a constant regime is read by nobody.
    """

    signal: str = "discrepancy"
    constant: float = 0.0
    kappa: float = 4.0
    reference: str = "burn-in"
    window: float = 2.0
    min_points: int = 8
    burn_in: float = 0.02
    confidence: float = 1.64
    smoothing: float = 0.1
    max_move: float = 1.0
    max_fall: float = 0.5
    onset: float = 2.3
    onset_probes: int = 3
    rise: float = 2.0
    fallback_at: float = 0.3
    fallback: str = "time"
    guard: bool = False
    level_open: float = field(default=0.1, metadata={"later": True})  # configs from before them read as they were
    level_closed: float = field(default=0.05, metadata={"later": True})

    def __post_init__(self) -> None:
        _one_of("signal", self.signal, SIGNALS)
        _one_of("fallback", self.fallback, FALLBACKS)
        _one_of("reference", self.reference, REFERENCES)
        for name in ("constant", "burn_in", "fallback_at"):
            _check(name, getattr(self, name), 0.0 <= getattr(self, name) <= 1.0, "give a number from 0 to 1")
        for name in ("kappa", "smoothing", "max_move"):
            _check(name, getattr(self, name), 0.0 < getattr(self, name) < math.inf, "give a positive number")
        for name in ("confidence", "max_fall", "onset", "rise"):
            _check(name, getattr(self, name), 0.0 <= getattr(self, name) < math.inf, "give a number of at least 0")
        _check("window", self.window, 1.0 < self.window < math.inf, "give a ratio above 1")
        _check("level_closed", self.level_closed, self.level_closed > 0, "give a positive number")
        _check(
            "level_open",
            self.level_open,
            self.level_closed < self.level_open < math.inf,
            "give more than regime.level_closed",
        )
        unread = self.guard and self.signal == "constant"
        _check("guard", "true", not unread, "it moves no constant regime: give a signal")
        _check("min_points", self.min_points, self.min_points >= 3, "a line needs at least 3 points")
        _check("onset_probes", self.onset_probes, self.onset_probes >= 1, "give at least 1")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"regime.{name} is {value!r}; choose one of {', '.join(choices)}")


def _check(name: str, value: object, holds: bool, mend: str) -> None:
    if not holds:
        raise UserError(f"regime.{name} is {value}; {mend}")


@dataclass(frozen=True)
class RegimeState:
    """All that the estimator remembers: plain numbers, exact through JSON.

    Attributes:
        examples_seen: n of the last update.
        history: (n, value, values by probe time) of the probes that the next line may still need: those of the last
            window, never fewer than the fewest points of a line.
        reference: D_ref, median of the first three values after burn-in, or the value at n = 0.
        reference_by_time: the same of each probe time's own value.
        low: running minimum of the local mean of the value.
        peak: steepest descent per example so far (`slope-over-peak`).
        promising: consecutive probes on which the gain stood out of the noise.
        onset_at: n at which progress was detected.
        missing: consecutive probes without a finite value.
        fallback: the time ramp stands in for a signal that shows no progress.
        r, r_m, r_s: the regime; its running maximum; and the one that rises with r but falls slowly.
    """

    examples_seen: int = 0
    history: tuple[tuple[int, float, tuple[float, ...]], ...] = ()
    reference: float | None = None
    reference_by_time: tuple[float, ...] = ()
    low: float | None = None
    peak: float = 0.0
    promising: int = 0
    onset_at: int | None = None
    missing: int = 0
    fallback: bool = False
    r: float = 0.0
    r_m: float = 0.0
    r_s: float = 0.0

    def to_json(self) -> dict:
        """The state as plain JSON."""
        return {**asdict(self), "history": [[n, value, list(by_time)] for n, value, by_time in self.history]}

    @classmethod
    def from_json(cls, data: dict) -> RegimeState:
        """The inverse of `to_json`."""
        history = tuple((n, value, tuple(by_time)) for n, value, by_time in data["history"])
        return cls(**{**data, "history": history, "reference_by_time": tuple(data["reference_by_time"])})


@dataclass(frozen=True)
class RegimeReading:
    """What one update found.

    Attributes:
        regime: r.
        regime_monotone: r_m, running maximum of r; drives guidance.
        regime_slow: r_s, rises with r and falls slowly; drives the timestep law.
        slope: d value / d ln n of the last line, None before there is one.
        signal: name of the signal in force, e.g. "discrepancy" or "time (fallback)".
        reason: the reading in words.
    """

    regime: float
    regime_monotone: float
    regime_slow: float
    slope: float | None
    signal: str
    reason: str


def start_regime() -> RegimeState:
    """The state of a run that has not begun: r = 0."""
    return RegimeState()


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
) -> tuple[RegimeState, RegimeReading]:
    """One probe: the next state and its reading. Pure; every rank that passes the same numbers gets the same answer.

    A value that is missing or not finite is skipped. r is held when the value stands above its running minimum (a rise
    is never convergence), and from the start of the learning-rate decay, which moves any curve by itself. Neither
    concerns the time ramp, as signal or as fallback.

    Args:
        config: how r is read.
        state: what the previous call returned.
        examples_seen: n, over all ranks.
        total_examples: N.
        value: of the signal, already reduced over ranks; `time` and `constant` need none.
        by_time: the discrepancy of each probe time, for `remaining_by_time`.
        warmup_end: n at which the learning-rate warm-up ends.
        held: the learning-rate decay has begun.

    Raises:
        ValueError: n went back, N is not positive, or the number of probe times changed.
    """
    if total_examples <= 0:
        raise ValueError(f"total_examples is {total_examples}; it must be positive")
    if examples_seen < state.examples_seen:
        raise ValueError(f"examples_seen went back from {state.examples_seen} to {examples_seen}")
    n, share = examples_seen, min(1.0, examples_seen / total_examples)
    doublings = math.log2(n / state.examples_seen) if state.examples_seen > 0 else 0.0
    line = None
    if config.signal == "constant":
        r, signal, reason = config.constant, "constant", f"regime fixed (r {config.constant:.2f})"
        r_s = r
    elif config.signal == "time":
        r, signal, reason = share, "time", f"following the time ramp (r {share:.2f})"
        r_s = r
    else:
        burn_in_end = max(config.burn_in * total_examples, warmup_end)
        state = _record(config, state, n, value, tuple(by_time), n >= burn_in_end)
        line = log_slope([p[0] for p in state.history], [p[1] for p in state.history], config.window, config.min_points)
        state, target, words = _estimate(config, state, line, n, burn_in_end)
        lost = state.onset_at is None and share >= config.fallback_at
        state = replace(state, fallback=lost and config.fallback == "time")
        signal = config.signal
        if state.fallback:
            # The ramp has no noise to average: r moves to it and then is n / N exactly.
            r, signal = _approach(state.r, share, config.max_move * doublings), "time (fallback)"
            words = f"no gain by {_percent(config.fallback_at)} of the run: following the time ramp"
        elif held:
            r, words = state.r, "holding: the learning-rate decay has begun"
        elif target is None:
            r = state.r
        else:
            average = state.r + (target - state.r) * (1 - 0.5 ** (doublings / config.smoothing))
            r = _approach(state.r, average, config.max_move * doublings)
        r_s = max(r, state.r_s - config.max_fall * doublings)
        stage = "" if words.startswith(("holding", "no gain by")) else f"{stage_name(r)}: "
        reason = f"{stage}{words} (r {r:.2f})"
    if config.guard and (forced := min(1.0, max(0.0, (share - 0.5) / 0.3))) > r:
        r, r_s, reason = forced, max(r_s, forced), f"forced by the budget guard (r {forced:.2f})"
    state = replace(state, examples_seen=n, r=r, r_m=max(state.r_m, r), r_s=r_s)
    return state, RegimeReading(r, state.r_m, r_s, None if line is None else line.slope, signal, reason)


def remaining_by_time(
    config: RegimeConfig, state: RegimeState, times: Sequence[float]
) -> tuple[tuple[float, float], ...]:
    """What each probe time has still to gain: (t, remaining in [0, 1]), from the time's own curve. Our definition.

    remaining = min(1, kappa g+ ln 2 / G), 1 - r* of that curve. A time whose gain does not stand out of the noise has
    either not begun or was done before the reference was taken (low noise); its level tells which: remaining is the
    level over the largest reference of any time. Everything remains before progress is detected at all.

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
        line = log_slope(examples, [by[k] for _, _, by in state.history], config.window, config.min_points)
        reference = state.reference_by_time[k]
        if line is None:
            remaining = 1.0
        elif _stands_out(config, reference, line):
            remaining = _expected(config, line, reference - line.fitted)
        else:
            remaining = line.fitted / largest if largest > 0 else 1.0
        out.append((float(t), min(1.0, max(0.0, remaining))))
    return tuple(out)


def _record(
    config: RegimeConfig, state: RegimeState, n: int, value: float | None, by_time: tuple[float, ...], counts: bool
) -> RegimeState:
    """The state with this probe in its history, older points than the next line needs dropped, the reference set."""
    if value is None or not all(map(math.isfinite, (value, *by_time))):
        return replace(state, missing=state.missing + 1)
    state = replace(state, missing=0)
    if n == 0 and config.reference == "start":
        return replace(state, reference=float(value), reference_by_time=tuple(map(float, by_time)))
    if not counts or n <= 0 or (state.history and state.history[-1][0] == n):
        return state
    if state.history and len(state.history[-1][2]) != len(by_time):
        raise ValueError(f"{len(by_time)} probe times after {len(state.history[-1][2])}")
    history = (*state.history, (n, float(value), tuple(map(float, by_time))))
    keep = max(config.min_points, sum(point[0] >= n / config.window for point in history))
    state = replace(state, history=history[-keep:])
    if state.reference is None and len(history) == _REFERENCE_POINTS:
        columns = zip(*(by for _, _, by in history))
        state = replace(
            state,
            reference=median(point[1] for point in history),
            reference_by_time=tuple(median(column) for column in columns),
        )
    return state


def _estimate(
    config: RegimeConfig, state: RegimeState, line: Slope | None, n: int, burn_in_end: float
) -> tuple[RegimeState, float | None, str]:
    """(state, r*, words) of a measured signal; r* is None where r is to be held."""
    name = _NAMES[config.signal]
    if state.missing >= _MISSING:
        return state, None, f"holding: the {name} was not finite on {state.missing} probes in a row"
    if state.missing:
        return state, None, f"the {name} was not finite on this probe, which is skipped"
    if n < burn_in_end:
        return state, None, f"burn-in until {math.ceil(burn_in_end):,} examples"
    if line is None:
        return state, None, f"{len(state.history)} of the {config.min_points} probes that a slope needs"
    others = {"level": _level, "slope-over-peak": _slope_over_peak, "gradient-cosine": _gradient_cosine}
    return others.get(config.signal, _scale_free)(config, state, line, n)


def _scale_free(config: RegimeConfig, state: RegimeState, line: Slope, n: int) -> tuple[RegimeState, float | None, str]:
    """r* = 1 - min(1, kappa g+ ln 2 / G): gain expected of the next doubling over gain so far (METHOD section 2)."""
    # Means, not single probes: the minimum of many noisy probes lies sigmas below the curve, and r would always be
    # held. Not the line's end either: on a convex curve it undershoots, and what follows would look like a rise.
    level = fmean(point[1] for point in state.history[-max(3, line.points // 4) :])
    state = replace(state, low=level if state.low is None else min(state.low, level))
    if state.onset_at is None:
        state = replace(state, promising=state.promising + 1 if _stands_out(config, state.reference, line) else 0)
        if state.promising < config.onset_probes:
            return state, 0.0, f"the {_NAMES[config.signal]} shows no gain above its noise yet"
        state = replace(state, onset_at=n)
    rise = level - state.low
    if rise > max(config.rise * line.residual_sd, _ROUNDING * abs(level)):
        sigmas = f"by {rise / line.residual_sd:.1f} sigma" if line.residual_sd > 0 else "above its minimum"
        return state, None, f"holding: the {_NAMES[config.signal]} rose {sigmas}"
    gain = state.reference - line.fitted
    if gain <= 0:
        return state, None, f"holding: the {_NAMES[config.signal]} is back at its reference"
    expected = _expected(config, line, gain)
    words = f"the next doubling is expected to bring {_percent(expected / config.kappa)} of the gain so far"
    return state, 1.0 - min(1.0, expected), words


def _level(config: RegimeConfig, state: RegimeState, line: Slope, n: int) -> tuple[RegimeState, float, str]:
    """r* = ln(D_open / D) / ln(D_open / D_closed), clipped: how far along, not how fast. Our definition."""
    state = replace(state, onset_at=n if state.onset_at is None else state.onset_at)
    if line.fitted >= config.level_open:
        return state, 0.0, f"the discrepancy is {line.fitted:.3f}; r leaves 0 below {config.level_open:g}"
    passed = math.log(config.level_open / max(line.fitted, config.level_closed))
    words = f"the discrepancy is {line.fitted:.3f}, on its way from {config.level_open:g} to {config.level_closed:g}"
    return state, passed / math.log(config.level_open / config.level_closed), words


def _slope_over_peak(config: RegimeConfig, state: RegimeState, line: Slope, n: int) -> tuple[RegimeState, float, str]:
    """r* = 1 - (slope per example) / (steepest so far): the plain estimator, without guards, for comparison."""
    descent = max(0.0, -line.slope / n)
    state = replace(state, peak=max(state.peak, descent), onset_at=n if state.onset_at is None else state.onset_at)
    share = descent / state.peak if state.peak > 0 else 1.0
    return state, 1.0 - share, f"the slope is {_percent(share)} of its steepest"


def _gradient_cosine(config: RegimeConfig, state: RegimeState, line: Slope, n: int) -> tuple[RegimeState, float, str]:
    """r* = 1 - cosine / early cosine, 1 from cosine <= 0 on: where alignment begins to oppose denoising (HASTE)."""
    if state.reference <= 0:
        return state, 0.0, "the gradients of alignment and denoising never agreed"
    state = replace(state, onset_at=n if state.onset_at is None else state.onset_at)
    share = min(1.0, max(0.0, line.fitted / state.reference))
    words = f"the gradient cosine is {line.fitted:.3f}, {_percent(share)} of its early value"
    return state, 1.0 - share, words


def _stands_out(config: RegimeConfig, reference: float, line: Slope) -> bool:
    return reference - line.fitted > max(config.onset * line.residual_sd, _ROUNDING * abs(reference))


def _expected(config: RegimeConfig, line: Slope, gain: float) -> float:
    """kappa g+ ln 2 / G, with g+ the upper end of the slope's confidence interval."""
    descent = max(0.0, -line.slope + config.confidence * line.standard_error)
    return config.kappa * descent * math.log(2) / gain


def _approach(r: float, target: float, limit: float) -> float:
    """`target`, or as near to it as a move of `limit` comes."""
    return min(r + limit, max(r - limit, target))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def stage_name(r: float) -> str:
    """The stage that a regime is called by, in lines for people."""
    return "semantic stage" if r < 1 / 3 else "transition" if r < 2 / 3 else "refinement stage"
