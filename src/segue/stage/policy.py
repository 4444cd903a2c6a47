"""The policy of a run: how the regime is measured, and what it drives. Frozen data.

A static recipe is a policy with a constant regime: one timestep distribution, no alignment, no block term. The package
variants/ holds what the method is compared with; a policy brings in what it asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from segue.process.timesteps import TimestepDistribution, Uniform
from segue.stage import condition_gain
from segue.stage.alignment import AlignmentConfig
from segue.stage.discrepancy import ProbeConfig
from segue.stage.regime import Estimate, RegimeConfig, level
from segue.stage.regime_state import RegimeState
from segue.stage.timesteps import STAGE_TIMESTEPS, TimestepsConfig, stage_distribution
from segue.stage.variants.block_step import BlockStep
from segue.stage.variants.block_structure import StructureConfig
from segue.stage.variants.learned_timesteps import LearnedState
from segue.stage.variants.per_time_and_curriculum import curriculum_distribution, per_time_distribution
from segue.stage.variants.slope_regime import ESTIMATES, remaining_by_time
from segue.types import UserError

PROBED = ("discrepancy", "level", "slope-over-peak")  # signals that are read off the discrepancy
CONDITION_GAIN = "condition-gain"
LAMBDA_0 = 0.5  # REPA's weight of the alignment (arXiv 2410.06940)
ALIGNED_EVERY = 2  # steps: half the cost, no difference in prompt accuracy (docs/results-earlier.md)
FRAMES_EVERY = 8  # of 26 a second, whose neighbours say next to the same (docs/log.md)
# Of policies that read a slope: r is 0.5 only once the next doubling of n is expected to bring less than a sixteenth of
# what was gained so far. With 4 and 6, r left the semantic stage while captions were followed hardly better than half.
KAPPA = 8.0
# max_drift_p asks more than the null of rotations does: a smooth drift with depth can be cut anywhere.
BLOCK_TERM = StructureConfig(enabled=True, strength=0.015, max_drift_p=0.05)


@dataclass(frozen=True)
class Policy:
    """How a run is driven.

    Attributes:
        static_timesteps: the timestep distribution where timesteps.distribution is "static".
        regime: how r is measured, or that it is constant.
        timesteps: how r moves the timestep distribution.
        alignment: how r moves the alignment with the teacher.
        structure: the block term.
        probe: the held-out clips that the discrepancy is measured on.
    """

    static_timesteps: TimestepDistribution = field(default_factory=Uniform)
    regime: RegimeConfig = field(default_factory=lambda: RegimeConfig(signal="constant"))
    timesteps: TimestepsConfig = field(default_factory=TimestepsConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    structure: StructureConfig = field(default_factory=StructureConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    @property
    def probes(self) -> bool:
        """Whether the discrepancy is measured at all."""
        needed = self.regime.signal in PROBED or self.timesteps.distribution == "per-time"
        return self.probe.run == "always" or (self.probe.run == "auto" and needed)

    @property
    def probes_gain(self) -> bool:
        """Whether the condition gain is measured."""
        return self.regime.signal == CONDITION_GAIN and self.probe.run != "never"

    @property
    def reads_regime(self) -> bool:
        """Whether r changes anything during the run."""
        return self.regime.signal != "constant"

    @property
    def needs_teacher(self) -> bool:
        """Whether the cache must hold a teacher's features."""
        aligned = self.alignment.weight > 0 and self.alignment.target == "teacher"
        return self.probes or self.probes_gain or aligned

    @property
    def estimate(self) -> Estimate:
        """The function from the line through the signal's last values to r*."""
        return condition_gain.estimate if self.probes_gain else ESTIMATES.get(self.regime.signal, level)

    def check(self, measure: object, targets: object, features: object) -> None:
        """Refuse a loop that lacks something this policy needs.

        Args:
            measure, targets, features: as `Stage` was given them; None where it was not.

        Raises:
            UserError: one of them is missing and needed.
        """
        signal = self.regime.signal
        alignment = self.alignment
        if measure is None and (self.probes or signal in ("validation", "gradient-cosine", CONDITION_GAIN)):
            raise UserError(
                f"Stage: nothing measures the regime's signal '{signal}'; "
                "give measure=, or a policy with regime.signal 'time' or 'constant'"
            )
        if alignment.weight > 0 and targets is None:
            raise UserError("Stage: alignment needs targets= (features of the training clips), or alignment.weight 0")
        if alignment.weight > 0 and alignment.space == "output" and features is None:
            raise UserError("Stage: alignment.space 'output' needs features= (latents -> teacher features)")

    def timestep_distribution(
        self, regime: RegimeState, learned: LearnedState, share: float, regime_slow: float
    ) -> TimestepDistribution:
        """The distribution that times are drawn from until the next update.

        Args:
            regime: state of the regime; the per-time distribution reads how far each probe time still has to improve.
            learned: state of the learned distribution.
            share: n / N, the share of the run that is done.
            regime_slow: r_s.
        """
        config = self.timesteps
        if config.distribution == "stage":
            return stage_distribution(regime_slow, config.floor, config.mu_start, config.mu_end_ratio)
        if config.distribution == "per-time":
            return per_time_distribution(remaining_by_time(self.regime, regime, self.probe.times), config.floor)
        if config.distribution == "curriculum":
            return curriculum_distribution(self.static_timesteps, share)
        if config.distribution == "learned":
            return learned.distribution
        return self.static_timesteps

    def block_step(self, blocks: Sequence[nn.Module], **options) -> BlockStep | None:
        """The block term around these blocks; None where it is off. `BlockStep` documents the options."""
        return BlockStep(self.structure, blocks, **options) if self.structure.enabled else None


def stage_policy() -> Policy:
    """The method as in the recipe `stage`: r, from the slope of the condition gain, drives alignment and times.

    Without the block term, which changed nothing (docs/results.md): `BLOCK_TERM` adds it.
    """
    return Policy(
        # The gain, not the discrepancy: that has no knee, so that its slope is a time ramp, and its level means another
        # stage on every data set (docs/method.md).
        regime=RegimeConfig(signal=CONDITION_GAIN, kappa=KAPPA),
        timesteps=STAGE_TIMESTEPS,
        alignment=AlignmentConfig(weight=LAMBDA_0, schedule="decay", every=ALIGNED_EVERY, frames_every=FRAMES_EVERY),
    )
