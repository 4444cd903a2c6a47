"""What the curves of a run say, in words: whether it is done, overfits, still improves, and follows its conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from segue.report.curves import points

STILL = 0.01  # of the loss: less change than this over the last third is none
STILL_GAIN = 0.05  # of the gain's highest value: as above
LEAST = 6  # measurements, two in each third: fewer say nothing


@dataclass(frozen=True)
class Finding:
    """One sentence; `warns` where it asks for something to be done."""

    text: str
    warns: bool = False


def verdict(events: Sequence[dict], total: int | None = None) -> list[Finding]:
    """Findings from the lines of a run's log, the most important one first. All rules are our definitions.

    Args:
        events: lines of log.jsonl.
        total: examples that the run was planned for, where known.
    """
    seen = max((event["examples_seen"] for event in events), default=0)
    found = [_loss(events), _gain(events), _faults(events)]
    if total and 0 < seen < total:
        found.append(Finding(f"not finished: {seen:,} of {total:,} examples; segue train --resume goes on"))
    return sorted((f for f in found if f is not None), key=lambda f: not f.warns)


def _loss(events: Sequence[dict]) -> Finding | None:
    """Overfitting where training said so and the loss is still above its least; else how the last third went."""
    _, y = points(events, "validation", "loss")
    y = _finite(y)
    turns = [e["since"] for e in events if e.get("event") == "overfitting" and isinstance(e.get("since"), int)]
    if turns and y and y[-1] > (1 + STILL) * min(y):
        return Finding(
            f"held-out loss has risen since {turns[-1]:,} examples: overfitting; end there, add sounds, or take a "
            "lower learning rate",
            warns=True,
        )
    if len(y) < LEAST or y[0] <= 0:
        return None
    third = len(y) // 3
    change = min(y[-third:]) / min(y[:-third]) - 1
    if change < -STILL:
        return Finding(f"held-out loss still falls ({-change:.1%} over the last third): a longer run may improve it")
    return Finding(f"held-out loss stands still ({change:+.1%} over the last third)")


def _gain(events: Sequence[dict]) -> Finding | None:
    """Whether the condition gain, which says how much a condition changes the prediction, still rises."""
    y = _finite(points(events, "stage", "condition_gain")[1])
    if len(y) < LEAST:
        return None
    third = len(y) // 3
    top = max(y)
    if top <= 0:
        return Finding("the condition gain stands at 0: the model does not follow its prompts yet", warns=True)
    rise = (sum(y[-third:]) / third - sum(y[-2 * third : -third]) / third) / top
    if rise > STILL_GAIN:
        return Finding("the condition gain still rises: the model still learns what its prompts mean")
    return Finding("the condition gain stands still: prompts change the sound as much as a third of the run ago")


def _faults(events: Sequence[dict]) -> Finding | None:
    skipped = sum(event.get("event") == "fault" and bool(event.get("skipped")) for event in events)
    return Finding(f"{skipped} faulty steps were skipped", warns=True) if skipped else None


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]
