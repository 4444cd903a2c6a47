"""The stage controller: state in, decision out. It holds no model, device, file or clock, and works in anybody's loop.

    controller = StageController(policy)
    state = controller.init(total_examples)
    state, decision = controller.update(state, Observation(examples_seen))
    t = decision.timesteps.sample(batch, generator)

The loop asks before every step and does what the decision says. With a static policy the answer never changes, and the
run is the plain baseline.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from segue.process.timesteps import TimestepLaw
from segue.stage.policy import StaticPolicy
from segue.types import UserError


@dataclass(frozen=True)
class Observation:
    """What the loop has seen, already reduced over ranks.

    Attributes:
        examples_seen: training examples so far, over all ranks.
    """

    examples_seen: int


@dataclass(frozen=True)
class Decision:
    """What the loop does until the next update.

    Attributes:
        timesteps: the law that training times are drawn from.
        reason: the decision in words, for the log and the terminal.
    """

    timesteps: TimestepLaw
    reason: str


@dataclass(frozen=True)
class ControllerState:
    """All that the controller remembers; plain numbers, so that it round-trips through JSON.

    Attributes:
        total_examples: planned length of the run.
        examples_seen: progress at the last update.
    """

    total_examples: int
    examples_seen: int = 0

    def to_json(self) -> dict:
        """The state as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> ControllerState:
        """The inverse of `to_json`."""
        return cls(**data)


class StageController:
    """Turns observations into decisions, as its policy says. It keeps nothing between calls."""

    def __init__(self, policy: StaticPolicy) -> None:
        self.policy = policy

    def init(self, total_examples: int) -> ControllerState:
        """The state at the start of a run of `total_examples` examples.

        Raises:
            UserError: the length is not positive.
        """
        if total_examples <= 0:
            raise UserError(f"train.total_examples is {total_examples}; give a positive number of examples")
        return ControllerState(total_examples)

    def update(self, state: ControllerState, observation: Observation) -> tuple[ControllerState, Decision]:
        """The next state and what to do until the next update."""
        state = replace(state, examples_seen=observation.examples_seen)
        return state, Decision(self.policy.timesteps, self.policy.describe())
