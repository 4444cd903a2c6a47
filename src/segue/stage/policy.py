"""What the controller follows. Today every policy is static: one timestep law from the first example to the last."""

from __future__ import annotations

from dataclasses import dataclass, field

from segue.process.timesteps import TimestepLaw, Uniform


@dataclass(frozen=True)
class StaticPolicy:
    """One law throughout: what every published recipe does, and the baseline of everything here.

    Attributes:
        timesteps: the law of training times.
    """

    timesteps: TimestepLaw = field(default_factory=Uniform)

    def describe(self) -> str:
        """The policy in words."""
        return f"static: {self.timesteps}"
