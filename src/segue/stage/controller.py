"""The stage controller: state in, decision out. It holds no model, device, file or clock, and works in anybody's loop.

    controller = StageController(policy)
    state = controller.init(total_examples)
    ...
    due = controller.due(state, examples_seen)              what to measure now: usually nothing
    state, decision = controller.update(state, Observation(examples_seen, discrepancy=...))
    t = decision.timesteps.sample(batch, generator)
    loss = flow + decision.guidance_weight * alignment

The loop asks before every step and does what the decision says. Between two probes the answer changes only where the
law of times follows the share of the run. With a static policy it never changes, and the run is the plain baseline.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

from segue.process.timesteps import TimestepLaw
from segue.stage.adaptive_timesteps import choose_law
from segue.stage.block_structure import (
    StructureMeasure,
    StructureReading,
    StructureState,
    check_due,
    start_structure,
    structure_strength,
    update_structure,
)
from segue.stage.discrepancy import Discrepancy, next_probe
from segue.stage.learned_timesteps import LearnedState, update_learned
from segue.stage.policy import PROBED, Policy
from segue.stage.regime import RegimeReading, RegimeState, remaining_by_time, stage_name, start_regime, update_regime
from segue.stage.ssl_guidance import guidance_weight
from segue.types import UserError


@dataclass(frozen=True)
class Observation:
    """What the loop has seen, already reduced over ranks. Every rank passes the same numbers and decides the same.

    Attributes:
        examples_seen: training examples so far, over all ranks.
        discrepancy: the probe's reading, where one was due.
        validation_loss: fixed-t loss of the online weights, where the signal is "validation" and a probe was due.
        gradient_cosine: between alignment and denoising gradients, where the signal is "gradient-cosine".
        structure: what the block weights look like, where a check was due.
        warmup_end: examples at which the learning rate reaches its peak.
        decaying: the learning rate has begun to fall; that moves every signal by itself, so r is held.
    """

    examples_seen: int
    discrepancy: Discrepancy | None = None
    validation_loss: float | None = None
    gradient_cosine: float | None = None
    structure: StructureMeasure | None = None
    warmup_end: int = 0
    decaying: bool = False

    def signal(self, name: str) -> float | None:
        """The number that a regime signal is read from."""
        if name in PROBED:
            return None if self.discrepancy is None else self.discrepancy.value
        return {"validation": self.validation_loss, "gradient-cosine": self.gradient_cosine}.get(name)


@dataclass(frozen=True)
class Due:
    """What the loop is to measure before the next update.

    Attributes:
        probe: the discrepancy, or whatever the signal is read from.
        structure: the block weights.
        gains: what the coming step gains, for `learn`.
    """

    probe: bool
    structure: bool
    gains: bool


@dataclass(frozen=True)
class Decision:
    """What the loop does until the next update.

    Attributes:
        timesteps: the law that training times are drawn from.
        guidance_weight: lambda; exactly 0 where the teacher is not needed any more.
        structure_strength: of the block term, as a share of the update's norm; 0 where it is off.
        corrected: weigh each loss by uniform density over the law's, so that only the variance changes.
        regime: the regime as read last.
        structure: state of the block term (labels, margin).
        check: what the check of the blocks found, where there was one.
        next_probe: examples at which the next probe is due; None where nothing is probed.
        headline: what a person wants to hear of once: stage, guidance on or off, block term on or off.
        reason: the decision in words, for the log and the terminal.
    """

    timesteps: TimestepLaw
    guidance_weight: float
    structure_strength: float
    corrected: bool
    regime: RegimeReading
    structure: StructureState
    next_probe: int | None
    check: StructureReading | None = None
    headline: str = ""
    reason: str = ""


@dataclass(frozen=True)
class ControllerState:
    """All that the controller remembers; plain numbers, so that it round-trips through JSON.

    Attributes:
        total_examples: planned length of the run.
        examples_seen: progress at the last update.
        next_probe: examples at which the next probe is due.
        regime: history, references and latches of the regime.
        reading: the regime as read last.
        structure: of the block term.
        learned: of the learned law of times.
        probe_print: numbers that tell the probe's targets apart; a resumed run must have the same.
    """

    total_examples: int
    regime: RegimeState
    reading: RegimeReading
    structure: StructureState
    learned: LearnedState = field(default_factory=LearnedState)
    examples_seen: int = 0
    next_probe: int = 0
    probe_print: tuple[float, ...] = ()

    def to_json(self) -> dict:
        """The state as plain JSON."""
        return {
            "total_examples": self.total_examples,
            "examples_seen": self.examples_seen,
            "next_probe": self.next_probe,
            "probe_print": list(self.probe_print),
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
            parts = {
                "regime": RegimeState.from_json(data["regime"]),
                "reading": RegimeReading(**data["reading"]),
                "structure": StructureState.from_json(data["structure"]),
                "learned": LearnedState.from_json(data["learned"]),
                "probe_print": tuple(data["probe_print"]),
            }
            return cls(**data | parts)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"the controller's state was written by another version of segue ({error})") from error


class StageController:
    """Turns observations into decisions, as its policy says. It keeps nothing between calls."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def init(self, total_examples: int) -> ControllerState:
        """The state at the start of a run of `total_examples` examples.

        Raises:
            UserError: the length is not positive.
        """
        if total_examples <= 0:
            raise UserError(f"train.total_examples is {total_examples}; give a positive number of examples")
        start = start_regime()
        _, reading = update_regime(
            self.policy.regime, start, examples_seen=0, total_examples=total_examples, value=None
        )
        return ControllerState(total_examples, start, reading, start_structure())

    def due(self, state: ControllerState, examples_seen: int) -> Due:
        """What the observation at `examples_seen` has to hold."""
        probing = self.policy.probes or self.policy.reads_regime
        structure = self.policy.structure
        checking = structure.enabled and check_due(structure, state.structure, examples_seen, state.total_examples)
        learning = self.policy.timesteps.law == "learned"
        gains = learning and examples_seen >= state.learned.last + self.policy.timesteps.learn_every
        return Due(probing and examples_seen >= state.next_probe, checking, gains)

    def learn(self, state: ControllerState, gains: list[tuple[float, float]], examples_seen: int) -> ControllerState:
        """The state after (time, gain) of each example of a batch, where `due` asked for them."""
        if not gains:
            return state
        return replace(state, learned=update_learned(state.learned, *zip(*gains), examples_seen))

    def update(self, state: ControllerState, observation: Observation) -> tuple[ControllerState, Decision]:
        """The next state and what to do until the next update."""
        policy, seen = self.policy, observation.examples_seen
        due = self.due(state, seen)
        if due.probe:
            state = self._read_regime(state, observation)
        structure, check = state.structure, None
        if observation.structure is not None:
            structure, check = update_structure(
                policy.structure,
                structure,
                observation.structure,
                regime_monotone=state.reading.regime_monotone,
                examples_seen=seen,
                total_examples=state.total_examples,
            )
        state = replace(state, examples_seen=seen, structure=structure)
        return state, self._decide(state, check)

    def _read_regime(self, state: ControllerState, observation: Observation) -> ControllerState:
        seen, probe = observation.examples_seen, observation.discrepancy
        regime, reading = update_regime(
            self.policy.regime,
            state.regime,
            examples_seen=seen,
            total_examples=state.total_examples,
            value=observation.signal(self.policy.regime.signal),
            by_time=() if probe is None else tuple(d for _, d in probe.by_time),
            warmup_end=observation.warmup_end,
            held=observation.decaying,
        )
        following = next_probe(self.policy.probe, seen, state.total_examples)
        return replace(state, regime=regime, reading=reading, next_probe=following)

    def _decide(self, state: ControllerState, check: StructureReading | None) -> Decision:
        policy, reading = self.policy, state.reading
        share = state.examples_seen / state.total_examples
        remaining = ()
        if policy.timesteps.law == "per-time":
            remaining = remaining_by_time(policy.regime, state.regime, policy.probe.times)
        static = state.learned.law if policy.timesteps.law == "learned" else policy.law
        law = choose_law(
            policy.timesteps, static, regime_slow=reading.regime_slow, remaining_by_time=remaining, share=share
        )
        weight = guidance_weight(policy.guidance, reading.regime_monotone, share)
        strength = structure_strength(policy.structure, state.structure, state.examples_seen, state.total_examples)
        probing = (policy.probes or policy.reads_regime) and state.next_probe <= state.total_examples
        decision = Decision(
            law,
            weight,
            strength,
            policy.timesteps.corrected,
            reading,
            state.structure,
            state.next_probe if probing else None,
            check,
        )
        headline, reason = in_words(policy, decision)
        return replace(decision, headline=headline, reason=reason)


def in_words(policy: Policy, decision: Decision) -> tuple[str, str]:
    """A decision's headline and its whole line: "semantic stage (r 0.12), guidance 0.41, next probe at 12,800"."""
    reading, brief, whole = decision.regime, [], []
    if policy.reads_regime:
        r = reading.regime_slow
        stage = f"{stage_name(r)} by {reading.signal}"
        brief.append(stage)
        whole.append(f"{stage} (r {r:.2f})")
    else:
        brief.append("static")
        whole.append(f"static: {decision.timesteps}")
    if policy.guidance.weight > 0:
        brief.append("guidance on" if decision.guidance_weight else "guidance off")
        whole.append(f"guidance {decision.guidance_weight:.2f}" if decision.guidance_weight else "guidance off")
    if policy.structure.enabled:
        brief.append("block term on" if decision.structure_strength else "block term off")
        whole.append(brief[-1])
    if decision.next_probe is not None and policy.reads_regime:
        whole.append(f"next probe at {decision.next_probe:,} examples")
    return ", ".join(brief), ", ".join(whole)
