"""The fixed probe: held-out clips, captions, noise and times, measured with the weights as they train.

It draws nothing while it measures and leaves the model as it was, so a run with probes has the weights of one without.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from math import ceil

import torch
from torch import Tensor, nn

from segue.data.cache import LatentCache
from segue.memory import give_back
from segue.process.noise import keyed_noise
from segue.process.path import clean_of, sample_path, velocity_of
from segue.stage.discrepancy import (
    SMALLEST_PROBE,
    Discrepancy,
    ProbeConfig,
    discrepancy_of,
    probe_sums,
    target_statistics,
)
from segue.stage.ssl_guidance import standardise
from segue.tasks.base import Task
from segue.training.ears import Ears, teacher_mask
from segue.types import UserError

AT_ONCE = 16  # predictions in one pass: decoded and heard, 64 would be the peak of a small run's memory


class Probe:
    """Measures D on fixed clips.

    Attributes:
        print: a few numbers that tell its targets apart; a resumed run must have the same.
        clips: how many clips it measures on, over all ranks.
        seconds: that the last measurement took.
    """

    def __init__(
        self,
        config: ProbeConfig,
        task: Task,
        cache: LatentCache,
        statistics: tuple[Tensor, Tensor],
        ears: Ears,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """
        Raises:
            UserError: fewer clips than a probe needs.
        """
        rows = probe_rows(cache, config.clips)
        count = len(rows)
        self.config, self._ears, self._device = config, ears, device
        self.clips, self._mine = count, list(range(rank, count, world))
        x_0, condition, mask = task.prepare(cache.batch(rows), statistics)
        eps = keyed_noise(x_0.shape[1:], 0, "probe", range(count))
        # As many passes on every rank: a sharded model gathers its weights in each.
        self._passes = ceil(ceil(count / world) / AT_ONCE)
        heard_here = self._mine or [0]  # a rank without a clip of its own hears one, and counts none
        self._real = teacher_mask(cache, rows).to(device)
        heard = torch.cat([ears(part.to(device)) for part in condition.complete(x_0).split(AT_ONCE)])
        # Codecs and teachers may answer in inference tensors, which autograd would refuse later.
        heard = heard.clone()[:, : self._real.shape[1]]
        self._mean, self._std = target_statistics(heard, self._real)
        self._targets = standardise(heard, self._mean, self._std)
        self.print = _print_of(heard)
        self._x_0, self._eps = x_0[heard_here].to(device), eps[heard_here].to(device)
        self._mask = None if mask is None else mask[heard_here].to(device)
        self._condition = condition.rows(heard_here).to(device)
        self.seconds = 0.0
        give_back()

    @torch.no_grad()
    def measure(self, model: nn.Module, accelerator, autocast: AbstractContextManager) -> Discrepancy:
        """D of `model` (not wrapped), summed over ranks in float64."""
        started, was_training = time.monotonic(), model.training
        model.eval()
        predicted = torch.stack([self._hear(model, t, autocast) for t in self.config.times])
        sums = probe_sums(predicted[:, : len(self._mine)], self._mine, self._targets, self._real)
        if accelerator.num_processes > 1:
            sums = accelerator.reduce(sums, "sum")
        model.train(was_training)
        self.seconds = time.monotonic() - started
        return discrepancy_of(sums, self.config.times)

    def _hear(self, model: nn.Module, time_: float, autocast: AbstractContextManager) -> Tensor:
        """Standardised features [R, S, F] of the predictions at one time."""
        heard = []
        for part in torch.arange(len(self._x_0)).tensor_split(self._passes):
            x_0, eps = self._x_0[part], self._eps[part]
            mask = None if self._mask is None else self._mask[part]
            condition = self._condition.rows(part)
            t = torch.full((len(x_0),), time_, device=self._device)
            x_t = sample_path(x_0, eps, t)
            with autocast:
                prediction = model(x_t, t, condition, mask).prediction
            clean = clean_of(x_t, velocity_of(prediction.float(), model.predicts, x_t, t), t)
            clean = clean if mask is None else clean * mask[:, None]
            heard.append(self._ears(condition.complete(clean)).clone())
        frames = self._real.shape[1]
        return standardise(torch.cat(heard)[:, :frames].float(), self._mean, self._std)


def probe_rows(cache: LatentCache, clips: int) -> list[int]:
    """Rows of the probe: of split "valid", evenly spaced; a small set's probe is filled up from its training clips.

    Raises:
        UserError: fewer clips in all than a probe needs.
    """
    valid, train = cache.rows("valid"), cache.rows("train")
    if len(valid) < SMALLEST_PROBE:
        valid = valid + train[: SMALLEST_PROBE - len(valid)]
    if len(valid) < SMALLEST_PROBE:
        raise UserError(
            f"{cache.path}: {len(valid)} clips, a probe needs {SMALLEST_PROBE}; add sounds, or take a recipe without "
            "discrepancy, such as time-ramp"
        )
    count = min(clips, len(valid))
    return [valid[i * len(valid) // count] for i in range(count)]


def _print_of(heard: Tensor) -> tuple[float, ...]:
    """A few coarse means of the targets [M, S, F]: they differ between probes, and not between thread counts."""
    clips = heard.double().mean((1, 2)).cpu()
    features = heard.double().mean((0, 1)).cpu()
    return tuple(round(float(part.mean()), 6) for whole in (clips, features) for part in whole.tensor_split(4))
