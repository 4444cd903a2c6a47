"""Learned training times: a sampler that draws more of what lowered the loss more (arXiv 2411.09998).

Every so many steps the loop measures, for each example of a batch, how much its loss at a few fixed times fell through
one optimiser step; the log-density of the time that the example had trained at is raised where that drop was above the
batch's mean (REINFORCE). The paper's sampler is a network of x_0 that gives a Beta distribution; ours is one for all
x_0, Kumaraswamy's, whose quantile is a closed form, and a pull to uniform in place of its entropy term. A control, not
a part of the method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from segue.process.timesteps import Kumaraswamy

RATE = 0.05  # size of a move, in log a and log b
PULL = 0.02  # share of log a and log b by which each move draws them back to uniform times
BOUND = 1.5  # largest |log a| and |log b|


@dataclass(frozen=True)
class LearnedState:
    """Where the sampler stands.

    Attributes:
        log_a, log_b: of the distribution; 0 and 0 is uniform.
        last: n of the last update.
    """

    log_a: float = 0.0
    log_b: float = 0.0
    last: int = 0

    def to_json(self) -> dict:
        """The state as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> LearnedState:
        """The inverse of `to_json`."""
        return cls(**data)

    @property
    def distribution(self) -> Kumaraswamy:
        """What this state draws from."""
        return Kumaraswamy(math.exp(self.log_a), math.exp(self.log_b))


def update_learned(state: LearnedState, times: Sequence[float], drops: Sequence[float], seen: int) -> LearnedState:
    """One REINFORCE step on the times [B] of a batch and by how much the loss of each example fell [B].

    Drops are standardised over the batch, so that the rate does not depend on the loss's scale; a batch without a
    spread, or with a drop that is not finite, changes nothing.
    """
    mean = sum(drops) / len(drops)
    spread = math.sqrt(sum((d - mean) ** 2 for d in drops) / len(drops))
    if not math.isfinite(spread) or spread < 1e-12:
        return LearnedState(state.log_a, state.log_b, seen)
    # REINFORCE: mean over the batch of (drop - baseline) times the time's score; the baseline is the mean drop.
    slope_a = slope_b = 0.0
    for t, drop in zip(times, drops):
        by_a, by_b = state.distribution.score(t)
        slope_a += by_a * (drop - mean) / spread / len(times)
        slope_b += by_b * (drop - mean) / spread / len(times)
    # The pull to uniform times stands in place of the paper's entropy term.
    log_a = state.log_a + RATE * slope_a - PULL * state.log_a
    log_b = state.log_b + RATE * slope_b - PULL * state.log_b
    return LearnedState(min(BOUND, max(-BOUND, log_a)), min(BOUND, max(-BOUND, log_b)), seen)
