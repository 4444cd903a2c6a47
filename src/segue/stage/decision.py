"""What passes between a loop and the controller: what is due, what was found, what to do. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from segue.process.timesteps import TimestepDistribution
from segue.stage.discrepancy import Reading
from segue.stage.regime_state import RegimeReading
from segue.stage.variants.block_structure import StructureMeasure, StructureReading, StructureState


@dataclass(frozen=True)
class Due:
    """What is to be measured now: usually nothing.

    Attributes:
        probe: the discrepancy, or whatever the signal is read from.
        structure: the block weights.
        loss_drops: what the coming step gains, for the learned timestep distribution.
    """

    probe: bool = False
    structure: bool = False
    loss_drops: bool = False


@dataclass(frozen=True)
class Observation:
    """What the loop has seen, already reduced over ranks. Every rank passes the same numbers and decides the same.

    Attributes:
        examples_seen: training examples so far, over all ranks.
        due: what was due then, where the loop has asked already (`due_at`); None: the controller looks itself.
        discrepancy: the reading, where one was due.
        validation_loss: fixed-t loss, where the signal is "validation" and a probe was due.
        gradient_cosine: between alignment and denoising gradients, where the signal is "gradient-cosine".
        structure: what the block weights look like, where a check was due.
        loss_drops: (time, by how much its loss fell) of each example of the step at hand, where that was due.
        warmup_end: examples at which the learning rate reaches its peak.
        decaying: the learning rate has begun to fall; that moves every signal by itself, so r is held.
    """

    examples_seen: int
    discrepancy: Reading | None = None
    validation_loss: float | None = None
    gradient_cosine: float | None = None
    structure: StructureMeasure | None = None
    loss_drops: tuple[tuple[float, float], ...] = ()
    warmup_end: int = 0
    decaying: bool = False
    due: Due | None = None

    def signal(self, name: str) -> float | None:
        """The number that a regime signal is read from."""
        if name == "validation":
            return self.validation_loss
        if name == "gradient-cosine":
            return self.gradient_cosine
        return None if self.discrepancy is None else self.discrepancy.value


@dataclass(frozen=True)
class Decision:
    """What the loop does until the next update.

    Attributes:
        timesteps: the distribution that training times are drawn from.
        alignment_weight: lambda; exactly 0 where the teacher is not needed any more.
        structure_strength: of the block term, as a share of the update's norm; 0 where it is off.
        corrected: weigh each loss by uniform density over the distribution's, so that only the variance changes.
        regime: the regime as read last.
        structure: state of the block term (labels, margin).
        next_probe: examples at which the next probe is due; None where nothing is probed.
        check: what the check of the blocks found, where there was one.
        headline: what a person wants to read once: stage, alignment on or off, block term on or off.
        reason: the decision in words, for the log and the terminal.
    """

    timesteps: TimestepDistribution
    alignment_weight: float
    structure_strength: float
    corrected: bool
    regime: RegimeReading
    structure: StructureState
    next_probe: int | None
    check: StructureReading | None = None
    headline: str = ""
    reason: str = ""
