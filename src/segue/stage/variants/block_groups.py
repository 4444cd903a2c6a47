"""Groups of transformer blocks in parameter space: similarity, clustering, and the null distributions of contrast.

docs/method.md, section 5. That block weights form groups is reported in arXiv 2501.16650 and 2605.04971; every
formula here is our definition unless a docstring cites its source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segue.types import import_extra


def similarity(signed: Tensor) -> np.ndarray:
    """[L, L] float64: mean of the cosines of the input and of the output projections; 1 on the diagonal.

    Rounded to 1e-6, so that the last bits of a matrix product do not decide a tie. Non-finite entries count as 0.
    """
    flat = signed.flatten(1)
    table = np.nan_to_num((flat @ flat.T).double().cpu().numpy(), nan=0.0, posinf=0.0, neginf=0.0)
    # A matrix product is not always symmetric to the last bit.
    table = np.round((table + table.T) / 2, 6)
    np.fill_diagonal(table, 1.0)
    return table


def canonical(labels: Sequence[int]) -> tuple[int, ...]:
    """Labels renamed by first appearance: equal partitions become equal tuples. -1 (excluded) stays."""
    names: dict[int, int] = {}
    return tuple(-1 if label < 0 else names.setdefault(int(label), len(names)) for label in labels)


def modularity(table: np.ndarray, labels: Sequence[int]) -> float:
    """Newman's modularity (arXiv cond-mat/0309508, weighted) of a partition; edges are the positive similarities."""
    edges = np.clip(table, 0.0, None) * (1.0 - np.eye(len(table)))
    # Newman's 2m: the matrix holds each edge twice.
    total = edges.sum()
    if total == 0.0:
        return 0.0
    same = np.equal.outer(np.asarray(labels), np.asarray(labels))
    degrees = edges.sum(1)
    return float(((edges - np.outer(degrees, degrees) / total) * same).sum() / total)


def cluster(table: np.ndarray, max_groups: int) -> tuple[int, ...]:
    """Average-linkage clusters of a similarity [M, M]: of 2..max_groups clusters the most modular, then the fewest."""
    hierarchy = import_extra("scipy.cluster.hierarchy", "train")
    upper = np.triu_indices(len(table), 1)
    # Rounding may take a cosine above 1; a distance is not negative.
    merges = hierarchy.linkage(np.clip(1.0 - table[upper], 0.0, None), method="average")[:, :2].astype(int)
    cuts = [_cut(merges, len(table), count) for count in range(2, max_groups + 1)]
    if len(cuts) == 1:
        return cuts[0]
    # Rounded, so that of cuts that differ by rounding alone the first wins: the one with the fewest groups.
    return max(cuts, key=lambda labels: round(modularity(table, labels), 9))


def _cut(merges: np.ndarray, size: int, count: int) -> tuple[int, ...]:
    """The partition into `count` clusters: what the first size - count merges of the tree have joined."""
    members = {leaf: [leaf] for leaf in range(size)}
    for index, (left, right) in enumerate(merges[: size - count]):
        members[size + index] = members.pop(left) + members.pop(right)
    labels = [0] * size
    for name, leaves in members.items():
        for leaf in leaves:
            labels[leaf] = name
    return canonical(labels)


