"""What a classifier makes of clips: Kullback-Leibler divergence between pairs, and the inception score."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from segue.evaluation.bootstrap import bootstrap_interval, in_fixed_order
from segue.evaluation.card import Measure, bootstrap_words, make_measure, mean_over_clips
from segue.types import UserError

# stable-audio-metrics publishes the first, audioldm_eval the second: a figure without its direction says nothing.
DIRECTIONS = ("generated||reference", "reference||generated")


def kl_by_pair(p: np.ndarray, q: np.ndarray, *, floor: float = 0.0) -> np.ndarray:
    """KL(p || q) = sum_c p_c ln(p_c / q_c) in nats, a row each: [N, classes] twice -> [N].

    Args:
        p, q: class probabilities; rows sum to 1.
        floor: probabilities below it are raised to it, then rows are divided by their sum.

    Raises:
        UserError: shapes that differ, rows that are no probabilities, or q = 0 where p > 0 (it is infinite).
    """
    # Both are brought to the floor, so that the divergence stays finite where a class is ruled out.
    p, q = (_probabilities(x, floor) for x in (p, q))
    if p.shape != q.shape:
        raise UserError(f"KL compares pairs over the same classes; got {list(p.shape)} and {list(q.shape)}")
    if ((q == 0.0) & (p > 0.0)).any():
        raise UserError("KL is infinite: a class has probability 0 in one clip of a pair only; hint: give a floor")
    # 0 ln 0 counts as 0; numpy would warn and give NaN before `where` picks.
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0.0, p * (np.log(p) - np.log(q)), 0.0)
    return terms.sum(axis=1)


def paired_kl(
    generated: np.ndarray,
    reference: np.ndarray,
    *,
    direction: str,
    floor: float = 1e-6,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    embedding: Mapping | None = None,
) -> Measure:
    """Mean over pairs (row i with row i) of the KL divergence in the direction that is named; lower is better.

    Raises:
        UserError: an unknown direction, or as `kl_by_pair`.
    """
    if direction not in DIRECTIONS:
        raise UserError(f"KL has the directions {', '.join(DIRECTIONS)}; got {direction!r}")
    pair = (generated, reference) if direction == DIRECTIONS[0] else (reference, generated)
    about = {"direction": direction, "floor": floor, "logarithm": "natural", "pairs": "by id"}
    return mean_over_clips(
        f"KL({direction})", kl_by_pair(*pair, floor=floor), better="lower", unit="nat", parameters=about,
        embedding=embedding, draws=draws, level=level, seed=seed,
    )  # fmt: skip


def inception_score(
    probabilities: np.ndarray,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    embedding: Mapping | None = None,
) -> Measure:
    """exp(mean over clips of KL(p(y|x) || mean p)) (Salimans et al. 2016, section 4), without splits; higher is better.

    Between 1 (every clip alike or undecided) and the number of classes. Splits, of which published figures often have
    10, lower it; it says nothing of the reference.

    Raises:
        UserError: fewer than two clips, or rows that are no probabilities.
    """
    # A fixed order: resampled indices then mean the same clips on every machine.
    rows = in_fixed_order(_probabilities(probabilities, 0.0))
    if len(rows) < 2:
        raise UserError(f"the inception score needs at least 2 clips; got {len(rows)}")

    def score(i: np.ndarray) -> float:
        some = rows[i]
        return float(np.exp(kl_by_pair(some, np.broadcast_to(some.mean(axis=0), some.shape)).mean()))

    value = score(np.arange(len(rows)))
    # Resampling repeats clips, which lowers the score of every draw: the interval is moved back about the value.
    low, high = bootstrap_interval(score, len(rows), draws=draws, level=level, seed=seed, about=value)
    interval = (max(low, 1.0), high)
    how = "bootstrap over clips, shifted to the value (repeats lower every draw)"
    about = {"classes": rows.shape[1], "splits": 1, "interval": bootstrap_words(draws, level, seed, how)}
    return make_measure(
        "inception score", value, interval, len(rows), better="higher", parameters=about,
        embedding=embedding,
    )  # fmt: skip


def _probabilities(rows: np.ndarray, floor: float) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape or not np.isfinite(rows).all() or rows.min() < 0.0:
        raise UserError(f"expected class probabilities [N, classes], finite and not negative; got {list(rows.shape)}")
    totals = rows.sum(axis=1, keepdims=True)
    # A wider gap than rounding: these are no probabilities, and dividing would hide it.
    if np.abs(totals - 1.0).max() > 1e-3:
        raise UserError("expected class probabilities: rows that sum to 1")
    rows = np.maximum(rows / totals, floor)  # a float32 softmax sums to 1 to seven digits only
    return rows / rows.sum(axis=1, keepdims=True)
