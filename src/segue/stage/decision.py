"""What a loop and the controller exchange: what is due, what was measured, what was decided. Frozen data."""

from __future__ import annotations

from dataclasses import dataclass

from segue.process.timesteps import TimestepDistribution
from segue.stage.condition_gain import GainReading
from segue.stage.discrepancy import Reading
from segue.stage.regime_state import RegimeReading
from segue.stage.variants.block_structure import StructureMeasure, StructureReading, StructureState


@dataclass(frozen=True)
class Due:
    """What is to be measured before the coming step; at most steps nothing.

    Attributes:
        probe: the discrepancy, or another signal of the regime.
        structure: the block weights.
        loss_drops: by how much the coming step lowers the loss, for the learned timestep distribution.
    """

    probe: bool = False
    structure: bool = False
    loss_drops: bool = False


@dataclass(frozen=True)
class Observation:
    """What the loop has measured, already reduced over ranks: every rank passes the same numbers and decides the same.

    Attributes:
        examples_seen: training examples so far, over all ranks.
        due: what was due (`due_at`); None where the loop has not asked, and the controller finds out itself.
        discrepancy: the measured discrepancy, where a probe was due.
        condition_gain: the measured condition gain, where the signal is "condition-gain" and a probe was due.
        validation_loss: fixed-t loss, where the signal is "validation" and a probe was due.
        gradient_cosine: between alignment and denoising gradients, where the signal is "gradient-cosine".
        structure: similarities and groups of the block weights, where a check was due.
        loss_drops: (time, by how much its loss fell) of each example of the step at hand, where that was due.
        warmup_end: examples at which the learning rate reaches its peak.
        decaying: the learning rate has begun to fall; that moves every signal by itself, so r is held.
    """

    examples_seen: int
    discrepancy: Reading | None = None
    condition_gain: GainReading | None = None
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
        if name == "condition-gain":
            return None if self.condition_gain is None else self.condition_gain.value
        return None if self.discrepancy is None else self.discrepancy.value


@dataclass(frozen=True)
class Decision:
    """What the controller has decided; in force until the next update.

    Attributes:
        timesteps: the distribution that training times are drawn from.
        alignment_weight: lambda; exactly 0 once the teacher is no longer needed.
        structure_strength: of the block term, as a share of the update's norm; 0 where it is off.
        corrected: weigh each loss by uniform density over the distribution's, so that only the variance changes.
        regime: the last reading of the regime.
        structure: state of the block term (labels, margin).
        next_probe: examples at which the next probe is due; None where nothing is probed.
        check: what the check of the blocks found, where there was one.
        headline: stage, alignment on or off, block term on or off; printed when it changes.
        reason: the whole decision as a sentence, for the log and the terminal.
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
