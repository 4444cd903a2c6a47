"""Structure-aware regularisation over transformer blocks (docs/method.md, section 5; our definition).

    state = start_structure()
    if check_due(config, state, n, N):
        measure = measure_structure(config, state, model.blocks)                          # reads the weights
        state, reading = update_structure(config, state, measure, examples_seen=n, total_examples=N, regime_monotone=r)
    strength = structure_strength(config, state, n, N)                                    # 0 until activated
    if strength and step % config.every == 0:                                             # after the optimiser's step
        structure_step(model.blocks, state, strength * config.every * update_norm, config.control)

A measure is plain numbers: one rank may take it and pass it to the others, and all then decide the same.

What to expect: in demo models of 8 blocks the similarity of blocks fell smoothly with their distance in depth. Such a
stack exceeds the null of turned bases with z of 24 to 28, because blocks on one residual stream share directions, yet
its groups are an arbitrary cut of a gradient: against the drift null (`drift_p` of each check, required by
`max_drift_p`) p is 0.8 to 1. No public result shows that the term improves quality.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from segue.process.noise import keyed_generator
from segue.stage.variants.block_groups import (
    adjusted_rand,
    contrast_of,
    drift_contrast,
    find_groups,
    null_contrast,
    similarity,
)
from segue.stage.variants.block_term import CONTROLS, controlled, distances, structure_loss, term_step
from segue.stage.variants.block_weights import BlockWeights, block_weights, signatures
from segue.types import UserError

__all__ = [
    "CONTROLS",
    "StructureConfig",
    "StructureMeasure",
    "StructureReading",
    "StructureState",
    "adjusted_rand",
    "block_weights",
    "check_due",
    "find_groups",
    "measure_structure",
    "null_contrast",
    "signatures",
    "similarity",
    "start_structure",
    "structure_loss",
    "structure_step",
    "structure_strength",
    "update_structure",
]

STABLE_CHECKS = 3  # in a row that must pass
MIN_ARI = 0.9  # least adjusted Rand index against the check before
MIN_Z = 3.0  # least contrast, in deviations of the null of turned bases, clustered anew
MAX_P = 0.02  # largest share of draws of the same null that reach the contrast
DRAWS = 50  # of each null; p cannot be less than 1 / (DRAWS + 1)
MIN_MOVED = 0.01  # least relative movement of the weights since the check before; else stability says nothing
MIN_GROUPS = 2  # of two or more blocks that there must be: one group beside single outliers is none
MIN_REGIME = 0.5  # least r_m at activation
LAST_ACTIVATION = 0.8  # largest n / N at activation
RAMP = 0.05  # share of N over which the term grows to its strength
SEED = 0  # of nulls, sketches and the random control
_SKETCH = 64  # numbers that stand for all the weights; the movement is then read within about 10 %


@dataclass(frozen=True)
class StructureConfig:
    """When block structure counts as found, and what is done then.

    Attributes:
        enabled: whether block weights are measured at all.
        strength: norm of the term's step over the norm of the optimiser's update; 0 measures only.
        control: `groups`; or a control with the same step norm: `random` (groups of equal sizes), `contiguous`
            (thirds), `decay` (shrink the same weights instead), `opposite` (push the groups apart).
        every: steps of the optimiser to one step of the term, whose norm the loop multiplies by the same number.
        first_check: share of N before the first check.
        spacing: ratio of n between checks.
        max_drift_p: largest p against the drift null; 1 = no limit. Six inner blocks can hardly reach 0.02.
        in_proj, out_proj: module names inside a block, separated by commas, where shape and name do not tell.
    """

    enabled: bool = False
    strength: float = 0.0
    control: str = "groups"
    every: int = 4
    first_check: float = 0.02
    spacing: float = 1.25
    max_drift_p: float = 1.0
    in_proj: str = ""
    out_proj: str = ""

    def __post_init__(self) -> None:
        if self.control not in CONTROLS:
            raise UserError(f"structure.control is {self.control!r}; choose one of {', '.join(CONTROLS)}")
        for name in ("first_check", "max_drift_p"):
            _check(name, getattr(self, name), 0.0 <= getattr(self, name) <= 1.0, "give a number from 0 to 1")
        _check("strength", self.strength, 0.0 <= self.strength < math.inf, "give a number of at least 0")
        _check("every", self.every, self.every >= 1, "give at least 1")
        _check("spacing", self.spacing, 1.0 < self.spacing < math.inf, "give a ratio above 1")


def _check(name: str, value: float, holds: bool, hint: str) -> None:
    if not holds:
        raise UserError(f"structure.{name} is {value}; {hint}")


@dataclass(frozen=True)
class StructureState:
    """Everything that is kept between checks: numbers, exact through JSON.

    Attributes:
        checks: number of checks so far.
        last_check: n of the last check.
        passed: number of checks that passed in a row.
        previous: groups found at the last check, -1 = excluded; empty before the first.
        sketch: 64 random projections of the weights at the last check.
        active_at: n of activation; None while the term is off.
        labels: groups in force, frozen at activation; those of the control, where it has its own.
        margin: m, frozen at activation.
    """

    checks: int = 0
    last_check: int = 0
    passed: int = 0
    previous: tuple[int, ...] = ()
    sketch: tuple[float, ...] = ()
    active_at: int | None = None
    labels: tuple[int, ...] = ()
    margin: float = 0.0

    def to_json(self) -> dict:
        """The state as plain JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict) -> StructureState:
        """The inverse of `to_json`."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)


@dataclass(frozen=True)
class StructureMeasure:
    """What a check measures on the weights of L blocks.

    Attributes:
        similarity: [L][L] mean cosine of the input and of the output projections.
        groups: label of each block, -1 = excluded; None where there are fewer than 6 blocks.
        contrast: mean similarity within groups less that between groups.
        z, p: of the contrast against the null of turned bases; None where it was not drawn (once active).
        drift_p: of the contrast against similarities that depend on the distance in depth alone.
        sketch: random projections of the weights.
        labels, margin: what activation would freeze now: the control's labels, and the median squared distance of
            members to the means of their groups.
    """

    similarity: tuple[tuple[float, ...], ...]
    groups: tuple[int, ...] | None
    contrast: float = 0.0
    z: float | None = None
    p: float | None = None
    drift_p: float | None = None
    sketch: tuple[float, ...] = ()
    labels: tuple[int, ...] = ()
    margin: float = 0.0


@dataclass(frozen=True)
class StructureReading:
    """What a check decided.

    Attributes:
        active: whether the term is on.
        groups: groups found at this check.
        ari: adjusted Rand index against the check before; None at the first.
        moved: relative movement of the weights since the check before; None at the first.
        contrast, z, p, drift_p: as measured.
        reason: the state in words: "off: groups not yet stable (ARI 0.71 < 0.9)".
    """

    active: bool
    groups: tuple[int, ...] | None
    ari: float | None
    moved: float | None
    contrast: float
    z: float | None
    p: float | None
    drift_p: float | None
    reason: str


def start_structure() -> StructureState:
    """The state before the first check."""
    return StructureState()


def check_due(config: StructureConfig, state: StructureState, examples_seen: int, total_examples: int) -> bool:
    """Whether n has reached the first check, or `spacing` times the last. Once active, checks go on for the log."""
    due = config.spacing * state.last_check if state.checks else config.first_check * total_examples
    return examples_seen > state.last_check and examples_seen >= due


def measure_structure(config: StructureConfig, state: StructureState, blocks: Sequence[nn.Module]) -> StructureMeasure:
    """Measure the blocks' weights: similarity, groups, nulls, sketch, and what activation would freeze.

    A pure function of weights, config and the number of checks so far. Blocks compute in float32 or wider, wherever
    their weights lie; the nulls are drawn only while the term is off.

    Raises:
        UserError: a block whose projections are not found, or blocks of several widths (see `block_weights`).
    """
    # Signatures of the weights, how alike they are, and the groups that are found in that.
    weights = _weights_of(blocks, config.in_proj, config.out_proj)
    signed = signatures(weights)
    table = similarity(signed)
    groups = find_groups(table)
    rows = tuple(tuple(row) for row in table.tolist())
    sketch = _sketch(weights, SEED)
    if groups is None:
        return StructureMeasure(rows, None, sketch=sketch)
    contrast = contrast_of(table, groups)
    nulls: dict[str, float] = {}
    if state.active_at is None:
        # Groups can be found in anything: how large is the contrast of those found in two kinds of noise?
        # Without the two ends, as in `find_groups`. Draws are keyed by the check: a resumed run has the same.
        most = len(blocks) // 3
        turned = null_contrast(signed[1:-1], most, DRAWS, keyed_generator(SEED, "structure/turned", state.checks))
        drift = drift_contrast(table[1:-1, 1:-1], most, DRAWS, keyed_generator(SEED, "structure/drift", state.checks))
        # A null whose draws are all alike must not divide by 0.
        z = (contrast - turned.mean()) / max(turned.std(ddof=1), 1e-12)
        nulls = {"z": float(z), "p": _share(turned, contrast), "drift_p": _share(drift, contrast)}
    # What activation would freeze. The margin is a median: half of the members lie beyond it, and R acts on those.
    labels = controlled(groups, config.control, SEED)
    spread = [float(d) for d in distances(signed, labels).values()]
    margin = float(np.median(spread)) if spread else 0.0
    return StructureMeasure(rows, groups, contrast, sketch=sketch, labels=labels, margin=margin, **nulls)


def _share(drawn: np.ndarray, value: float) -> float:
    """One-sided p of `value` among draws and itself (Phipson & Smyth 2010); ties within rounding count against it."""
    return float((1 + (drawn >= value - 1e-9).sum()) / (1 + len(drawn)))


def update_structure(
    config: StructureConfig,
    state: StructureState,
    measure: StructureMeasure,
    *,
    examples_seen: int,
    total_examples: int,
    regime_monotone: float,
) -> tuple[StructureState, StructureReading]:
    """The next state and the decision, from numbers alone. Activation latches.

    Stability, both nulls and movement must hold at STABLE_CHECKS checks in a row. r_m and n / N are tested only after
    that: three checks spaced by 1.25 span nearly a doubling of n, and no run would be long enough if they were counted
    from the moment that r_m is high enough.
    """
    # Does this check pass, and if so, is it time to act?
    ari = None
    if state.previous and measure.groups is not None:
        ari = adjusted_rand(state.previous, measure.groups)
    moved = _moved(state.sketch, measure.sketch) if state.sketch else None
    fault = _fault(config, measure, ari, moved)
    passed = 0 if fault else state.passed + 1
    if fault is None:
        fault = _not_now(config, passed, examples_seen / total_examples, regime_monotone)

    # Activation freezes groups and margin, and is never taken back.
    active_at = state.active_at
    labels = state.labels
    margin = state.margin
    if active_at is None and fault is None:
        active_at = examples_seen
        labels = measure.labels
        margin = measure.margin
    state = replace(
        state, checks=state.checks + 1, last_check=examples_seen, passed=passed, previous=measure.groups or (),
        sketch=measure.sketch, active_at=active_at, labels=labels, margin=margin,
    )  # fmt: skip
    reason = f"off: {fault}"
    if active_at is not None:
        sizes = sorted(Counter(label for label in labels if label >= 0).values(), reverse=True)
        reason = f"on since {active_at:,} examples: groups of {' + '.join(map(str, sizes))} blocks ({config.control})"
    return state, StructureReading(
        active_at is not None,
        measure.groups,
        ari,
        moved,
        measure.contrast,
        measure.z,
        measure.p,
        measure.drift_p,
        reason,
    )


def _fault(config: StructureConfig, measure: StructureMeasure, ari: float | None, moved: float | None) -> str | None:
    """The reason why this check does not pass; None if it does."""
    if measure.groups is None:
        return f"{len(measure.similarity)} blocks are too few to form groups (6 needed)"
    if ari is None or moved is None:
        return "first check, nothing to compare with"
    large = sum(size > 1 for label, size in Counter(measure.groups).items() if label >= 0)
    # A null that was not drawn, since the term is on, is NaN: no comparison with it is true.
    z, p, drift = (math.nan if v is None else v for v in (measure.z, measure.p, measure.drift_p))
    faults = (
        (ari < MIN_ARI, f"groups not yet stable (ARI {ari:.2f} < {MIN_ARI:g})"),
        (large < MIN_GROUPS, f"{large} group beside single blocks ({MIN_GROUPS} needed)"),
        (z < MIN_Z, f"groups no clearer than by chance (z {z:.1f} < {MIN_Z:g})"),
        (p > MAX_P, f"groups no clearer than by chance (p {p:.3f} > {MAX_P:g})"),
        (drift > config.max_drift_p, f"no clearer than a drift with depth (p {drift:.2f} > {config.max_drift_p:g})"),
        (not moved >= MIN_MOVED, f"weights moved {moved:.2%} since the last check (< {MIN_MOVED:.0%})"),
    )  # fmt: skip
    return next((words for failed, words in faults if failed), None)


def _not_now(config: StructureConfig, passed: int, share: float, regime: float) -> str | None:
    """The reason not to activate after checks that passed; None where there is none."""
    if passed < STABLE_CHECKS:
        return f"{passed} of {STABLE_CHECKS} checks passed in a row"
    if share > LAST_ACTIVATION:
        return f"too late ({share:.0%} of the run > {LAST_ACTIVATION:.0%})"
    if regime < MIN_REGIME:
        return f"groups are stable, waiting for the regime ({regime:.2f} < {MIN_REGIME:g})"
    return None


def structure_strength(
    config: StructureConfig, state: StructureState, examples_seen: int, total_examples: int
) -> float:
    """Norm of the term's step over the update's: 0 while off, then a linear ramp over RAMP N up to `strength`."""
    if state.active_at is None:
        return 0.0
    ramp = RAMP * total_examples
    share = 1.0 if ramp == 0 else (examples_seen - state.active_at) / ramp
    return config.strength * min(1.0, max(0.0, share))


def structure_step(
    blocks: Sequence[nn.Module],
    state: StructureState,
    step_norm: float,
    control: str = "groups",
    in_proj: str = "",
    out_proj: str = "",
) -> dict[str, float]:
    """Move the grouped blocks' weights down the gradient of R, in place, by a step of norm `step_norm` (`block_term`).

    Changes only the projections from and to the residual stream, of blocks in a group of two or more. The labels in
    `state` are those of the control already, so `random` and `contiguous` need nothing else.

    Args:
        step_norm: norm over all weights moved together; 1-2 % of the optimiser's update, ramped (`structure_strength`).
            In bfloat16 weights so small a step is lost in rounding: keep float32 master weights.
        in_proj, out_proj: as in the config.

    Returns:
        structure_loss (R before the step), structure_outside (share of members beyond the margin), structure_step (the
        norm of the step taken; 0 where R is 0 or the term is off).

    Raises:
        UserError: unknown control.
    """
    members = [i for i, label in enumerate(state.labels) if label >= 0 and state.labels.count(label) > 1]
    weights = _weights_of([blocks[i] for i in members], in_proj, out_proj)
    return term_step(weights, [state.labels[i] for i in members], state.margin, step_norm, control)


def _weights_of(blocks: Sequence[nn.Module], in_proj: str, out_proj: str) -> list[BlockWeights]:
    named = [[part.strip() for part in names.split(",") if part.strip()] for names in (in_proj, out_proj)]
    return [block_weights(block, *named) for block in blocks]


def _sketch(weights: Sequence[BlockWeights], seed: int) -> tuple[float, ...]:
    """Random projections of all weights W: sum of u'Wv, u and v of random signs, keyed by the weight's place.

    The mean square is the squared norm (Johnson-Lindenstrauss with rank-one projections), and the sketch is linear: the
    difference of two gives the norm of the difference.
    """
    total = torch.zeros(_SKETCH, dtype=torch.float64)
    for place, weight in enumerate(w for block in weights for w in block.all):
        generator = keyed_generator(seed, "structure/sketch", place)
        left, right = (
            (2.0 * torch.randint(0, 2, (_SKETCH, side), generator=generator) - 1.0).to(weight.device)
            for side in weight.shape
        )
        wide = weight if weight.dtype == torch.float64 else weight.float()
        total += ((left.to(wide) @ wide) * right.to(wide)).sum(1).double().cpu()
    # The sketch is kept as JSON, which has no NaN.
    return tuple(torch.nan_to_num(total, posinf=0.0, neginf=0.0).tolist())


def _moved(before: Sequence[float], now: Sequence[float]) -> float:
    """Relative movement |W - W_before| / |W_before| from two sketches."""
    first, second = np.asarray(before), np.asarray(now)
    return float(np.linalg.norm(second - first) / max(np.linalg.norm(first), 1e-30))
