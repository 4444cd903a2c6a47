"""What a stage reports: measurements as an Observation's fields, decisions as sentences and as lines of the log."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from segue.stage.condition_gain import GainReading
from segue.stage.decision import Decision, Observation
from segue.stage.discrepancy import Reading
from segue.stage.policy import Policy
from segue.stage.regime_state import stage_name
from segue.types import UserError

# What `measure()` may return: a reading, the value of the policy's signal, or several by the Observation's fields.
Measured = Reading | GainReading | float | dict[str, Any]


def named_measurements(found: Measured, policy: Policy, same: Callable[[list[float]], list[float]]) -> dict[str, Any]:
    """A measurement as fields of an Observation.

    Args:
        found: what `measure()` returned.
        policy: says which signal a single number is.
        same: makes numbers the same on every rank; those of a dictionary already are.

    Raises:
        UserError: a reading at other times than the policy draws from.
    """
    if isinstance(found, dict):
        return found
    signal = {"validation": "validation_loss", "gradient-cosine": "gradient_cosine"}.get(policy.regime.signal)
    if policy.regime.signal == "condition-gain":
        return {"condition_gain": _gain(found, same)}
    if isinstance(found, GainReading):
        raise UserError(
            f"Stage: measure= gives the condition gain, and the policy reads '{policy.regime.signal}'; hint: give a "
            "Discrepancy, or a policy whose regime.signal is 'condition-gain'"
        )
    if signal is not None:
        number = found.value if isinstance(found, Reading) else float(found)
        return {signal: same([number])[0]}
    found = found if isinstance(found, Reading) else Reading(float(found), ())
    times = tuple(t for t, _ in found.by_time)
    # The curves of single times are told apart by their place alone.
    if policy.timesteps.distribution == "per-time" and times != policy.probe.times:
        raise UserError("Stage: 'per-time' distributions need a Discrepancy with times=policy.probe.times")
    # All numbers in one exchange between ranks.
    value, *parts = same([found.value, *(d for _, d in found.by_time)])
    return {"discrepancy": Reading(value, tuple(zip(times, parts)))}


def _gain(found: Reading | GainReading | float, same: Callable[[list[float]], list[float]]) -> GainReading:
    """A condition gain, the same on every rank.

    Raises:
        UserError: a discrepancy, which is another number.
    """
    if isinstance(found, Reading):
        raise UserError(
            "Stage: the policy's signal is 'condition-gain', and measure= gives the discrepancy; hint: give a "
            "ConditionGain, with the same arguments"
        )
    if not isinstance(found, GainReading):
        return GainReading(same([float(found)])[0])
    # What is not known is the same on all ranks; all numbers go in one exchange.
    spread = [x for x in (found.standard_error, found.agreement) if x is not None]
    value, *rest = same([found.value, *(gain for _, gain in found.by_time), *spread])
    by_time = tuple(zip((t for t, _ in found.by_time), rest))
    reduced = iter(rest[len(by_time) :])
    error = None if found.standard_error is None else next(reduced)
    return GainReading(value, by_time, error, None if found.agreement is None else next(reduced))


def decision_text(policy: Policy, decision: Decision) -> tuple[str, str]:
    """A decision's headline, and the whole of it: "semantic stage (r 0.12), alignment 0.41, next probe at 12,800"."""
    # The headline is printed when it changes, so it holds no figure that moves with every probe.
    brief, whole = [], []
    if policy.reads_regime:
        r = decision.regime.regime_slow
        stage = f"{stage_name(r)} by {decision.regime.signal}"
        brief.append(stage)
        whole.append(f"{stage} (r {r:.2f})")
    else:
        brief.append("static")
        whole.append(f"static: {decision.timesteps}")
    if policy.alignment.weight > 0:
        weight = decision.alignment_weight
        brief.append("alignment on" if weight else "alignment off")
        whole.append(f"alignment {weight:.2f}" if weight else "alignment off")
    if policy.structure.enabled:
        brief.append("block term on" if decision.structure_strength else "block term off")
        whole.append(brief[-1])
    if decision.next_probe is not None and policy.reads_regime:
        whole.append(f"next probe at {decision.next_probe:,} examples")
    return ", ".join(brief), ", ".join(whole)


def log_line(observation: Observation, decision: Decision) -> dict:
    """An observation and its decision as plain JSON: a "stage" line of log.jsonl."""
    probe = observation.discrepancy
    reading = decision.regime
    structure = decision.structure
    check = decision.check
    line: dict[str, Any] = {
        "examples_seen": observation.examples_seen,
        "discrepancy": None if probe is None else _number(probe.value),
        "discrepancy_by_t": {} if probe is None else {f"{t:g}": _number(d) for t, d in probe.by_time},
        "slope": reading.slope,
        "regime": reading.regime,
        "regime_monotone": reading.regime_monotone,
        "alignment_weight": decision.alignment_weight,
        "timestep_mean": float(decision.timesteps.mean()),
        "structure_active": structure.active_at is not None,
        "groups": list(structure.labels or structure.previous) or None,
        "signal": reading.signal,
        "headline": decision.headline,
        "reason": f"{decision.reason}; {reading.reason}" + (f"; blocks {check.reason}" if check else ""),
    }
    # What only some policies measure: other signals, and the blocks.
    if (gain := observation.condition_gain) is not None:
        line["condition_gain"] = _number(gain.value)
        line["condition_gain_by_t"] = {f"{t:g}": _number(g) for t, g in gain.by_time}
        line["condition_gain_se"] = None if gain.standard_error is None else _number(gain.standard_error)
        line["agreement"] = gain.agreement
    for name in ("validation_loss", "gradient_cosine"):
        if getattr(observation, name) is not None:
            line[name] = _number(getattr(observation, name))
    if check is not None and observation.structure is not None:
        line["similarity"] = observation.structure.similarity
        line["structure_reason"] = check.reason
        line["blocks"] = {n: getattr(check, n) for n in ("ari", "moved", "contrast", "z", "p", "drift_p")}
    return line


def _number(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return value if math.isfinite(value) else None


class Printer:
    """Prints log lines: the first, and then one whenever r has moved by a tenth or the headline has changed."""

    def __init__(self) -> None:
        self._printed: tuple | None = None

    def __call__(self, line: dict) -> None:
        printed = (line["headline"], round(line["regime"], 1))
        if printed != self._printed:
            print(f"{line['examples_seen']:,} examples: {line['reason']}")
        self._printed = printed
