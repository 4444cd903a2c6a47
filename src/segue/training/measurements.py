"""Measurements of our loop: discrepancy and condition gain on a cache's held-out clips, other signals, loss drops."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from segue.data.cache import LatentCache
from segue.memory import malloc_trim
from segue.models.backbone import Backbone
from segue.process.noise import keyed_noise
from segue.process.path import velocity_of
from segue.stage.condition_gain import ConditionGain
from segue.stage.discrepancy import SMALLEST_PROBE, Discrepancy, probes_in
from segue.stage.stage import Stage
from segue.tasks.base import Task
from segue.training.config import RunConfig
from segue.training.features import Extract, FrameGrid, make_extract, teacher_mask
from segue.training.log import RunLog
from segue.training.losses import alignment_inputs
from segue.training.step import Example, losses, run_model
from segue.training.validation import make_validation_set, record_validation, validate
from segue.types import UserError

COSINE_TIME = 0.7  # noise level at which the gradients of alignment and denoising are compared
DROP_TIMES = (0.2, 0.5, 0.8)  # where loss drops are measured; the paper of learned times picks three of its thousand


class Measurements:
    """The measurements that a run's policy needs; the stage calls them when they are due.

    Attributes:
        discrepancy: its evaluator on held-out clips; None where the policy needs none.
        gain: the evaluator of the condition gain on the same clips; None where the policy needs none.
        fingerprint: of the targets of either; () without one.
        stage: the method; set after it has been made, for the cosine of gradients.
        extract: latents -> teacher features; None where the policy needs none.
        validation: last loss at each fixed time.
        seconds: duration of the last measurement.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        cache: LatentCache,
        model: Backbone,
        ema: Backbone,
        accelerator,
        autocast: AbstractContextManager,
        trust_remote_code: bool = False,
    ) -> None:
        """
        Args:
            model: not wrapped.
            ema: its averaged weights.
            trust_remote_code: run the code that comes with the teacher.

        Raises:
            UserError: too few held-out clips, or a signal that needs an alignment which is off.
        """
        self._config = config
        self._cache = cache
        self._model = model
        self._ema = ema
        self._validation_set = make_validation_set(task, cache, config, accelerator)
        self.stage: Stage | None = None
        # D of the averaged weights is three to seven times less noisy (docs/method.md, section 1).
        self._measured = ema if config.policy.probe.weights == "averaged" else model
        self.extract = make_extract(config.policy, cache, task.space, accelerator.device, trust_remote_code)
        self.validation: dict[str, float] = {}
        self.discrepancy: Discrepancy | None = None
        self.gain: ConditionGain | None = None
        self.seconds = 0.0
        policy = config.policy
        if policy.probes or policy.probes_gain:
            assert self.extract is not None  # a policy that probes needs features
            given = probe_set(config, task, cache, self._measured, self.extract, accelerator, autocast)
            self.discrepancy = Discrepancy(**given, times=policy.probe.times) if policy.probes else None
            self.gain = ConditionGain(**given) if policy.probes_gain else None
            # The true clips may have gone through codec and teacher, which is large work done once.
            malloc_trim()
        self.fingerprint = getattr(self.discrepancy or self.gain, "fingerprint", ())
        self._cosine_example: Example | None = None
        if config.policy.regime.signal == "gradient-cosine":
            alignment = config.policy.alignment
            if alignment.weight == 0 or (alignment.space, alignment.target) != ("hidden", "teacher"):
                raise UserError(
                    "regime.signal=gradient-cosine compares with the alignment's gradient: set alignment.weight above "
                    "0 with alignment.space=hidden and alignment.target=teacher, or take another signal"
                )
            self._cosine_example = _cosine_example(task, cache, accelerator.device)

    def __call__(self) -> dict:
        """The measurements as fields of an Observation; the same on every rank."""
        started = time.monotonic()
        signal = self._config.policy.regime.signal
        found: dict[str, Any] = {}
        if self.discrepancy is not None:
            found["discrepancy"] = self.discrepancy()
        if self.gain is not None:
            found["condition_gain"] = self.gain()
        if signal == "validation":
            by_time = validate(self._measured, self._validation_set).values()
            found["validation_loss"] = sum(by_time) / len(by_time)
        if self._cosine_example is not None and self.stage is not None:
            grid = FrameGrid.of(self._cache, self._model.config)
            found["gradient_cosine"] = gradient_cosine(self._model, self.stage, self._cosine_example, grid)
        self.seconds = time.monotonic() - started
        return found

    def validate(self, log: RunLog, seen: int) -> str:
        """Measure and log the loss of the averaged weights at each fixed time; returns a line, and one of a turn."""
        self.validation, turn = record_validation(log, seen, self._ema, self._validation_set)
        loss = sum(self.validation.values()) / len(self.validation)
        epochs = seen / len(self._cache.rows("train"))
        line = f"{seen:,} examples, epoch {epochs:.3g}: held-out loss {loss:.4f}"
        return f"{line}\n{turn}" if turn else line

    def describe(self) -> str | None:
        """One line on the cost of the probe, measured on the untrained model."""
        measures = [m for m in (self.discrepancy, self.gain) if m is not None]
        if not measures:
            return None
        started = time.monotonic()
        for measure in measures:
            measure()
        seconds = time.monotonic() - started
        probe = self._config.policy.probe
        total = self._config.train.total_examples
        count = probes_in(probe, total, self._config.train.batch_size)
        return (
            f"probe: {measures[0].clips} clips at t = {', '.join(f'{t:g}' for t in measures[-1].times)}, as "
            f"{probe.space}; {seconds:.2f} s each, {count} times in {total:,} examples: {count * seconds:.0f} s in all"
        )


