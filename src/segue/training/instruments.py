"""What the loop measures for the controller, when the controller says that it is due."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import nn

from segue.data.cache import LatentCache
from segue.process.noise import keyed_noise
from segue.stage.block_structure import measure_structure
from segue.stage.controller import ControllerState, Decision, Due, Observation
from segue.stage.discrepancy import probes_in
from segue.tasks.base import Task
from segue.training.config import RunConfig
from segue.training.ears import Ears
from segue.training.guidance import Guidance
from segue.training.log import RunLog
from segue.training.probe import Probe
from segue.training.sharding import whole_blocks
from segue.training.step import Example, run_model
from segue.training.validation import validate
from segue.types import UserError

COSINE_TIME = 0.7  # noise level at which the gradients of alignment and denoising are compared


class Instruments:
    """Probe, validation, gradients and block signatures of one run.

    Attributes:
        probe: the discrepancy's, or None where the policy needs none.
        seconds: that the last observation took.
        last: the last observation.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        cache: LatentCache,
        statistics: tuple,
        model: nn.Module,
        averaged: nn.Module,
        guidance: Guidance | None,
        validation_set: list[Example],
        accelerator,
        autocast: AbstractContextManager,
        ears: Ears | None,
    ) -> None:
        """
        Args:
            model: not wrapped.
            averaged: the same with averaged weights.
            ears: what the probe hears with.

        Raises:
            UserError: too few clips for a probe, or a signal that needs guidance which is off.
        """
        self.config, self.policy = config, config.policy
        self._model, self._guidance, self._validation_set = model, guidance, validation_set
        self._probed = averaged if self.policy.probe.weights == "averaged" else model
        self._accelerator, self._autocast = accelerator, autocast
        rank, world = accelerator.process_index, accelerator.num_processes
        self.probe, self.seconds = None, 0.0
        if self.policy.probes:
            self.probe = Probe(self.policy.probe, task, cache, statistics, ears, accelerator.device, rank, world)
        self._cosine_example = None
        if self.policy.regime.signal == "gradient-cosine":
            if guidance is None or guidance.tap is None:
                raise UserError(
                    "regime.signal=gradient-cosine compares with the alignment's gradient: set guidance.weight above 0 "
                    "and guidance.space=hidden, or take another signal"
                )
            self._cosine_example = _cosine_example(task, cache, statistics, config, accelerator.device)

    def check(self, state: ControllerState) -> ControllerState:
        """The state with the probe's print in it; a run that goes on must have the probe that it began with.

        Raises:
            UserError: its targets differ.
        """
        if self.probe is None:
            return state
        pairs = list(zip(self.probe.print, state.probe_print or self.probe.print, strict=True))
        if any(not math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3) for a, b in pairs):
            raise UserError(
                "the probe's targets are not those that the run began with; was the teacher, the codec or the cache "
                "replaced? resume with the run's own"
            )
        return replace(state, probe_print=self.probe.print)

    def observe(self, due: Due, state: ControllerState, seen: int) -> Observation:
        """What is due at `seen` examples, the same on every rank."""
        started = time.monotonic()
        optim, total, signal = self.config.optim, state.total_examples, self.policy.regime.signal
        discrepancy = validation = cosine = structure = None
        if due.probe:
            if self.probe is not None:
                discrepancy = self.probe.measure(self._probed, self._accelerator, self._autocast)
            if signal == "validation":
                losses = validate(self._probed, self._validation_set).values()
                validation = sum(losses) / len(losses)
            if signal == "gradient-cosine":
                cosine = gradient_cosine(self._model, self._guidance, self._cosine_example)
        if due.structure:
            with whole_blocks(self._model.blocks):
                structure = measure_structure(self.policy.structure, state.structure, self._model.blocks)
        self.seconds = time.monotonic() - started
        self.last = Observation(
            seen,
            discrepancy=discrepancy,
            validation_loss=validation,
            gradient_cosine=cosine,
            structure=structure,
            warmup_end=round(optim.warmup_fraction * total),
            # An average over a tenth of the run hardly notices the schedule (docs/method.md); weights as they train do.
            decaying=self.policy.probe.weights == "online"
            and optim.decay == "linear"
            and seen >= (1 - optim.decay_fraction) * total,
        )
        return self.last

    def record(self, log: RunLog, due: Due, decision: Decision) -> None:
        """Write what was observed and decided to the log, where something was observed."""
        if due.probe or due.structure:
            log.write("stage", self.last.examples_seen, **self._line(decision))

    def _line(self, decision: Decision) -> dict:
        seen, reading, structure, check = self.last, decision.regime, decision.structure, decision.check
        probe = seen.discrepancy
        line = {
            "discrepancy": None if probe is None else _number(probe.value),
            "discrepancy_by_t": {} if probe is None else {f"{t:g}": _number(d) for t, d in probe.by_time},
            "slope": reading.slope,
            "regime": reading.regime,
            "regime_monotone": reading.regime_monotone,
            "guidance_weight": decision.guidance_weight,
            "timestep_mean": float(decision.timesteps.mean()),
            "structure_active": structure.active_at is not None,
            "groups": list(structure.labels or structure.previous) or None,
            "signal": reading.signal,
            "reason": f"{decision.reason}; {reading.reason}" + (f"; blocks {check.reason}" if check else ""),
            "probe_sec": self.seconds,
        }
        for name in ("validation_loss", "gradient_cosine"):
            if getattr(seen, name) is not None:
                line[name] = _number(getattr(seen, name))
        if check is not None:
            line["similarity"] = seen.structure.similarity
            line["structure_reason"] = check.reason
            line["blocks"] = {n: getattr(check, n) for n in ("ari", "moved", "contrast", "z", "p", "drift_p")}
        return line

    def describe(self, total_examples: int) -> str | None:
        """What the probe costs, in a line, measured on the untrained model."""
        if self.probe is None:
            return None
        self.probe.measure(self._probed, self._accelerator, self._autocast)
        probe = self.policy.probe
        count = probes_in(probe, total_examples, self.config.train.batch_size)
        return (
            f"probe: {self.probe.clips} clips at t = {', '.join(f'{t:g}' for t in probe.times)}, as {probe.space}; "
            f"{self.probe.seconds:.2f} s each, {count} times in {total_examples:,} examples: "
            f"{count * self.probe.seconds:.0f} s in all"
        )


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None


