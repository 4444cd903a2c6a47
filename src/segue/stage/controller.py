"""The stage controller: state in, decision out. It holds no model, device, file or clock, so any loop can call it.

    controller = StageController(policy)
    state = controller.init(total_examples)
    ...
    due = due_at(policy, state, examples_seen)              # what to measure now: usually nothing
    state, decision = controller.update(state, Observation(examples_seen, discrepancy=..., due=due))
    t = decision.timesteps.sample(batch, generator)
    loss = flow + decision.alignment_weight * alignment

The loop calls `update` before every step. Between two probes the decision changes only where the timestep distribution
depends on the share of the run that is done. With a static policy it never changes, and the run is the plain baseline.
`segue.Stage` makes these calls for a model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

from segue.stage.alignment import alignment_weight
from segue.stage.condition_gain import begun
from segue.stage.decision import Decision, Due, Observation
from segue.stage.discrepancy import next_probe
from segue.stage.policy import Policy
from segue.stage.regime import update_regime
from segue.stage.regime_state import RegimeReading, RegimeState
from segue.stage.reporting import decision_text
from segue.stage.variants.block_structure import (
    StructureReading,
    StructureState,
    check_due,
    start_structure,
    structure_strength,
    update_structure,
)
from segue.stage.variants.learned_timesteps import LearnedState, update_learned
from segue.types import UserError

__all__ = ["ControllerState", "Decision", "Due", "Observation", "StageController", "due_at"]


@dataclass(frozen=True)
class ControllerState:
    """The controller's whole state: numbers that survive a round trip through JSON exactly.

    Attributes:
        total_examples: planned length of the run.
        examples_seen: progress at the last update.
        next_probe: examples at which the next probe is due.
        regime: history, references and latches of the regime.
        reading: the last reading of the regime.
        structure: state of the block term.
        learned: state of the learned timestep distribution.
        fingerprint: numbers that identify the probe's targets; a resumed run must have the same.
    """

    total_examples: int
    regime: RegimeState
    reading: RegimeReading
    structure: StructureState
    learned: LearnedState = field(default_factory=LearnedState)
    examples_seen: int = 0
    next_probe: int = 0
    fingerprint: tuple[float, ...] = ()

    def to_json(self) -> dict:
        """The state as plain JSON."""
        return {
            "total_examples": self.total_examples,
            "examples_seen": self.examples_seen,
            "next_probe": self.next_probe,
            "fingerprint": list(self.fingerprint),
            "regime": self.regime.to_json(),
            "reading": asdict(self.reading),
            "structure": self.structure.to_json(),
            "learned": self.learned.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict) -> ControllerState:
        """The inverse of `to_json`.

        Raises:
            UserError: written by another version.
        """
        try:
            data = dict(data)
            if "probe_print" in data:  # the name of the fingerprint in older states
                data["fingerprint"] = data.pop("probe_print")
            parts = {
                "regime": RegimeState.from_json(data["regime"]),
                "reading": RegimeReading(**data["reading"]),
                "structure": StructureState.from_json(data["structure"]),
                "learned": LearnedState.from_json(data["learned"]),
                "fingerprint": tuple(data["fingerprint"]),
            }
            return cls(**data | parts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the controller's state was written by another version of segue ({error})") from error


def due_at(policy: Policy, state: ControllerState, examples_seen: int) -> Due:
    """What the observation at `examples_seen` has to contain."""
    # A regime that is not read off the discrepancy moves at probes, too.
    probing = policy.probes or policy.reads_regime
    structure = policy.structure
    learning = policy.timesteps.distribution == "learned"
    return Due(
        probe=probing and examples_seen >= state.next_probe,
        structure=structure.enabled and check_due(structure, state.structure, examples_seen, state.total_examples),
        loss_drops=learning and examples_seen >= state.learned.last + policy.timesteps.learn_every,
    )


class StageController:
    """Turns observations into decisions by its policy. It keeps nothing between calls."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def init(self, total_examples: int) -> ControllerState:
        """The state at the start of a run of `total_examples` examples.

        Raises:
            UserError: the length is not positive.
        """
        if total_examples <= 0:
            raise UserError(f"train.total_examples is {total_examples}; give a positive number of examples")
        start = RegimeState()
        # The reading in force until the probe at n = 0; the state stays fresh, since that probe is still to come.
        _, reading = update_regime(self.policy.regime, start, examples_seen=0, total_examples=total_examples)
        return ControllerState(total_examples, start, reading, start_structure())

    def update(self, state: ControllerState, observation: Observation) -> tuple[ControllerState, Decision]:
        """The next state, and the decision in force until the next update."""
        # What was measured, if anything: the regime, the blocks, the losses of the last step.
        policy = self.policy
        seen = observation.examples_seen
        due = due_at(policy, state, seen) if observation.due is None else observation.due
        # The regime comes first: the check of the blocks asks for the r_m of this probe.
        if due.probe:
            state = self._read_regime(state, observation)
        check = None
        if observation.structure is not None:
            structure, check = update_structure(
                policy.structure,
                state.structure,
                observation.structure,
                regime_monotone=state.reading.regime_monotone,
                examples_seen=seen,
                total_examples=state.total_examples,
            )
            state = replace(state, structure=structure)
        if observation.loss_drops:
            times, drops = zip(*observation.loss_drops)
            state = replace(state, learned=update_learned(state.learned, times, drops, seen))

        # What follows from it.
        state = replace(state, examples_seen=seen)
        return state, self._decide(state, check)

    def _read_regime(self, state: ControllerState, observation: Observation) -> ControllerState:
        """The state after a probe, with the next one scheduled."""
        seen = observation.examples_seen
        probe = observation.discrepancy
        regime, reading = update_regime(
            self.policy.regime,
            state.regime,
            examples_seen=seen,
            total_examples=state.total_examples,
            value=observation.signal(self.policy.regime.signal),
            by_time=() if probe is None else tuple(d for _, d in probe.by_time),
            warmup_end=observation.warmup_end,
            held=observation.decaying,
            estimate=self.policy.estimate,
        )
        if observation.condition_gain is not None and self.policy.regime.signal == "condition-gain" and seen == 0:
            regime, reading = begun(regime, reading, observation.condition_gain)
        following = next_probe(self.policy.probe, seen, state.total_examples)
        return replace(state, regime=regime, reading=reading, next_probe=following)

    def _decide(self, state: ControllerState, check: StructureReading | None) -> Decision:
        """The decision that follows from a state: what the regime drives, and the sentence that says so."""
        policy = self.policy
        reading = state.reading
        share = state.examples_seen / state.total_examples
        probing = (policy.probes or policy.reads_regime) and state.next_probe <= state.total_examples
        # lambda follows r_m, so that a decayed alignment does not come back; the times follow r_s, which may fall.
        decision = Decision(
            timesteps=policy.timestep_distribution(state.regime, state.learned, share, reading.regime_slow),
            alignment_weight=alignment_weight(policy.alignment, reading.regime_monotone, share),
            structure_strength=structure_strength(
                policy.structure, state.structure, state.examples_seen, state.total_examples
            ),
            corrected=policy.timesteps.corrected,
            regime=reading,
            structure=state.structure,
            next_probe=state.next_probe if probing else None,
            check=check,
        )
        headline, reason = decision_text(policy, decision)
        return replace(decision, headline=headline, reason=reason)
