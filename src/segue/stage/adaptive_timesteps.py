"""The law of training times as training goes on (METHOD section 4 in docs/method.md).

    law = choose_law(config, static_law, regime_slow=r_s, remaining_by_time=remaining, share=n / N)
    t = law.sample(batch, generator, stratified=True)
    loss = (importance(law, t) * loss).mean()      # the corrected arm only

Laws are chosen at each probe and are plain frozen data; the draws come from the loop's own generator of each rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from segue.process.timesteps import LogitNormal, Mixture, Piecewise, TimestepLaw, Truncated
from segue.types import UserError

LAWS = ("static", "stage", "per-time", "curriculum", "learned")
_FLOORED = ("stage", "per-time")
# The per-time law leans on differences between times; below this all have next to nothing to gain and it fades to
# uniform, instead of following the noise of what is left.
_LEAST_REMAINING = 0.1


@dataclass(frozen=True)
class TimestepsConfig:
    """How training times are drawn.

    Attributes:
        law: `static` (the policy's own law throughout); `stage` (`stage_law` of r_s); `per-time` (`per_time_law` of
            what each probe time has still to gain); `curriculum` (`curriculum_law`); `learned`
            (`segue.stage.learned_timesteps`: by what a step gained).
        floor: f, share of the uniform law under `stage` and `per-time`: P(t > 0.8) >= 0.2 f whatever r is.
        mu_0: lean of the stage law at r = 0, to high noise.
        lean_back: at r = 1 it leans by so much of mu_0 to low noise; 0 ends at the middle.
        corrected: weight each example by 1 / density, so that the expected loss is that of uniform times and only its
            variance follows the law. Off by default: moving the emphasis is the intent.
        clusters: of the curriculum, levels of noise that open one after the other.
        open_at: of the curriculum, share of the run at which all are open.
        learn_every: of the learned law, examples between its updates.
    """

    law: str = "static"
    floor: float = 0.5
    mu_0: float = 0.8
    corrected: bool = False
    clusters: int = 10
    open_at: float = 0.5
    learn_every: int = 1280
    lean_back: float = field(default=1.0, metadata={"later": True})  # configs from before it read as they were

    def __post_init__(self) -> None:
        if self.law not in LAWS:
            raise UserError(f"timesteps.law is {self.law!r}; choose one of {', '.join(LAWS)}")
        if not 0.0 <= self.floor <= 1.0:
            raise UserError(f"timesteps.floor is {self.floor}; give a share from 0 to 1")
        if not 0.0 <= self.mu_0 <= 3.0:
            raise UserError(f"timesteps.mu_0 is {self.mu_0}; give a number from 0 to 3")
        if not 0.0 <= self.lean_back <= 1.0:
            raise UserError(f"timesteps.lean_back is {self.lean_back}; give a share from 0 to 1")
        if self.clusters < 1:
            raise UserError(f"timesteps.clusters is {self.clusters}; give at least 1")
        if not 0.0 < self.open_at <= 1.0:
            raise UserError(f"timesteps.open_at is {self.open_at}; give a share above 0, at most 1")
        if self.learn_every < 1:
            raise UserError(f"timesteps.learn_every is {self.learn_every}; give a number of examples")
        if self.corrected and not (self.law in _FLOORED and self.floor > 0):
            raise UserError(
                f"timesteps.corrected needs a law with a uniform floor, or its weights have no bound; "
                f"set timesteps.law to {' or '.join(_FLOORED)} and timesteps.floor above 0"
            )


# How the `stage` recipe leans: four of five draws about t = 0.77 at r = 0, about t = 0.35 at r = 1. METHOD's constants
# (the defaults above) obeyed captions far less well after as many examples (docs/results.md, "How far to lean").
LEANING = TimestepsConfig(law="stage", floor=0.2, mu_0=1.2, lean_back=0.5)


def choose_law(
    config: TimestepsConfig,
    static_law: TimestepLaw,
    *,
    regime_slow: float,
    remaining_by_time: tuple[tuple[float, float], ...],
    share: float,
) -> TimestepLaw:
    """The law until the next probe.

    Args:
        config: which law, and its numbers.
        static_law: the run's law under `static`, and the one that the curriculum opens up.
        regime_slow: r_s in [0, 1].
        remaining_by_time: (t, remaining in [0, 1]) of each probe time (`segue.stage.regime.remaining_by_time`);
            empty before the first probe.
        share: n / N.
    """
    if config.law == "stage":
        return stage_law(regime_slow, config.floor, config.mu_0, config.lean_back)
    if config.law == "per-time":
        return per_time_law(remaining_by_time, config.floor)
    if config.law == "curriculum":
        return curriculum_law(static_law, share, config.clusters, config.open_at)
    return static_law


@lru_cache(maxsize=16)  # a law's quantile table lives on it; between probes it is asked for at every step
def stage_law(regime: float, floor: float = 0.5, mu_0: float = 0.8, lean_back: float = 1.0) -> Mixture:
    """p_r(t) = f U(0, 1) + (1 - f) LogitNormal(mu_0 (1 - (1 + b) r), 1). Our definition.

    r = 0 (semantic acquisition) leans to high noise, where only the caption can tell what the sound is; r = 1
    (refinement) leans to low noise. The uniform floor keeps every noise level in the diet.

    Args:
        regime: r in [0, 1].
        floor: f, share of the uniform law.
        mu_0: how far the log-normal part leans to high noise at r = 0.
        lean_back: b, how much of that to low noise at r = 1.

    Raises:
        ValueError: regime outside [0, 1].
    """
    if not 0.0 <= regime <= 1.0:
        raise ValueError(f"regime is {regime}; it lies in [0, 1]")
    return Mixture(floor, LogitNormal(mu_0 * (1.0 - (1.0 + lean_back) * regime), 1.0))


@lru_cache(maxsize=16)
def per_time_law(remaining_by_time: tuple[tuple[float, float], ...], floor: float = 0.5) -> Mixture:
    """f U(0, 1) + (1 - f) p(t), p proportional to what each probe time has still to gain. Our definition.

    p is linear between the probe times and constant beyond them. Uniform before anything is known, and again when
    nothing remains.

    Args:
        remaining_by_time: (t, remaining in [0, 1]), times increasing.
        floor: f, share of the uniform law.
    """
    if not remaining_by_time:
        return Mixture(floor, Piecewise((0.5,), (1.0,)))
    times, remaining = zip(*remaining_by_time)
    return Mixture(floor, Piecewise(times, tuple(_LEAST_REMAINING + r for r in remaining)))


def curriculum_law(base: TimestepLaw, share: float, clusters: int = 10, open_at: float = 0.5) -> TimestepLaw:
    """A base law on the noise levels opened so far, from high noise down, cumulatively (arXiv 2403.10348, figure 3).

    The noisier task is the easier one. Training starts on the noisiest of `clusters` equal intervals of t and the next
    one joins the open ones at even shares of the run; from `open_at` on all are open. The paper opens the next cluster
    when the loss of the open ones has stopped falling for a while; we pace by the share of the run, so that the arm
    depends on nothing but n / N.

    Args:
        base: the law in the end.
        share: n / N.
        clusters: K.
        open_at: share of the run at which the last cluster opens.
    """
    # The tolerance keeps n / N, which is rarely exact in binary, from opening a cluster one probe late.
    opened = 1 + math.floor(share / open_at * (clusters - 1) + 1e-9)
    if opened >= clusters:
        return base
    return Truncated(base, 1.0 - opened / clusters, 1.0)


def importance(law: TimestepLaw, t: Tensor) -> Tensor:
    """Weights [B], uniform density over the law's: the expected weighted loss is the loss under uniform times.

    E_p[w loss] is the integral of the loss because w = 1 / p. Under a uniform floor f no weight exceeds 1 / f.

    Args:
        law: what t was drawn from; its density must not vanish on (0, 1).
        t: [B] times.

    Raises:
        ValueError: the law's density vanishes at one of the times.
    """
    density = law.density(t.double())
    if not bool((density > 0).all()):
        raise ValueError(f"{law} has no mass at some of these times; it cannot be corrected to uniform")
    return (1.0 / density).to(t.dtype if t.is_floating_point() else torch.float32)