def probe_set(
    config: RunConfig,
    task: Task,
    cache: LatentCache,
    model: Backbone,
    extract: Extract,
    accelerator,
    autocast: AbstractContextManager,
) -> dict[str, Any]:
    """What `Discrepancy` and `ConditionGain` take: held-out clips of a cache, and their conditions."""
    rows = probe_rows(cache, config.policy.probe.clips)
    x_0, condition, mask = task.prepare(cache.batch(rows))
    condition = condition.to(accelerator.device)
    mask = None if mask is None else mask.to(accelerator.device)

    def predict(x_t: Tensor, t: Tensor, conditions: Tensor, own_mask: Tensor | None = None) -> Tensor:
        with autocast:
            prediction = model(x_t, t, condition.rows(conditions), own_mask).prediction
        return velocity_of(prediction.float(), model.predicts, x_t, t)

    return {
        "model": model,
        "predict": predict,
        "x_0": x_0,
        "features": extract,
        "mask": teacher_mask(cache, rows),
        "latent_mask": mask,
        # Known parts are the clip's own, also where another clip's condition was given: only what is generated differs.
        "fill_known": None if condition.audio is None else lambda x, rows: condition.rows(rows).fill_known(x),
        "rank": accelerator.process_index,
        "world": accelerator.num_processes,
        "reduce": lambda sums: accelerator.reduce(sums, "sum"),
        "device": accelerator.device,
    }


def probe_rows(cache: LatentCache, clips: int) -> list[int]:
    """Rows of the probe set: evenly spaced in split "valid", filled up from training clips where that is small.

    Raises:
        UserError: fewer clips in all than it needs.
    """
    valid = cache.rows("valid")
    train = cache.rows("train")
    if len(valid) < SMALLEST_PROBE:
        valid = valid + train[: SMALLEST_PROBE - len(valid)]
    if len(valid) < SMALLEST_PROBE:
        raise UserError(
            f"{cache.path}: {len(valid)} clips, a probe needs {SMALLEST_PROBE}; add sounds, or take a recipe without "
            "discrepancy, such as time-ramp"
        )
    count = min(clips, len(valid))
    return [valid[i * len(valid) // count] for i in range(count)]


def gradient_cosine(model: Backbone, stage: Stage, example: Example, grid: FrameGrid) -> float:
    """Cosine between the gradients of alignment and denoising on the blocks up to the tap (HASTE, arXiv 2505.16792).

    On a fixed held-out batch; no gradient is left behind.
    """
    aligner = stage.aligner
    assert aligner is not None and aligner.tap is not None  # `Measurements` has refused other policies
    # Both gradients at the weights that both losses reach.
    reached = [p for block in list(model.blocks)[: aligner.tap.index + 1] for p in block.parameters()]
    weights = [p for p in reached if p.requires_grad]
    with torch.enable_grad():
        outcome = run_model(model, example, model.predicts)
        features, options = alignment_inputs(outcome, example, grid)
        aligned = aligner.distance(features, example.t, **options).mean()
        pairs = [
            torch.autograd.grad(x, weights, retain_graph=True, allow_unused=True)
            for x in (outcome.loss.mean(), aligned)
        ]
    # float64: the sums run over all weights of several blocks.
    flow, alignment = (
        torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in zip(grads, weights)]).double()
        for grads in pairs
    )
    return float(flow @ alignment / (flow.norm() * alignment.norm()).clamp_min(1e-30))


def _cosine_example(task: Task, cache: LatentCache, device: torch.device) -> Example:
    rows = cache.rows("valid")[:32]
    x_0, condition, mask = task.prepare(cache.batch(rows))
    eps = keyed_noise(x_0.shape[1:], 0, "gradient cosine", range(len(rows)))
    t = torch.full((len(rows),), COSINE_TIME)
    return Example(x_0, eps, t, condition, mask, cache.teacher(rows)).to(device)


@contextmanager
def measured_drops(due: bool, model: Backbone, example: Example, accelerator) -> Iterator[list[tuple[float, float]]]:
    """Around the optimiser's step: (time, by how much its loss fell) of each example of the global batch; or [].

    Args:
        due: whether to measure at all.
        model: not wrapped.
        example: this rank's batch.
    """
    pairs: list[tuple[float, float]] = []
    before = _losses(model, example) if due else None
    yield pairs
    if before is not None:
        drops = accelerator.gather(torch.stack([example.t.double(), before - _losses(model, example)], dim=1))
        pairs.extend((float(t), float(drop)) for t, drop in drops)


@torch.no_grad()
def _losses(model: Backbone, example: Example) -> Tensor:
    """Sum over DROP_TIMES of each example's loss, [B] float64, with the noise that it was trained with."""
    at = [replace(example, t=torch.full_like(example.t, t)) for t in DROP_TIMES]
    return reduce(add, (losses(model, e, model.predicts).double() for e in at))
