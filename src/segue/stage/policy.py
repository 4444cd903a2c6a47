"""What the controller follows: where the regime comes from, and what it drives. Plain data.

A static recipe is a policy whose regime nobody reads: one timestep distribution, no alignment, no block term. This is
the only file that knows what stands in variants/: whatever of it a policy asks for, it hands on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from segue.process.timesteps import TimestepDistribution, Uniform
from segue.stage.alignment import AlignmentConfig
from segue.stage.discrepancy import ProbeConfig
from segue.stage.regime import Estimate, RegimeConfig, level
from segue.stage.regime_state import RegimeState
from segue.stage.timesteps import STAGE_TIMESTEPS, TimestepsConfig, stage_distribution
from segue.stage.variants.block_step import BlockStep
from segue.stage.variants.block_structure import StructureConfig
from segue.stage.variants.learned_timesteps import LearnedState
from segue.stage.variants.slope_regime import ESTIMATES, remaining_by_time
from segue.stage.variants.timesteps import curriculum_distribution, per_time_distribution
from segue.types import UserError

PROBED = ("discrepancy", "level", "slope-over-peak")  # signals that are read off the discrepancy
LAMBDA_0 = 0.5  # REPA's weight of the alignment (arXiv 2410.06940)
ALIGNED_EVERY = 2  # steps: half the cost, no difference in prompt accuracy (docs/results.md, "How far to shift")
BLOCK_STRENGTH = 0.015  # of the update's norm
# Of policies that read the slope. 4, our first constant, leaves the semantic stage while most captions are still not
# followed, and ends a little below a run that stays there; 8 asks that the next doubling bring less than a sixteenth
# before r is 0.5.
KAPPA = 8.0


@dataclass(frozen=True)
class Policy:
    """What drives a run.

    Attributes:
        static_timesteps: the timestep distribution where timesteps.distribution is "static".
        regime: how r is read, or that it is constant.
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
    def reads_regime(self) -> bool:
        """Whether r changes anything during the run."""
        return self.regime.signal != "constant"

    @property
    def needs_teacher(self) -> bool:
        """Whether the cache must hold a teacher's features."""
        return self.probes or self.alignment.weight > 0

    @property
    def estimate(self) -> Estimate:
        """What turns the line through the signal's last values into r*."""
        return ESTIMATES.get(self.regime.signal, level)

    def check(self, measure: object, targets: object, features: object) -> None:
        """Whether a loop gives what this policy needs; None is what it does not give.

        Raises:
            UserError: something is missing.
        """
        signal, alignment = self.regime.signal, self.alignment
        if measure is None and (self.probes or signal in ("validation", "gradient-cosine")):
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
        """What times are drawn from until the next update.

        Args:
            regime: of the per-time distribution: what each probe time has still to improve.
            learned: of the learned one.
            share: n / N.
            regime_slow: r_s.
        """
        config = self.timesteps
        if config.distribution == "stage":
            return stage_distribution(regime_slow, config.floor, config.mu_0, config.lean_back)
        if config.distribution == "per-time":
            return per_time_distribution(remaining_by_time(self.regime, regime, self.probe.times), config.floor)
        if config.distribution == "curriculum":
            return curriculum_distribution(self.static_timesteps, share)
        if config.distribution == "learned":
            return learned.distribution
        return self.static_timesteps

    def block_step(self, blocks: Sequence[nn.Module], **options) -> BlockStep | None:
        """What measures and moves the blocks, where the block term is on; see `BlockStep` for the options."""
        return BlockStep(self.structure, blocks, **options) if self.structure.enabled else None


def stage_policy(level_open: float = 0.1, level_closed: float = 0.05) -> Policy:
    """The method whole, as the recipe `stage` trains: r from the discrepancy's level drives alignment, times, blocks.

    Blocks form groups in stacks of 6 and more; in a shallower one the block term never acts.

    Args:
        level_open, level_closed: discrepancies at which r leaves 0 and reaches 1. The defaults are the demo set's;
            docs/foreign-loops.md says how to find your own.
    """
    return Policy(
        # Not the slope: on a power law that is a function of n / N, a time ramp under another name (docs/results.md).
        regime=RegimeConfig(signal="level", kappa=KAPPA, level_open=level_open, level_closed=level_closed),
        timesteps=STAGE_TIMESTEPS,
        alignment=AlignmentConfig(weight=LAMBDA_0, schedule="decay", every=ALIGNED_EVERY),
        # Beyond the null of rotations: a smooth drift with depth, which any cut divides well, is no grouping.
        structure=StructureConfig(enabled=True, strength=BLOCK_STRENGTH, max_drift_p=0.05),
    )
