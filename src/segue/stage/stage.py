"""The whole method as one object, in our training loop and in anybody's.

    measure = Discrepancy(ema, predict, held_out, features)           # of held-out clips
    stage = Stage(model.blocks, stage_policy(), total_examples=N, measure=measure, targets=features_of_the_data)
    optimizer = AdamW([*model.parameters(), *stage.parameters()])
    for x_0, condition, teacher in loader:
        t = stage.timesteps(len(x_0))                                 # [B], 1 = noise
        loss = flow_loss(model, x_0, t, condition) + stage.alignment(teacher, t)
        loss.backward(); optimizer.step(); optimizer.zero_grad()
        stage.after_step(len(x_0))

`StageController` decides; this holds what it remembers, measures when that is due, and does what it says.
docs/foreign-loops.md shows the lines in four trainers, training/loop.py in ours.
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
from segue.stage.timesteps import importance
from segue.stage.words import Measured, Printer, by_name, log_line
from segue.types import UserError


class Stage:
    """The stage-adaptive method around one model.

    Attributes:
        policy: what drives the run.
        aligner: what aligns with the teacher; None where the policy does not.
        due: what was due at the last decision.
        observation: what the last decision rests on.
        aligned: [B] what `alignment` last found, before its weight; for logs.
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
            policy: what drives the run; `stage_policy()` where None.
            total_examples: N, planned length of the run over all ranks.
            measure: the regime's signal: a `Discrepancy`, or anything that returns its number.
            targets: [..., S, F] teacher features of the training clips or a fair sample, or their mean and standard
                deviation [F] each; alignment standardises by them.
            features: standardised latents [B, C, L] -> standardised teacher features [B, S, F], differentiable; for
                alignment.space "output".
            prepended: tokens before the clip's own (`segue.attach`).
            warmup_examples: examples at which the learning rate reaches its peak.
            decay_from: examples at which it begins to fall. That moves a discrepancy of the online weights by itself,
                and the regime is then held; averaged weights hardly notice.
            seed: of times and of the projector.
            rank, world: this process, and how many there are.
            reduce: averages a float64 tensor over ranks; needed where world > 1, or ranks may decide differently.
            log: called with a plain dictionary (a "stage" line of our log) after every measurement; prints the
                noteworthy ones where None.
            sharding: `whole` and `norm` of `BlockStep`, where weights are split over ranks.

        Raises:
            UserError: the policy needs a measurement or a teacher that is not there, or a tap outside the stack.
        """
        self.policy = policy or stage_policy()
        self.policy.check(measure, targets, features)
        if world > 1 and reduce is None:
            raise UserError("Stage: several ranks need reduce=, which averages a tensor over them")
        self.blocks = list(blocks)
        self._measure = measure
        self._reduce = reduce
        self._log = log or Printer()
        self._seed = seed
        self._rank, self._world = rank, world
        self._warmup = warmup_examples
        self._decay_from = decay_from
        self._controller = StageController(self.policy)
        self._fingerprint = tuple(getattr(measure, "fingerprint", ()))
        self._state = replace(self._controller.init(total_examples), fingerprint=self._fingerprint)
        self._decision: Decision | None = None
        self.steps = 0
        self._drawn = 0  # times of the step at hand, where it takes several batches
        self.due = Due()
        self.observation = Observation(0)
        self._block_step = self.policy.block_step(self.blocks, **sharding)
        self.aligned: Tensor | None = None
        self.aligner: Aligner | None = None
        if self.policy.alignment.weight > 0:
            assert targets is not None  # `check` has seen to it
            statistics = targets if isinstance(targets, tuple) else target_statistics(targets)
            self.aligner = Aligner(self.policy.alignment, self.blocks, statistics, features, prepended, seed)

    @property
    def projector(self) -> nn.Module | None:
        """The alignment's head; None without alignment in hidden space. Its weights are the caller's to optimise, to
        move to a device and to save; on several ranks, wrap it (`stage.projector = DDP(stage.projector)`)."""
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
        """What is in force. The first question after a step measures what is due; so ask once more after the last."""
        if self._decision is None:
            self._decision = self._decide()
        return self._decision

    @property
    def alignment_weight(self) -> float:
        """lambda of the coming step: 0 where it needs no teacher features."""
        return step_weight(self.policy.alignment, self.decision.alignment_weight, self.steps)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The projector's weights, for the optimiser; none without one."""
        return iter(()) if self.projector is None else self.projector.parameters()

    # --- the three calls of a step ------------------------------------------------------------------------------------

    def timesteps(self, batch: int, device: torch.device | str | None = None) -> Tensor:
        """Times [B] float32 of this rank's next batch, stratified over all ranks, keyed by seed and progress."""
        decision = self.decision
        if self._block_step is not None:
            self._block_step.keep(decision.structure, decision.structure_strength, self.steps)
        generator = keyed_generator(self._seed, "times", self.examples_seen + self._drawn)
        self._drawn += batch * self._world
        mine = slice(self._rank * batch, (self._rank + 1) * batch)
        t = decision.timesteps.sample(batch * self._world, generator, stratified=True)[mine]
        return t.to(device or next(self.blocks[0].parameters()).device)

    def alignment(self, features: Tensor, t: Tensor, *, reduction: str = "mean", **options) -> Tensor | float:
        """lambda w(t) L_align; 0.0, for nothing, in steps that it sits out and once it has decayed to 0.

        Call it after the model's forward pass on the same batch.

        Args:
            features: [B, S, F] teacher features of the clean clips, as they come from the teacher.
            t: [B] times of the batch.
            reduction: "mean" over the batch, or "none": [B].
            options: of `Aligner.distance`: masks, `span` where tokens and frames cover different times, `x_0_hat` for
                alignment in output space.
        """
        self.aligned = None
        if self.aligner is None or self.alignment_weight == 0.0:
            return 0.0
        distance = self.aligner.distance(features, t, **options)
        self.aligned = distance.detach()
        return self.alignment_weight * (distance.mean() if reduction == "mean" else distance)

    def importance(self, t: Tensor) -> Tensor:
        """Weights [B] of the losses: 1, or under timesteps.corrected what makes their mean that of uniform times."""
        return importance(self.decision.timesteps, t) if self.decision.corrected else torch.ones_like(t)

    def after_step(
        self, examples: int, *, stepped: bool = True, loss_drops: Sequence[tuple[float, float]] = ()
    ) -> None:
        """After the optimiser's step: move grouped blocks where that is on, and count.

        The next question (`timesteps`, `decision`) measures what is due by then and decides.

        Args:
            examples: seen in this step, over all ranks.
            stepped: False where the optimiser's step was left out.
            loss_drops: (time, by how much its loss fell) of each example, where `due.loss_drops` asked for it.
        """
        if self.due.loss_drops and stepped and not loss_drops:
            raise UserError(
                "Stage: timesteps.distribution 'learned' needs after_step(..., loss_drops=...) of this step"
            )
        if loss_drops:
            found = Observation(self.examples_seen, due=Due(), loss_drops=tuple(loss_drops))
            self._state, _ = self._controller.update(self._state, found)
        if self._block_step is not None and stepped:
            self._block_step.follow(self.decision.structure, self.decision.structure_strength)
        elif self._block_step is not None:
            self._block_step.forget()
        if self.aligner is not None:
            self.aligner.clear()
        self.steps += stepped
        self._drawn = 0
        self._state = replace(self._state, examples_seen=self.examples_seen + examples)
        self._decision = None

    # --- what a checkpoint keeps --------------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """All but the projector's weights, as plain JSON."""
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
        """Take the hook off the model."""
        if self.aligner is not None:
            self.aligner.remove()

    # --- measuring and deciding ---------------------------------------------------------------------------------------

    def _decide(self) -> Decision:
        """Measure what is due, let the controller decide, and say so where something was measured."""
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
        """What is measured, the same on every rank, by the Observation's names; random states stay as they were."""
        device = next(self.blocks[0].parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            found = measure()
        return by_name(found, self.policy, self._same_on_ranks)

    def _same_on_ranks(self, numbers: list[float]) -> list[float]:
        if self._reduce is None:
            return numbers
        device = next(self.blocks[0].parameters()).device
        return self._reduce(torch.tensor(numbers, dtype=torch.float64, device=device)).tolist()
