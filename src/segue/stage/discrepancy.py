"""The discrepancy D: how far a model's one-step predictions are from held-out clips, in a teacher's feature space.

The probe set is fixed: held-out clips, their conditions, noise, and times t_k. At each t_k, d_k is one minus the mean
cosine between the teacher's frames of the prediction and those of the true clip, both standardised by the true clips'
statistics. It is divided by the same distance to *other* clips, so that the scale of teacher, layer and t cancels; D is
the mean over k (our definition; docs/method.md, section 1). D = 1: predictions are no nearer to their own clip than to
any other. D = 0: they equal it.

`Discrepancy` measures D, in our training loop and in any other. It is given two functions, one that predicts and one
that turns latents into features, and so depends on no codec and no teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from segue.process.noise import keyed_noise
from segue.process.path import clean_of, sample_path
from segue.stage.alignment import standardise
from segue.types import UserError

MOST_CLIPS = 64  # of a probe whose size nobody gave
SMALLEST_PROBE = 8  # clips: with fewer, the distance to other clips is noise, and single clips move D
SHIFTS = 4  # other clips that each prediction is compared with
AT_ONCE = 16  # clips in one pass


@dataclass(frozen=True)
class ProbeConfig:
    """The probe set, and when it is measured.

    Attributes:
        run: "auto" (where the regime's signal needs it), "always", or "never".
        clips: M, held-out clips; 0: as many as a share of a run's work pays for: 16 to 32 for the condition gain, by a
            two-hundredth, 8 to 64 for the discrepancy, by a fiftieth (training/probe_size.py).
        times: t_k. Low noise is left out: there even an untrained denoiser is near the truth (docs/method.md).
        spacing: probes are at n, spacing * n, spacing^2 * n ... examples, evenly spaced in ln n. At 1.1 a doubling of n
            has the 8 that a line needs; more of them change r by some hundredths (docs/method.md).
        first: the first probe after the one at n = 0, as a share of the run.
        closest: least distance of two probes, as a share of the run: early in the run few of them are enough.
        closest_examples: the same in examples; 0: where `clips` is 0, too, so many that a probe takes a twentieth of
            the work between two (training/probe_size.py), so that a short run has fewer probes.
        space: where features come from. "waveform": decoded predictions, through the teacher itself. "latent": a
            regression from latents to the teacher's cached features, fitted before the first step: less accurate, and
            much cheaper where the model is as small as its codec. "auto": latent for text-to-audio models of our own.
        weights: "averaged" (the moving average; early in a run its window is a fixed share of n, which shifts the curve
            by a constant in ln n), or "online" (as they train: noisier, and affected by the learning-rate schedule).
    """

    run: str = "auto"
    clips: int = 0
    times: tuple[float, ...] = (0.5, 0.7, 0.85, 0.95)
    spacing: float = 1.1
    first: float = 0.02
    closest: float = 0.0125
    closest_examples: int = field(default=0, metadata={"later": True})  # not written at its default: older hashes hold
    space: str = "auto"
    weights: str = "averaged"

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(self.times))
        spaces = ("auto", "waveform", "latent")
        weights = ("averaged", "online")
        for name, allowed in (("run", ("auto", "always", "never")), ("space", spaces), ("weights", weights)):
            if getattr(self, name) not in allowed:
                raise UserError(f"probe.{name} is '{getattr(self, name)}'; use {' or '.join(allowed)}")
        if self.clips and self.clips < SMALLEST_PROBE:
            raise UserError(f"probe.clips is {self.clips}; a probe needs at least {SMALLEST_PROBE} held-out clips")
        if not self.times or not all(0 < t < 1 for t in self.times):
            raise UserError(f"probe.times is {self.times}; give times between 0 and 1, such as 0.5,0.7,0.85,0.95")
        if self.spacing <= 1:
            raise UserError(f"probe.spacing is {self.spacing}; give a factor above 1, such as 1.1")
        if not 0 < self.first < 1:
            raise UserError(f"probe.first is {self.first}; give a share of the run between 0 and 1")
        if self.closest_examples < 0:
            raise UserError(f"probe.closest_examples is {self.closest_examples}; give a number of examples, or 0")
        if not 0 <= self.closest < 1:
            raise UserError(f"probe.closest is {self.closest}; give a share of the run from 0 to below 1")


@dataclass(frozen=True)
class Reading:
    """One measurement of the discrepancy.

    Attributes:
        value: D.
        by_time: ((t_k, d_k over the distance to other clips), ...).
    """

    value: float
    by_time: tuple[tuple[float, float], ...]


def next_probe(config: ProbeConfig, examples_seen: int, total_examples: int) -> int:
    """n of the probe that follows one at `examples_seen`; beyond the end of the run after the last."""
    seen = examples_seen
    total = total_examples
    if seen >= total:
        return seen + 1
    # One example at the least: in a short run the ratio may move n by less.
    closest = max(config.closest * total, config.closest_examples, 1)
    apart = max(seen * config.spacing, seen + closest, config.first * total)
    return min(math.ceil(apart), total)


def probes_in(config: ProbeConfig, total_examples: int, batch_size: int = 1) -> int:
    """Number of probes in a run, including those at its start and end; they fall on whole batches."""
    count = 1
    seen = 0
    while seen < total_examples:
        seen = next_probe(config, seen, total_examples)
        seen = min(-(-seen // batch_size) * batch_size, max(seen, total_examples))
        count += 1
    return count


def target_statistics(targets: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [F] over the real frames of targets [..., S, F]; mask [..., S] bool, None: all.

    Raises:
        UserError: targets of another shape.
    """
    if targets.ndim < 2:
        raise UserError(f"Stage: targets= is {list(targets.shape)}; hint: give teacher features [..., frames, F]")
    # float64: there may be millions of frames, whose sums lose their last digits in float32.
    frames = (targets.detach().flatten(0, -2) if mask is None else targets[mask]).double()
    mean, std = frames.mean(0), frames.std(0, correction=0)
    return mean.to(targets.dtype), std.clamp_min(1e-6).to(targets.dtype)


def probe_sums(predicted: Tensor, rows: list[int], targets: Tensor, mask: Tensor) -> Tensor:
    """Summed distances of some of the clips (a rank's), in float64, so that the sums of all ranks can be added.

    Args:
        predicted: [K, R, S, F] standardised features of the predictions at each time, for the clips `rows`.
        rows: which clips these are.
        targets: [M, S, F] standardised features of all true clips.
        mask: [M, S] bool, True where a frame is real.

    Returns:
        [K, 3]: distance to the own clip, distance to other clips, clips counted.
    """
    predicted, targets = unit_features(predicted), unit_features(targets)
    own = frame_distance(predicted, targets[rows], mask[rows])
    others = torch.zeros_like(own)
    clips = len(targets)
    # Partners by fixed shifts, not by draws: a measurement draws nothing, and every clip is a partner equally often.
    for shift in range(1, SHIFTS + 1):
        partner = [(row + shift * clips // (SHIFTS + 1)) % clips for row in rows]
        others += frame_distance(predicted, targets[partner], mask[rows] & mask[partner]) / SHIFTS
    return torch.stack([own.sum(1), others.sum(1), torch.full_like(own[:, 0], len(rows))], dim=1)


def reading_of(sums: Tensor, times: tuple[float, ...]) -> Reading:
    """The reading from the sums [K, 3] over all clips; NaN where the features of predictions are not finite."""
    own, others, _ = sums.double().cpu().unbind(1)
    # A ratio at each time, and then the mean: each time counts alike, whatever the size of its distances.
    ratios = (own / others.clamp_min(1e-12)).tolist()
    return Reading(sum(ratios) / len(ratios), tuple(zip(times, ratios)))


def unit_features(x: Tensor) -> Tensor:
    """Features [..., F] of length 1, at least float32."""
    return torch.nn.functional.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def frame_distance(predicted: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """1 - mean cosine over real frames: unit features [K, R, S, F] against [R, S, F], mask [R, S] -> [K, R] float64."""
    # Cosines in float32, which takes two thirds of the time of a probe in float64; their sums are in float64.
    cosine = torch.linalg.vecdot(predicted, targets[None]).double()
    weight = mask.double()[None]
    # Two short clips may have no real frame in common; such a pair counts as unrelated.
    return 1 - (cosine * weight).sum(-1) / weight.sum(-1).clamp_min(1.0)


class Discrepancy:
    """Measures D of a model on a fixed probe set.

    A measurement draws no random numbers and leaves the model as it was: a run that measures ends with the same
    weights as one that does not.

        measure = Discrepancy(ema, lambda x_t, t, rows: ema(x_t, t, classes[rows]), held_out, features)
        measure().value

    Attributes:
        clips: number of held-out clips, over all ranks.
        fingerprint: a few numbers that identify the targets; a resumed run must have the same.
    """

    def __init__(
        self,
        model: nn.Module,
        predict: Callable[..., Tensor],
        x_0: Tensor,
        features: Callable[[Tensor], Tensor],
        *,
        mask: Tensor | None = None,
        latent_mask: Tensor | None = None,
        fill_known: Callable[[Tensor, Tensor], Tensor] | None = None,
        times: tuple[float, ...] = ProbeConfig().times,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        reduce: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str | None = None,
        at_once: int = AT_ONCE,
    ) -> None:
        """
        Args:
            model: set to evaluation mode while it is measured. Give the averaged weights where there are any: their
                curve is smoother (docs/method.md).
            predict: (x_t [R, C, L], t [R], rows [R]) -> velocity eps - x_0 [R, C, L] of these clips, under the
                conditions of the clips `rows`. Where `latent_mask` is given, its rows [R, L] are a fourth argument.
            x_0: [M, C, L] clean latents of held-out clips; M = 64 is enough.
            features: latents [R, C, L] -> teacher features [R, S, F], through the codec.
            mask: [M, S] bool, True where a teacher frame is real; None where all are.
            latent_mask: [M, L] bool, True where a latent frame is real; None where all are.
            fill_known: (generated latents [R, C, L], rows [R]) -> whole latents, where only a part is generated.
            times: t_k.
            seed: of the noise.
            rank, world: index and number of processes; each measures its share of the clips.
            reduce: sums a tensor over the ranks; needed where world > 1.
            device: where it measures; x_0's if it is not given.
            at_once: clips in one pass: decoding all at once would set the peak memory of a small run.

        Raises:
            UserError: fewer than 8 clips, or clips or features of another shape.
        """
        if x_0.ndim != 3:
            raise UserError(f"Discrepancy: the held-out clips are {list(x_0.shape)}; hint: give latents [M, C, L]")
        clips = len(x_0)
        if clips < SMALLEST_PROBE:
            raise UserError(f"Discrepancy: {clips} held-out clips; hint: give at least {SMALLEST_PROBE}")
        self.model = model
        self.clips = clips
        self.times = tuple(times)
        self._predict = predict
        self._features = features
        self._fill_known = fill_known or (lambda latents, rows: latents)
        self._reduce = reduce if world > 1 else None
        device = torch.device(device or x_0.device)

        # The targets: features of the true clips. Every rank has all of them, since each clip is compared with others.
        rows = torch.arange(clips, device=device)
        with torch.no_grad():
            parts = zip(x_0.split(at_once), rows.split(at_once))
            found = torch.cat([features(self._fill_known(part.to(device), some)) for part, some in parts])
        # Codecs and teachers may return inference tensors, which autograd refuses.
        found = found.clone()
        if found.ndim != 3 or len(found) != clips:
            raise UserError(
                f"Discrepancy: features() made {list(found.shape)} of {clips} clips; hint: return teacher features "
                "[clips, frames, F]"
            )
        if mask is None:
            mask = torch.ones(found.shape[:2], dtype=torch.bool)
        self._real = mask.to(device)
        found = found[:, : self._real.shape[1]]
        self._mean, self._std = target_statistics(found, self._real)
        self._targets = standardise(found, self._mean, self._std)
        self.fingerprint = _fingerprint(found)

        # This rank's clips. A rank without any predicts the first and counts none: a sharded model gathers its weights
        # in every pass, so all ranks must make equally many.
        self._mine = list(range(rank, clips, world))
        here = torch.tensor(self._mine or [0])
        self._passes = math.ceil(math.ceil(clips / world) / at_once)
        self._rows = rows[here.to(device)]
        self._x_0 = x_0[here.to(x_0.device)].to(device)
        # Noise is keyed by the clip, so that it is the same on any number of ranks.
        self._eps = keyed_noise(x_0.shape[1:], seed, "probe", range(clips))[here].to(self._x_0)
        self._latent_mask = None if latent_mask is None else latent_mask[here.to(latent_mask.device)].to(device)

    @torch.no_grad()
    def __call__(self) -> Reading:
        """D of the model's current weights, over all ranks."""
        was_training = self.model.training
        self.model.eval()
        try:
            predicted = torch.stack([self._features_at(time, self._eps) for time in self.times])
        finally:
            self.model.train(was_training)
        # A rank without clips has predicted one for the sake of the others; here it is left out.
        sums = probe_sums(predicted[:, : len(self._mine)], self._mine, self._targets, self._real)
        return reading_of(sums if self._reduce is None else self._reduce(sums), self.times)

    def _features_at(self, time: float, noise: Tensor, shift: int = 0) -> Tensor:
        """Standardised features [R, S, F] of this rank's one-step predictions at one time, from noise [R, C, L].

        Each clip is given the condition of the clip that stands `shift` behind it; 0: its own.
        """
        found = []
        for part in torch.arange(len(self._x_0)).tensor_split(self._passes):
            x_0, eps, rows = self._x_0[part], noise[part], self._rows[part]
            t = torch.full((len(x_0),), time, device=x_0.device)
            x_t = sample_path(x_0, eps, t)
            masks = () if self._latent_mask is None else (self._latent_mask[part],)
            velocity = self._predict(x_t, t, (rows + shift) % self.clips, *masks)
            if velocity.shape != x_t.shape:
                raise UserError(
                    f"Discrepancy: predict() made {list(velocity.shape)} of x_t {list(x_t.shape)}; hint: return the "
                    "velocity eps - x_0, in the shape of x_t"
                )
            clean = clean_of(x_t, velocity.to(x_t.dtype), t)
            for mask in masks:
                # A model that predicts no velocity in padding leaves its noise there, which would be decoded.
                clean = clean * mask[:, None]
            found.append(self._features(self._fill_known(clean, rows)).clone())
        frames = self._real.shape[1]
        return standardise(torch.cat(found)[:, :frames].float(), self._mean, self._std)


def _fingerprint(targets: Tensor) -> tuple[float, ...]:
    """Coarse means of targets [M, S, F]: they differ between probe sets, but not between thread counts."""
    clips = targets.double().mean((1, 2)).cpu()
    features = targets.double().mean((0, 1)).cpu()
    return tuple(round(float(part.mean()), 6) for whole in (clips, features) for part in whole.tensor_split(4))
