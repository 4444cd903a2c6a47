"""The timestep distribution over a run: high noise first, low noise late, driven by the regime (docs/method.md).

distribution = policy.timestep_distribution(...)            # chosen at each probe; frozen data
t = distribution.sample(batch, generator, stratified=True)
loss = (importance(distribution, t) * loss).mean()          # where only the variance may change
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from torch import Tensor, float32

from segue.process.timesteps import LogitNormal, Mixture, TimestepDistribution
from segue.types import UserError

DISTRIBUTIONS = ("static", "stage", "per-time", "curriculum", "learned")
_FLOORED = ("stage", "per-time")


@dataclass(frozen=True)
class TimestepsConfig:
    """How training times are drawn.

    Attributes:
        distribution: "static" (the policy's own throughout), "stage" (`stage_distribution` of r_s), or one of
            variants/per_time_and_curriculum.py and variants/learned_timesteps.py: "per-time", "curriculum", "learned".
        floor: f, share of the uniform part of "stage" and "per-time": P(t > 0.8) >= 0.2 f whatever r is.
        mu_start: mean of logit(t) of the other part of "stage" at r = 0; positive is high noise.
        mu_end_ratio: the mean at r = 1 is minus this share of mu_start: 0 ends at t = 0.5, 1 at the mirror image.
        corrected: weigh each example by 1 / density, so that the expected loss is that of uniform times and only its
            variance follows the distribution. Off by default: moving the emphasis is the intent.
        learn_every: of "learned", examples between its updates.
    """

    distribution: str = "static"
    floor: float = 0.5
    mu_start: float = 0.8
    corrected: bool = False
    learn_every: int = 1280
    mu_end_ratio: float = field(default=1.0, metadata={"later": True})  # not written at its default: older hashes hold

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise UserError(
                f"timesteps.distribution is {self.distribution!r}; choose one of {', '.join(DISTRIBUTIONS)}"
            )
        if not 0.0 <= self.floor <= 1.0:
            raise UserError(f"timesteps.floor is {self.floor}; give a share from 0 to 1")
        if not 0.0 <= self.mu_start <= 3.0:
            raise UserError(f"timesteps.mu_start is {self.mu_start}; give a number from 0 to 3")
        if not 0.0 <= self.mu_end_ratio <= 1.0:
            raise UserError(f"timesteps.mu_end_ratio is {self.mu_end_ratio}; give a share from 0 to 1")
        if self.learn_every < 1:
            raise UserError(f"timesteps.learn_every is {self.learn_every}; give a number of examples")
        if self.corrected and not (self.distribution in _FLOORED and self.floor > 0):
            raise UserError(
                "timesteps.corrected needs a distribution with a uniform floor, or its weights have no bound; "
                f"set timesteps.distribution to {' or '.join(_FLOORED)} and timesteps.floor above 0"
            )


# Times of the `stage` recipe: four of five draws lie about t = 0.77 at r = 0 and about t = 0.35 at r = 1. With our
# first constants (the defaults above) prompt accuracy was far lower after as many examples (docs/results-earlier.md).
STAGE_TIMESTEPS = TimestepsConfig(distribution="stage", floor=0.2, mu_start=1.2, mu_end_ratio=0.5)


@lru_cache(maxsize=16)  # a distribution keeps its table of quantiles, and between probes every step asks for it
def stage_distribution(regime: float, floor: float = 0.5, mu_start: float = 0.8, mu_end_ratio: float = 1.0) -> Mixture:
    """p_r(t) = f U(0, 1) + (1 - f) LogitNormal(mu_start (1 - (1 + b) r), 1). Our definition.

    At r = 0, while captions are being learned, most draws are at high noise, where only the caption determines the
    sound. At r = 1, the refinement, most are at low noise. The uniform part keeps every noise level among the draws.

    Args:
        regime: r in [0, 1].
        floor: f, share of the uniform part.
        mu_start: mean of logit(t) of the logit-normal part at r = 0.
        mu_end_ratio: b; the mean at r = 1 is -b mu_start.

    Raises:
        ValueError: regime outside [0, 1].
    """
    if not 0.0 <= regime <= 1.0:
        raise ValueError(f"regime is {regime}; it lies in [0, 1]")
    return Mixture(floor, LogitNormal(mu_start * (1.0 - (1.0 + mu_end_ratio) * regime), 1.0))


def importance(distribution: TimestepDistribution, t: Tensor) -> Tensor:
    """Weights [B], uniform density over the distribution's: the expected weighted loss is that of uniform times.

    E_p[w loss] is the integral of the loss because w = 1 / p. Under a uniform floor f no weight exceeds 1 / f.

    Args:
        distribution: what t was drawn from; its density must not vanish on (0, 1).
        t: [B] times.

    Raises:
        ValueError: the density vanishes at one of the times.
    """
    density = distribution.density(t.double())
    if not bool((density > 0).all()):
        raise ValueError(f"{distribution} has no mass at some of these times; it cannot be corrected to uniform")
    return (1.0 / density).to(t.dtype if t.is_floating_point() else float32)
