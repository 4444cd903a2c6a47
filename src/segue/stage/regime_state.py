"""State and readings of the regime: frozen data, and the names that logs give them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

SIGNALS = (
    "discrepancy",
    "condition-gain",
    "level",
    "slope-over-peak",
    "validation",
    "gradient-cosine",
    "time",
    "constant",
)


@dataclass(frozen=True)
class RegimeState:
    """Everything that is kept between probes: numbers, exact through JSON.

    Attributes:
        examples_seen: n of the last update.
        history: (n, value, values by probe time) of the probes that the next line may need: those of the last window,
            and never fewer than a line must have.
        reference: median of the first three values after burn-in, or the value at n = 0.
        reference_by_time: the same for the value of each probe time.
        low: running minimum of the local mean of the value.
        high: running maximum of the local mean of the value ("condition-gain").
        peak: steepest descent per example so far ("slope-over-peak").
        promising: consecutive probes at which the improvement exceeded the noise.
        onset_at: n at which progress was detected.
        missing: consecutive probes without a finite value.
        fallback: r follows n / N, because the signal showed no progress.
        unconfirmed: r began at 1, because conditions were followed at n = 0, and later lines may still take it back.
        r, r_m, r_s: the regime; its running maximum; and the one that rises with r but falls slowly.
    """

    examples_seen: int = 0
    history: tuple[tuple[int, float, tuple[float, ...]], ...] = ()
    reference: float | None = None
    reference_by_time: tuple[float, ...] = ()
    low: float | None = None
    high: float = 0.0
    peak: float = 0.0
    promising: int = 0
    onset_at: int | None = None
    missing: int = 0
    fallback: bool = False
    unconfirmed: bool = False
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
    """The result of one update.

    Attributes:
        regime: r.
        regime_monotone: r_m, running maximum of r; drives the alignment.
        regime_slow: r_s, rises with r and falls slowly; drives the timestep distribution.
        slope: d value / d ln n of the last line, None before there is one.
        signal: name of the signal in force, e.g. "level" or "time (fallback)".
        reason: the reading as a sentence.
    """

    regime: float
    regime_monotone: float
    regime_slow: float
    slope: float | None
    signal: str
    reason: str


def signal_name(signal: str) -> str:
    """The quantity that a regime signal measures, as logs name it."""
    names = {"validation": "validation loss", "gradient-cosine": "gradient cosine", "condition-gain": "condition gain"}
    return names.get(signal, "discrepancy")


def stage_name(r: float) -> str:
    """The stage of the run at a regime r, as logs name it."""
    return "semantic stage" if r < 1 / 3 else "transition" if r < 2 / 3 else "refinement stage"


def percent(share: float) -> str:
    """A share as logs write it: 0.25 -> "25 %"."""
    return f"{100 * share:.0f} %"
