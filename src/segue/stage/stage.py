"""The whole method as one object, for our training loop and any other.

    measure = Discrepancy(ema, predict, held_out, features)           # of held-out clips
    stage = Stage(model.blocks, stage_policy(), total_examples=N, measure=measure, targets=features_of_the_data)
    optimizer = AdamW([*model.parameters(), *stage.parameters()])
    for x_0, condition, teacher in loader:
        t = stage.timesteps(len(x_0))                                 # [B], 1 = noise
        loss = flow_loss(model, x_0, t, condition) + stage.alignment(teacher, t)
        loss.backward(); optimizer.step(); optimizer.zero_grad()
        stage.after_step(len(x_0))

`StageController` decides. `Stage` keeps the controller's state, measures when a measurement is due, and carries the
decisions out. docs/foreign-loops.md shows these calls in four other trainers, training/loop.py in ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from segue.process.noise import keyed_generator
from segue.stage.alignment import Aligner, step_weight
from segue.stage.controller import ControllerState, Decision, Due, Observation, StageController, due_at
from segue.stage.discrepancy import target_statistics
from segue.stage.policy import Policy, stage_policy
from segue.stage.reporting import Measured, Printer, log_line, named_measurements
from segue.stage.tap import list_of_blocks
from segue.stage.timesteps import importance
from segue.types import UserError


class Stage:
    """The stage-adaptive method around one model.

    Attributes:
        policy: how the run is driven.
        aligner: the alignment loss; None where the policy has none.
        due: the measurements that were due at the last decision.
        observation: the measurements of the last decision.
        aligned: [B] last result of `alignment`, before its weight; for logs.
        steps: optimiser steps taken.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        policy: Policy | None = None,
        *,
        total_examples: int,
        measure: Callable[[], Measured] | None = None,
        targets: Tensor | tuple[Tensor, Tensor] | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        prepended: int = 0,
        warmup_examples: int = 0,
        decay_from: float = math.inf,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        reduce: Callable[[Tensor], Tensor] | None = None,
        log: Callable[[dict], None] | None = None,
        **sharding: Callable,
    ) -> None:
        """
        Args:
            blocks: the model's list of transformer blocks.
            policy: how the run is driven; `stage_policy()` where None.
            total_examples: N, planned length of the run over all ranks.
            measure: returns the regime's signal: a `Discrepancy`, or any function that returns a number.
            targets: [..., S, F] teacher features of the training clips or a fair sample, or their mean and standard
                deviation [F] each; alignment standardises by them.
            features: standardised latents [B, C, L] -> standardised teacher features [B, S, F], differentiable; for
                alignment.space "output".
            prepended: tokens before the clip's own (`segue.attach`).
            warmup_examples: examples at which the learning rate reaches its peak.
            decay_from: examples at which it begins to fall; from there on the regime is held. Give it where the
                discrepancy is that of online weights, which the decay changes by itself.
            seed: of times and of the projector.
            rank, world: index of this process, and number of processes.
            reduce: averages a float64 tensor over ranks, so that all decide the same; needed where world > 1.
            log: called with a dictionary (a "stage" line of log.jsonl) after every measurement. Where None, lines are
                printed whenever something has changed.
            sharding: `whole` and `norm` of `BlockStep`, where weights are split over ranks.

        Raises:
            UserError: the policy needs an argument that is missing, or its tap lies outside the stack.
        """
        self.policy = policy or stage_policy()
        self.policy.check(measure, targets, features)
        if world > 1 and reduce is None:
            raise UserError("Stage: several ranks need reduce=, which averages a tensor over them")
        self.blocks = list_of_blocks(blocks, "Stage")
        self._measure = measure
        self._log = log or Printer()
        self._seed = seed
        self._warmup = warmup_examples
        self._decay_from = decay_from
        self._rank, self._world = rank, world
        self._reduce = reduce

        # The controller, and what it last saw and decided.
        self._controller = StageController(self.policy)
        self._fingerprint = tuple(getattr(measure, "fingerprint", ()))
        self._state = replace(self._controller.init(total_examples), fingerprint=self._fingerprint)
        self.due = Due()
        self.observation = Observation(0)
        self._decision: Decision | None = None  # None: to be made at the next access
        self.steps = 0
        self._drawn = 0  # times drawn since the last step, for loops that call `timesteps` once per piece of a batch

        # What acts on the model: the block term and the alignment.
        self._block_step = self.policy.block_step(self.blocks, **sharding)
        self.aligned: Tensor | None = None
        self.aligner: Aligner | None = None
        if self.policy.alignment.weight > 0:
            assert targets is not None  # `check` has refused None
            statistics = targets if isinstance(targets, tuple) else target_statistics(targets)
            self.aligner = Aligner(self.policy.alignment, self.blocks, statistics, features, prepended, seed)

    @property
    def projector(self) -> nn.Module | None:
        """The projector of the alignment; None without alignment in hidden space.

        The caller optimises its weights, moves them to a device and saves them. On several ranks, wrap it:
        `stage.projector = DDP(stage.projector)`.
        """
        return None if self.aligner is None else self.aligner.projector

    @projector.setter
    def projector(self, wrapped: nn.Module) -> None:
        if self.aligner is None:
            raise UserError("Stage: the policy aligns with no teacher, so that there is no projector to wrap")
        self.aligner.projector = wrapped

    @property
    def total_examples(self) -> int:
        """N."""
        return self._state.total_examples

    @property
    def examples_seen(self) -> int:
        """n."""
        return self._state.examples_seen

    @property
    def decision(self) -> Decision:
        """The decision in force. The first access after a step measures what is due, after the last step as well."""
        if self._decision is None:
            self._decision = self._decide()
        return self._decision

    @property
    def alignment_weight(self) -> float:
        """lambda of the coming step; where it is 0 the step needs no teacher features."""
        return step_weight(self.policy.alignment, self.decision.alignment_weight, self.steps)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The projector's weights, for the optimiser; none without one."""
        return iter(()) if self.projector is None else self.projector.parameters()

    # --- the three calls of a step ------------------------------------------------------------------------------------

    def timesteps(self, batch: int, device: torch.device | str | None = None) -> Tensor:
        """Times [B] float32 of this rank's next batch: stratified over all ranks, keyed by seed and examples seen.

        Raises:
            UserError: `after_step` seems to be missing from the loop: more times are drawn than the run has examples.
        """
        decision = self.decision
        if self._block_step is not None:
            self._block_step.keep(decision.structure, decision.structure_strength, self.steps)
        if self._drawn > self.total_examples:
            raise UserError("Stage: more times drawn than the run has; hint: call after_step(examples) after each step")
        # Every rank draws the whole global batch and takes its part, so that the strata span all ranks.
        generator = keyed_generator(self._seed, "times", self.examples_seen + self._drawn)
        self._drawn += batch * self._world
        mine = slice(self._rank * batch, (self._rank + 1) * batch)
        t = decision.timesteps.sample(batch * self._world, generator, stratified=True)[mine]
        return t.to(device or next(self.blocks[0].parameters()).device, non_blocking=torch.cuda.is_available())

    def alignment(self, features: Tensor, t: Tensor, *, reduction: str = "mean", **options) -> Tensor | float:
        """lambda w(t) L_align of a batch, after the model's forward pass on it.

        It is 0.0, without any computation, in steps that are not aligned and once lambda has decayed to 0.

        Args:
            features: [B, S, F] teacher features of the clean clips, not standardised.
            t: [B] times of the batch.
            reduction: "mean" over the batch, or "none": [B].
            options: of `Aligner.distance`: masks, `span` where tokens and frames cover different times, `x_0_hat` for
                alignment in output space.
        """
        self.aligned = None
        if self.aligner is None or self.alignment_weight == 0.0:
            return 0.0
        distance = self.aligner.distance(features, t, step=self.steps, **options)
        self.aligned = distance.detach()
        return self.alignment_weight * (distance.mean() if reduction == "mean" else distance)

    def importance(self, t: Tensor) -> Tensor:
        """Weights [B] of the losses: 1, or with timesteps.corrected those whose mean loss is that of uniform times."""
        return importance(self.decision.timesteps, t) if self.decision.corrected else torch.ones_like(t)

    def after_step(
        self, examples: int, *, stepped: bool = True, loss_drops: Sequence[tuple[float, float]] = ()
    ) -> None:
        """To be called after each step of the optimiser: takes the step of the block term, and counts examples.

        The next access to `timesteps` or `decision` measures what has become due, and decides.

        Args:
            examples: number of examples of this step, over all ranks.
            stepped: False where the optimiser's step was skipped.
            loss_drops: (time, decrease of its loss) of each example, where `due.loss_drops` is set.

        Raises:
            UserError: loss drops are due and missing.
        """
        if self.due.loss_drops and stepped and not loss_drops:
            raise UserError(
                "Stage: timesteps.distribution 'learned' needs after_step(..., loss_drops=...) of this step"
            )
        if loss_drops:
            # An empty Due: these drops alone are learned from; nothing is probed within a step.
            found = Observation(self.examples_seen, due=Due(), loss_drops=tuple(loss_drops))
            self._state, _ = self._controller.update(self._state, found)
        if self._block_step is not None and stepped:
            self._block_step.follow(self.decision.structure, self.decision.structure_strength)
        elif self._block_step is not None:
            self._block_step.forget()
        if self.aligner is not None:
            self.aligner.clear()  # the tapped tokens hold the graph of this step
        # A skipped step is no step, but its examples count as seen: data, noise and times keep their order.
        self.steps += stepped
        self._drawn = 0
        self._state = replace(self._state, examples_seen=self.examples_seen + examples)
        self._decision = None

    # --- state of a checkpoint ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """The state as plain JSON, without the projector's weights."""
        return {"controller": self._state.to_json(), "steps": self.steps}

    def load_state_dict(self, data: dict) -> None:
        """The inverse of `state_dict`.

        Raises:
            UserError: written by another version, for a run of another length, or measured on other clips.
        """
        state = ControllerState.from_json(data["controller"])
        pairs = zip(self._fingerprint, state.fingerprint or self._fingerprint)
        if any(not math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3) for a, b in pairs):
            raise UserError(
                "the probe's targets are not those that the run began with; was the teacher, the codec or the cache "
                "replaced? resume with the run's own"
            )
        if state.total_examples != self._state.total_examples:
            raise UserError(
                f"Stage: the state is of a run of {state.total_examples} examples, not {self._state.total_examples}"
            )
        self._state = replace(state, fingerprint=self._fingerprint)
        self._decision = None
        self.steps = data["steps"]
        self._drawn = 0

    def remove(self) -> None:
        """Remove the hook from the model."""
        if self.aligner is not None:
            self.aligner.remove()

    # --- measuring and deciding ---------------------------------------------------------------------------------------

    def _decide(self) -> Decision:
        """Measure what is due, let the controller decide, and log the decision where something was measured."""
        self.due = due_at(self.policy, self._state, self.examples_seen)
        found = self._measured(self._measure) if self.due.probe and self._measure is not None else {}
        if self.due.structure and self._block_step is not None:
            found["structure"] = self._block_step.measure(self._state.structure)
        decaying = self.examples_seen >= self._decay_from
        self.observation = Observation(
            self.examples_seen, due=self.due, warmup_end=self._warmup, decaying=decaying, **found
        )
        self._state, decision = self._controller.update(self._state, self.observation)
        if self.due.probe or self.due.structure:
            self._log(log_line(self.observation, decision))
        return decision

    def _measured(self, measure: Callable[[], Measured]) -> dict[str, Any]:
        """The measurement as fields of an Observation, the same on every rank; random states stay as they were."""
        device = next(self.blocks[0].parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            found = measure()
        return named_measurements(found, self.policy, self._same_on_ranks)

    def _same_on_ranks(self, numbers: list[float]) -> list[float]:
        if self._reduce is None:
            return numbers
        # All ranks must decide the same, by the mean of what each has measured. float64 holds Python's floats exactly.
        device = next(self.blocks[0].parameters()).device
        return self._reduce(torch.tensor(numbers, dtype=torch.float64, device=device)).tolist()
