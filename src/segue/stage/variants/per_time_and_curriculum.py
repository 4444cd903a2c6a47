"""Two timestep distributions that `stage` is compared with: per probe time, and a curriculum."""

from __future__ import annotations

import math
from functools import lru_cache

from segue.process.timesteps import Mixture, Piecewise, TimestepDistribution, Truncated

CLUSTERS = 10  # of the curriculum: levels of noise that open one after the other
OPEN_AT = 0.5  # of the curriculum: share of the run at which all are open
# The per-time distribution follows differences between times. Where no time has more than this still to improve, it
# fades to uniform, instead of following noise.
_LEAST_REMAINING = 0.1


@lru_cache(maxsize=16)
def per_time_distribution(remaining_by_time: tuple[tuple[float, float], ...], floor: float = 0.5) -> Mixture:
    """f U(0, 1) + (1 - f) p(t), p proportional to how far each probe time still has to improve. Our definition.

    p is linear between the probe times and constant beyond them. Uniform before anything is known, and again when
    nothing remains.

    Args:
        remaining_by_time: (t, remaining in [0, 1]), times increasing.
        floor: f, share of the uniform part.
    """
    if not remaining_by_time:
        return Mixture(floor, Piecewise((0.5,), (1.0,)))
    times, remaining = zip(*remaining_by_time)
    return Mixture(floor, Piecewise(times, tuple(_LEAST_REMAINING + r for r in remaining)))


def curriculum_distribution(
    base: TimestepDistribution, share: float, clusters: int = CLUSTERS, open_at: float = OPEN_AT
) -> TimestepDistribution:
    """A base on the noise levels opened so far, from high noise down, cumulatively (arXiv 2403.10348, figure 3).

    The noisier task is the easier one. Training starts on the noisiest of `clusters` equal intervals of t and the next
    one joins the open ones at even shares of the run; from `open_at` on all are open. The paper opens the next cluster
    when the loss of the open ones has stopped falling for a while; we pace by the share of the run, so that the variant
    depends on nothing but n / N.

    Args:
        base: the distribution in the end.
        share: n / N.
        clusters: K.
        open_at: share of the run at which the last cluster opens.
    """
    # The tolerance keeps n / N, which is rarely exact in binary, from opening a cluster one probe late.
    opened = 1 + math.floor(share / open_at * (clusters - 1) + 1e-9)
    if opened >= clusters:
        return base
    return Truncated(base, 1.0 - opened / clusters, 1.0)