def gradient_cosine(model: nn.Module, guidance: Guidance, example: Example) -> float:
    """Cosine between the gradients of alignment and denoising on the blocks up to the tap (HASTE, arXiv 2505.16792).

    On a fixed held-out batch; no gradient is left behind.
    """
    weights = [p for block in model.blocks[: guidance.tap + 1] for p in block.parameters()]
    with torch.enable_grad():
        outcome = run_model(model, example, model.predicts, tap=guidance.tap)
        aligned = guidance.loss(
            outcome.hidden, example.condition.complete(outcome.x_0_hat), example.t, example.mask, example.teacher
        ).mean()
        pairs = [
            torch.autograd.grad(x, weights, retain_graph=True, allow_unused=True)
            for x in (outcome.loss.mean(), aligned)
        ]
    flow, alignment = (
        torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in zip(grads, weights)]).double()
        for grads in pairs
    )
    return float(flow @ alignment / (flow.norm() * alignment.norm()).clamp_min(1e-30))


def _cosine_example(
    task: Task, cache: LatentCache, statistics: tuple, config: RunConfig, device: torch.device
) -> Example:
    rows = cache.rows("valid")[:32]
    x_0, condition, mask = task.prepare(cache.batch(rows), statistics)
    eps = keyed_noise(x_0.shape[1:], 0, "gradient cosine", range(len(rows)))
    t = torch.full((len(rows),), COSINE_TIME)
    return Example(x_0, eps, t, condition, mask, cache.teacher(rows)).to(device)
