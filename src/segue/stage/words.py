"""Decisions for people and logs."""

from __future__ import annotations

import math

from segue.stage.decision import Decision, Observation
from segue.stage.policy import Policy
from segue.stage.regime import stage_name


def in_words(policy: Policy, decision: Decision) -> tuple[str, str]:
    """A decision's headline and its whole line: "semantic stage (r 0.12), alignment 0.41, next probe at 12,800"."""
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
    """What was observed and decided, as plain JSON: the keys of a "stage" line of log.jsonl."""
    probe, reading, structure, check = observation.discrepancy, decision.regime, decision.structure, decision.check
    line = {
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
    for name in ("validation_loss", "gradient_cosine"):
        if getattr(observation, name) is not None:
            line[name] = _number(getattr(observation, name))
    if check is not None:
        line["similarity"] = observation.structure.similarity
        line["structure_reason"] = check.reason
        line["blocks"] = {n: getattr(check, n) for n in ("ari", "moved", "contrast", "z", "p", "drift_p")}
    return line


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None


class Printer:
    """Log lines on the terminal: the first, and one for each tenth that r moves or whenever the headline changes."""

    def __init__(self) -> None:
        self._said: tuple | None = None

    def __call__(self, line: dict) -> None:
        said = (line["headline"], round(line["regime"], 1))
        if said != self._said:
            print(f"{line['examples_seen']:,} examples: {line['reason']}")
        self._said = said
