"""The whole method in somebody else's training loop.

    stage = Stage(total_examples, model.blocks, teacher=features, probe=Probe(model, predict, held_out, hear))
    optimizer = AdamW([*model.parameters(), *stage.parameters()])
    ...
    t = stage.timesteps(batch_size)                      # [B], 1 = noise
    loss = flow_loss(...) + stage.guidance(features[rows], t)
    ...
    optimizer.step()
    stage.after_step(batch_size)

`StageController` decides; this holds what it remembers, measures when it asks, and does what it says.
docs/foreign-loops.md shows the lines in four trainers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from segue.integrations.attach import attach
from segue.process.noise import keyed_generator, keyed_noise
from segue.process.path import clean_of, sample_path
from segue.stage.adaptive_timesteps import LEANING, importance
from segue.stage.block_structure import measure_structure, structure_step
from segue.stage.controller import ControllerState, Decision, Observation, StageController
from segue.stage.discrepancy import (
    SMALLEST_PROBE,
    Discrepancy,
    ProbeConfig,
    discrepancy_of,
    probe_sums,
    target_statistics,
)
from segue.stage.policy import Policy
from segue.stage.regime import RegimeConfig
from segue.stage.ssl_guidance import (
    GuidanceConfig,
    Projector,
    alignment_loss,
    standardise,
    step_weight,
    time_weight,
)
from segue.types import UserError


def stage_policy() -> Policy:
    """Regime from the discrepancy, decaying guidance of 0.5 and times that follow the regime; no block term."""
    return Policy(regime=RegimeConfig(), timesteps=LEANING, guidance=GuidanceConfig(weight=0.5))


class Printer:
    """Stage lines on the terminal: the first, and one for each tenth that r moves or whenever the headline changes."""

    def __init__(self) -> None:
        self._said: tuple | None = None

    def __call__(self, line: dict) -> None:
        said = (line["headline"], round(line["regime"], 1))
        if said != self._said:
            print(f"{line['examples_seen']:,} examples: {line['reason']}")
        self._said = said


class Probe:
    """The fixed probe of the discrepancy (METHOD section 1), for any model of the velocity eps - x_0.

    Noise is fixed, the model is measured in eval mode without gradients, and is left as it was.
    """

    def __init__(
        self,
        model: nn.Module,
        predict: Callable[[Tensor, Tensor], Tensor],
        x_0: Tensor,
        hear: Callable[[Tensor], Tensor],
        *,
        mask: Tensor | None = None,
        times: tuple[float, ...] = ProbeConfig().times,
        seed: int = 0,
    ) -> None:
        """
        Args:
            model: what is set to eval mode; measure the online weights, not their average.
            predict: (x_t [M, C, L], t [M]) -> velocity [M, C, L] for these very clips, under their own conditions.
            x_0: [M, C, L] clean latents of held-out clips, on the model's device; 64 are a good number.
            hear: latents [M, C, L] -> teacher features [M, S, F], through the codec; called once on x_0.
            mask: [M, S] bool, True where a teacher frame is real; None where all are.
            times: t_k.
            seed: of the noise.

        Raises:
            UserError: fewer than 8 clips.
        """
        if len(x_0) < SMALLEST_PROBE:
            raise UserError(f"Probe: {len(x_0)} clips; a probe needs at least {SMALLEST_PROBE} held-out clips")
        self.model, self.predict, self.hear, self.times = model, predict, hear, tuple(times)
        self._x_0 = x_0
        self._eps = keyed_noise(x_0.shape[1:], seed, "probe", range(len(x_0))).to(x_0)
        with torch.no_grad():
            heard = hear(x_0).clone()
        self._mask = torch.ones(heard.shape[:2], dtype=torch.bool, device=heard.device) if mask is None else mask
        self._mean, self._std = target_statistics(heard, self._mask)
        self._targets = standardise(heard, self._mean, self._std)

    @torch.no_grad()
    def __call__(self) -> Discrepancy:
        """D with the weights of now."""
        was_training = self.model.training
        self.model.eval()
        try:
            heard = torch.stack([self._hear_at(time) for time in self.times])
        finally:
            self.model.train(was_training)
        return discrepancy_of(probe_sums(heard, list(range(len(self._x_0))), self._targets, self._mask), self.times)

    def _hear_at(self, time: float) -> Tensor:
        t = torch.full((len(self._x_0),), time, device=self._x_0.device)
        x_t = sample_path(self._x_0, self._eps, t)
        clean = clean_of(x_t, self.predict(x_t, t).to(x_t.dtype), t)
        return standardise(self.hear(clean), self._mean, self._std)


class Stage:
    """The stage-adaptive method, held for a loop that is not ours.

    Attributes:
        decision: what is in force (`segue.stage.controller.Decision`).
        projector: the guidance head; None without guidance. Its weights are the caller's to optimise, to move to a
            device and to save; on several ranks, wrap it (`stage.projector = DDP(stage.projector)`).
        tap: the `segue.attach` handle.
    """

    def __init__(
        self,
        total_examples: int,
        blocks: Iterable[nn.Module],
        *,
        teacher: Tensor | None = None,
        probe: Callable[[], Discrepancy | float] | None = None,
        policy: Policy | None = None,
        prepended: int = 0,
        warmup_examples: int = 0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        reduce: Callable[[Tensor], Tensor] | None = None,
        log: Callable[[dict], None] | None = None,
    ) -> None:
        """
        Args:
            total_examples: N, planned length of the run over all ranks.
            blocks: the model's list of transformer blocks.
            teacher: [..., S, F] teacher features of the training clips or a fair sample; their statistics standardise.
            probe: what measures the regime's signal: a `Probe`, or anything that returns its number.
            policy: what drives the run; `stage_policy()` where None.
            prepended: tokens before the clip's own (`segue.attach`).
            warmup_examples: examples at which the learning rate reaches its peak.
            seed: of times and of the projector.
            rank, world: this process, and how many there are.
            reduce: averages a float64 tensor over ranks; needed where world > 1, or ranks may decide differently.
            log: called with a plain dictionary (the keys of a "stage" line of our log) after every measurement; prints
                the noteworthy ones where None.

        Raises:
            UserError: the policy needs a probe or a teacher that is not there, or a tap outside the stack.
        """
        self._policy = policy or stage_policy()
        signal = self._policy.regime.signal
        if probe is None and (self._policy.probes or signal in ("validation", "gradient-cosine")):
            raise UserError(
                f"Stage: nothing measures the probe (regime.signal '{signal}'); "
                "give probe=, or a policy with regime.signal 'time' or 'constant'"
            )
        if self._policy.timesteps.law == "learned":
            raise UserError("Stage: timesteps.law 'learned' looks into the step and runs in segue's own loop only")
        guidance = self._policy.guidance
        if guidance.space == "output":
            raise UserError(
                "Stage: guidance.space is 'output'; add stage.ssl_guidance.output_alignment to your own loss"
            )
        if guidance.weight > 0 and teacher is None:
            raise UserError("Stage: guidance needs teacher= (features of the training clips), or guidance.weight 0")
        if world > 1 and reduce is None:
            raise UserError("Stage: several ranks need reduce=, which averages a tensor over them")
        self._controller = StageController(self._policy)
        self._state = self._controller.init(total_examples)
        self._probe, self._reduce, self._log = probe, reduce, log or Printer()
        self._seed, self._rank, self._world, self._warmup = seed, rank, world, warmup_examples
        self._drawn = self._steps = 0
        self._before: list[Tensor] = []
        self._decision: Decision | None = None
        self.tap = attach(blocks, guidance.tap, prepended)
        self.blocks, self.projector = self.tap.blocks, None
        if guidance.weight > 0:
            frames = teacher.detach().flatten(0, -2)
            self._mean, self._std = target_statistics(
                frames, torch.ones(len(frames), dtype=torch.bool, device=frames.device)
            )
            width = _width(self.blocks[self.tap.index])
            self.projector = Projector(width, teacher.shape[-1], guidance.projector, guidance.hidden, seed=seed)
            self.projector.to(next(self.blocks[0].parameters()).device)

    @property
    def examples_seen(self) -> int:
        """n."""
        return self._state.examples_seen

    @property
    def decision(self) -> Decision:
        """What is in force; the first question measures the untrained model."""
        if self._decision is None:
            self._update(self._state.examples_seen, decaying=False)
        return self._decision

    def parameters(self) -> Iterator[nn.Parameter]:
        """The projector's weights, for the optimiser; none without guidance."""
        return iter(()) if self.projector is None else self.projector.parameters()

    def timesteps(self, batch: int, device: torch.device | str | None = None) -> Tensor:
        """Times [B] float32 of this rank's next batch, stratified over all ranks, keyed by seed and progress."""
        law = self.decision.timesteps
        self._keep_weights()
        generator = keyed_generator(self._seed, "times", self.examples_seen + self._drawn)
        self._drawn += batch * self._world
        t = law.sample(batch * self._world, generator, stratified=True)[self._rank * batch : (self._rank + 1) * batch]
        return t.to(device or next(self.blocks[0].parameters()).device)

    def guidance(
        self,
        features: Tensor,
        t: Tensor,
        *,
        mask: Tensor | None = None,
        tokens_mask: Tensor | None = None,
        span: float = 1.0,
    ) -> Tensor | float:
        """lambda times the batch's mean of w(t) L_align; 0.0, for nothing, in steps that guidance sits out
        (`guidance.every`) and once it has ended.

        Call it after the model's forward pass on the same batch.

        Args:
            features: [B, S, F] teacher features of the clean clips, as they come from the teacher.
            t: [B] times of the batch.
            mask: [B, S] bool, True where a teacher frame is real.
            tokens_mask: [B, N] bool, True where a token is real.
            span: time that the S frames cover over the time that the N tokens cover; 1 where both span the clip.

        Raises:
            UserError: the model has not run, or the tapped tokens carry no gradient.
        """
        weight = step_weight(self._policy.guidance, self.decision.guidance_weight, self._steps)
        if weight == 0.0:
            return 0.0
        hidden = self.tap.hidden
        target = standardise(*(x.to(hidden.device) for x in (features, self._mean, self._std)))
        projected = self.projector(hidden.to(target.dtype), target.shape[1], tokens_mask, span)
        aligned = alignment_loss(projected, target, mask)
        return weight * (time_weight(t, self._policy.guidance.t_min) * aligned).mean()

    def importance(self, t: Tensor) -> Tensor:
        """Weights [B] of the losses: 1, or under timesteps.corrected what makes their mean that of uniform times."""
        return importance(self.decision.timesteps, t) if self.decision.corrected else torch.ones_like(t)

    def after_step(self, examples: int, *, decaying: bool = False) -> Decision:
        """After the optimiser's step: count, measure what is due, decide, and move grouped blocks where that is on.

        Args:
            examples: seen in this step, over all ranks.
            decaying: the learning rate has begun to fall, which holds the regime.
        """
        self._block_step()
        self.tap.clear()
        self._drawn, self._steps = 0, self._steps + 1
        return self._update(self._state.examples_seen + examples, decaying)

    def state_dict(self) -> dict:
        """All but the projector's weights, as plain JSON."""
        return {"controller": self._state.to_json(), "steps": self._steps}

    def load_state_dict(self, data: dict) -> None:
        """The inverse of `state_dict`.

        Raises:
            UserError: written by another version, or for a run of another length.
        """
        state = ControllerState.from_json(data["controller"])
        if state.total_examples != self._state.total_examples:
            raise UserError(
                f"Stage: the state is of a run of {state.total_examples} examples, not {self._state.total_examples}"
            )
        self._state, self._steps, self._drawn, self._decision = state, data["steps"], 0, None

    def remove(self) -> None:
        """Take the hook off the model."""
        self.tap.remove()

    def _update(self, seen: int, decaying: bool) -> Decision:
        due = self._controller.due(self._state, seen)
        signal, reading, structure = self._policy.regime.signal, None, None
        if due.probe and self._probe is not None:
            reading = self._measure()
        if due.structure:
            structure = measure_structure(self._policy.structure, self._state.structure, self.blocks)
        observation = Observation(
            seen,
            discrepancy=reading if signal not in ("validation", "gradient-cosine") else None,
            validation_loss=reading.value if reading and signal == "validation" else None,
            gradient_cosine=reading.value if reading and signal == "gradient-cosine" else None,
            structure=structure,
            warmup_end=self._warmup,
            decaying=decaying,
        )
        self._state, self._decision = self._controller.update(self._state, observation)
        if due.probe or due.structure:
            self._log(self._line(reading))
        return self._decision

    def _measure(self) -> Discrepancy:
        """The probe's reading, the same on every rank; random states stay as they were."""
        device = next(self.blocks[0].parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            found = self._probe()
        if not isinstance(found, Discrepancy):
            found = Discrepancy(float(found), ())
        if self._policy.timesteps.law == "per-time" and tuple(t for t, _ in found.by_time) != self._policy.probe.times:
            raise UserError("Stage: timesteps.law 'per-time' needs a Probe with times=policy.probe.times")
        if self._reduce is None:
            return found
        numbers = torch.tensor([found.value, *(d for _, d in found.by_time)], dtype=torch.float64, device=device)
        value, *parts = self._reduce(numbers).tolist()
        return Discrepancy(value, tuple((t, d) for (t, _), d in zip(found.by_time, parts)))

    def _line(self, reading: Discrepancy | None) -> dict:
        decision = self._decision
        structure, regime = decision.structure, decision.regime
        return {
            "examples_seen": self.examples_seen,
            "discrepancy": _number(reading),
            "discrepancy_by_t": {} if reading is None else {f"{t:g}": d for t, d in reading.by_time},
            "slope": regime.slope,
            "regime": regime.regime,
            "regime_monotone": regime.regime_monotone,
            "guidance_weight": decision.guidance_weight,
            "timestep_mean": decision.timesteps.mean(),
            "structure_active": structure.active_at is not None,
            "groups": list(structure.labels or structure.previous) or None,
            "signal": regime.signal,
            "headline": decision.headline,
            "reason": f"{decision.reason}; {regime.reason}",
        }

    def _grouped(self) -> list[nn.Parameter]:
        labels = self.decision.structure.labels
        return [p for label, block in zip(labels, self.blocks) if label >= 0 for p in block.parameters()]

    def _keep_weights(self) -> None:
        """Before a step that the block term follows: the weights, to see how far the optimiser moves them."""
        every = self._policy.structure.every
        if self.decision.structure_strength > 0 and self._steps % every == 0 and not self._before:
            self._before = [p.detach().clone() for p in self._grouped()]

    @torch.no_grad()
    def _block_step(self) -> None:
        if not self._before:
            return
        config, decision = self._policy.structure, self.decision
        moved = math.sqrt(sum(float((p - b).square().sum()) for p, b in zip(self._grouped(), self._before)))
        self._before = []
        norm = decision.structure_strength * config.every * moved
        structure_step(self.blocks, decision.structure, norm, config.control, config.readers, config.writers)


def _number(reading: Discrepancy | None) -> float | None:
    """JSON knows no NaN."""
    return reading.value if reading is not None and math.isfinite(reading.value) else None


def _width(block: nn.Module) -> int:
    """D: the commonest side of a block's linear layers."""
    sides = [side for module in block.modules() if isinstance(module, nn.Linear) for side in module.weight.shape]
    if not sides:
        raise UserError(f"Stage: block {type(block).__name__} has no linear layer; give the list of transformer blocks")
    return max(sorted(set(sides)), key=sides.count)
