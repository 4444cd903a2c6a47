"""What the controller follows: where the regime comes from, and what it drives. Plain data.

A static recipe is a policy whose regime nobody reads: one law of training times, no guidance, no block term.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from segue.process.timesteps import TimestepLaw, Uniform
from segue.stage.adaptive_timesteps import TimestepsConfig
from segue.stage.block_structure import StructureConfig
from segue.stage.discrepancy import ProbeConfig
from segue.stage.regime import RegimeConfig
from segue.stage.ssl_guidance import GuidanceConfig

PROBED = ("discrepancy", "level", "slope-over-peak")  # signals that are read off the probe


@dataclass(frozen=True)
class Policy:
    """What drives a run.

    Attributes:
        law: the law of training times where timesteps.law is "static".
        regime: how r is read, or that it is constant.
        timesteps: how r moves the law.
        guidance: how r moves the alignment with the teacher.
        structure: the block term.
        probe: the fixed probe that the discrepancy is measured on.
    """

    law: TimestepLaw = field(default_factory=Uniform)
    regime: RegimeConfig = field(default_factory=lambda: RegimeConfig(signal="constant"))
    timesteps: TimestepsConfig = field(default_factory=TimestepsConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    structure: StructureConfig = field(default_factory=StructureConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    @property
    def probes(self) -> bool:
        """Whether the discrepancy is measured at all."""
        needed = self.regime.signal in PROBED or self.timesteps.law == "per-time"
        return self.probe.run == "always" or (self.probe.run == "auto" and needed)

    @property
    def reads_regime(self) -> bool:
        """Whether r changes anything during the run."""
        return self.regime.signal != "constant"

    @property
    def needs_teacher(self) -> bool:
        """Whether the cache must hold a teacher's features."""
        return self.probes or self.guidance.weight > 0
