"""The term that draws the blocks of a group together, and its controls (docs/method.md, section 5).

All of it is our definition. Signatures are normalised, so R has no scale and its gradient is orthogonal to the overall
scale of every block: the term rotates weights, and weight decay alone changes their norms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from segue.process.noise import keyed_generator
from segue.stage.variants.block_groups import canonical
from segue.stage.variants.block_weights import BlockWeights, centred_grams, folded, normalised
from segue.types import UserError

CONTROLS = ("groups", "random", "contiguous", "decay", "opposite")


def structure_loss(signed: Tensor, labels: Sequence[int], margin: float) -> Tensor:
    """R = sum over groups, over members, of max(0, ||G_l - stopgrad(mean G)||^2 - m)^2, differentiable in `signed`.

    Args:
        signed: signatures [L, 2, D, D]. `structure_step` uses the gradient in closed form; this is what it must equal.
    """
    excess = [(d - margin).clamp(min=0.0) for d in distances(signed, labels).values()]
    return torch.stack(excess).square().sum() if excess else signed.new_zeros(())


def term_step(
    weights: Sequence[BlockWeights], labels: Sequence[int], margin: float, step_norm: float, control: str = "groups"
) -> dict[str, float]:
    """Move the blocks' weights down the gradient of R by a step of norm `step_norm`, in place.

    Decoupled from the optimiser, like weight decay: no gradients, no moments. No step where R is 0, that is where every
    member lies within the margin of its group's mean. `decay` shrinks all the weights, `opposite` climbs R; both by the
    same norm and under the same condition.

    Returns:
        The figures of `block_structure.structure_step`.

    Raises:
        UserError: unknown control.
    """
    if control not in CONTROLS:
        raise UserError(f"structure.control is {control!r}; choose one of {', '.join(CONTROLS)}")
    if not weights or step_norm == 0.0:
        return {"structure_loss": 0.0, "structure_outside": 0.0, "structure_step": 0.0}
    with torch.no_grad():
        # R, and the members beyond the margin, which alone have a gradient.
        parts = [normalised(centred_grams(w)) for w in weights]
        signed = torch.stack([g for g, _ in parts])
        excess = {i: float(d) - margin for i, d in distances(signed, labels).items()}
        outside = {i: e for i, e in excess.items() if e > 0.0}
        figures = {
            "structure_loss": sum(e * e for e in outside.values()),
            "structure_outside": len(outside) / len(weights),
            "structure_step": step_norm if outside else 0.0,
        }
        if not outside:
            return figures
        # A direction, scaled to the norm that was asked for; its sum of squares over all weights needs float64.
        moves = _decay(weights) if control == "decay" else _descent(weights, labels, parts, signed, outside)
        norm = float(torch.stack([g.double().square().sum() for _, g in moves]).sum().sqrt())
        if norm == 0.0 or not math.isfinite(norm):
            return {**figures, "structure_step": 0.0}
        for weight, gradient in moves:
            weight.add_(gradient.to(weight.dtype), alpha=(1.0 if control == "opposite" else -1.0) * step_norm / norm)
    return figures


def _decay(weights: Sequence[BlockWeights]) -> list[tuple[Tensor, Tensor]]:
    return [(w, w) for block in weights for w in block.all]


def _descent(
    weights: Sequence[BlockWeights],
    labels: Sequence[int],
    parts: Sequence[tuple[Tensor, Tensor]],
    signed: Tensor,
    outside: dict[int, float],
) -> list[tuple[Tensor, Tensor]]:
    """Weights and dR/dW of the blocks beyond the margin; `outside` holds their excess ||G - mean||^2 - m by index."""
    means = _means(signed, labels)
    moves: list[tuple[Tensor, Tensor]] = []
    for index, excess in outside.items():
        # d/dG of max(0, d - m)^2, d = ||G - mean||^2 with the mean held fixed: 2 (d - m) times 2 (G - mean).
        towards = 4.0 * excess * (signed[index] - means[labels[index]])
        moves += zip(weights[index].all, _gradients(weights[index], *parts[index], towards))
    return moves


def _gradients(weights: BlockWeights, signature: Tensor, norms: Tensor, towards: Tensor) -> list[Tensor]:
    """dR/dW of all projections from `towards` = dR/dG [2, D, D] (symmetric, traceless); adaLN scales are constant.

    G = A / (sqrt2 |A|), A the centred Gram: dR/dA is `towards` less its part along G, over sqrt2 |A|. Then
    A = (Ws)'(Ws) gives 2 W s dA s for a layer W with scales s, and A = BB' gives 2 dA B for an output projection.
    """
    unit = signature * 2**0.5
    along = (towards * unit).sum((1, 2), keepdim=True)
    reading, writing = (towards - along * unit) / (norms * 2**0.5)
    in_proj, out_proj = folded(weights)
    scaled = [2.0 * r @ reading for r in in_proj]
    scaled = [g if s is None else g * s.to(g.dtype) for g, s in zip(scaled, weights.scales)]
    return scaled + [2.0 * writing @ b for b in out_proj]


def _means(signed: Tensor, labels: Sequence[int]) -> dict[int, Tensor]:
    """Mean signature of each group of two or more."""
    groups = {label: [i for i, other in enumerate(labels) if other == label] for label in labels if label >= 0}
    return {label: signed[members].mean(0) for label, members in groups.items() if len(members) > 1}


def distances(signed: Tensor, labels: Sequence[int]) -> dict[int, Tensor]:
    """||G_l - stopgrad(mean G)||^2 of each member of each group of two or more, by index."""
    means = _means(signed.detach(), labels)
    return {i: (signed[i] - means[label]).square().sum() for i, label in enumerate(labels) if label in means}


def controlled(groups: tuple[int, ...], control: str, seed: int) -> tuple[int, ...]:
    """The labels in force: those found, or those of the control that replaces them; the ends stay excluded."""
    inner = groups[1:-1]
    if control == "contiguous":
        inner = tuple(3 * i // len(inner) for i in range(len(inner)))
    elif control == "random":
        generator = keyed_generator(seed, "structure/random")
        for _ in range(100):  # not the groups themselves again, which in a short stack is no rare draw
            inner = tuple(inner[i] for i in torch.randperm(len(inner), generator=generator).tolist())
            if canonical(inner) != canonical(groups[1:-1]):
                break
    return (-1, *canonical(inner), -1)
