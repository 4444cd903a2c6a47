"""What the regime remembers from probe to probe, and what it reads. Plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class RegimeState:
    """All that is remembered between probes: plain numbers, exact through JSON.

    Attributes:
        examples_seen: n of the last update.
        history: (n, value, values by probe time) of the probes that the next line may still need: those of the last
            window, never fewer than the fewest points of a line.
        reference: median of the first three values after burn-in, or the value at n = 0.
        reference_by_time: the same of each probe time's own value.
        low: running minimum of the local mean of the value.
        peak: steepest descent per example so far ("slope-over-peak").
        promising: consecutive probes on which the improvement stood out of the noise.
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
        regime_monotone: r_m, running maximum of r; drives the alignment.
        regime_slow: r_s, rises with r and falls slowly; drives the timestep distribution.
        slope: d value / d ln n of the last line, None before there is one.
        signal: name of the signal in force, e.g. "level" or "time (fallback)".
        reason: the reading in words.
    """

    regime: float
    regime_monotone: float
    regime_slow: float
    slope: float | None
    signal: str
    reason: str