def find_groups(table: np.ndarray) -> tuple[int, ...] | None:
    """Labels of L blocks from their similarity [L, L]; the first and last are excluded (-1). None where L < 6.

    K runs over 2..L/3, so a stack of 6 to 8 blocks can only be split in two: with L = 8, six inner blocks into K = 2.
    It can show neither three groups nor the absence of groups, since some best split always exists; only the nulls and
    the checks tell whether the split means anything. Of the 31 splits of six blocks, few are far from contiguous halves
    or from one outlier.
    """
    depth = len(table)
    if depth < 6:
        return None
    return (-1, *cluster(table[1:-1, 1:-1], depth // 3), -1)


def adjusted_rand(first: Sequence[int], second: Sequence[int]) -> float:
    """Adjusted Rand index of two partitions (Hubert & Arabie 1985): 1 equal, 0 what chance gives.

    Blocks labelled -1 in either are left out. Two partitions without a choice (all alike) count as equal.
    """
    pairs = [(a, b) for a, b in zip(first, second) if a >= 0 and b >= 0]

    def couples(counts: Counter) -> float:
        return sum(n * (n - 1) / 2 for n in counts.values())

    together = couples(Counter(pairs))
    rows, columns = couples(Counter(a for a, _ in pairs)), couples(Counter(b for _, b in pairs))
    # With fewer than two blocks there is no couple to divide by.
    expected = rows * columns / max(1.0, len(pairs) * (len(pairs) - 1) / 2)
    largest = (rows + columns) / 2
    return 1.0 if largest == expected else (together - expected) / (largest - expected)


def contrast_of(table: np.ndarray, labels: Sequence[int]) -> float:
    """Mean similarity within groups less that between groups; blocks labelled -1 are left out."""
    kept = np.asarray(labels) >= 0
    table = table[np.ix_(kept, kept)]
    names = np.asarray(labels)[kept]
    pairs = np.triu_indices(len(names), 1)
    same = np.equal.outer(names, names)[pairs]
    if same.all() or not same.any():
        return 0.0
    return float(table[pairs][same].mean() - table[pairs][~same].mean())


def null_contrast(signed: Tensor, max_groups: int, draws: int, generator: torch.Generator) -> np.ndarray:
    """Contrasts [draws] of the groups found when every block's residual basis is turned by itself, at random.

    Every draw gives each of the M blocks an independent signed permutation of the basis (one for in_proj and
    out_proj together), and clusters anew: groups found in data must be compared with groups found in noise.

    Why not any rotation: those also erase the privileged basis that Adam and adaLN's scales give each block by itself.
    Blocks of independent random weights and random adaLN scales (std 0.1) then look grouped. Signed permutations are
    rotations, keep the basis, and ask less: p is exact wherever the blocks' distributions are unchanged by them. They
    cost D^2 a block, not D^3.

    Args:
        signed: [M, 2, D, D] signatures of the blocks that are clustered.
    """
    count, _, width, _ = signed.shape
    drawn = np.empty(draws)
    shuffled = torch.empty_like(signed)
    for draw in range(draws):
        for index in range(count):
            # Drawn on the CPU, so that the null is the same on every device.
            order = torch.randperm(width, generator=generator)
            signs = (2.0 * torch.randint(0, 2, (width,), generator=generator) - 1.0).to(signed)
            # Rows and columns of a Gram matrix turn together, P G P'; one index serves both matrices of a block.
            flat = (order[:, None] * width + order).flatten().to(signed.device)
            torch.index_select(signed[index].view(2, -1), 1, flat, out=shuffled[index].view(2, -1))
            shuffled[index].mul_(signs[:, None] * signs)
        table = similarity(shuffled)
        drawn[draw] = contrast_of(table, cluster(table, max_groups))
    return drawn


def drift_contrast(table: np.ndarray, max_groups: int, draws: int, generator: torch.Generator) -> np.ndarray:
    """Contrasts [draws] of the groups found when similarity depends on nothing but the distance in depth.

    Similarities of pairs at equal distance are exchanged at random, and the blocks are clustered anew. A stack that
    drifts smoothly with depth, where any cut is arbitrary, keeps its contrast; one with boundaries loses it. The null
    of turned bases cannot tell the two apart: any stack on one residual stream exceeds it. Our definition.

    Args:
        table: [M, M] similarity of the blocks that are clustered.
    """
    drawn = np.empty(draws)
    for draw in range(draws):
        mixed = np.eye(len(table))
        for distance in range(1, len(table)):
            values = np.diagonal(table, distance)[torch.randperm(len(table) - distance, generator=generator).numpy()]
            mixed += np.diag(values, distance) + np.diag(values, -distance)
        drawn[draw] = contrast_of(mixed, cluster(mixed, max_groups))
    return drawn
