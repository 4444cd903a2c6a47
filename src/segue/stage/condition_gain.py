"""The condition gain C: how much nearer a prediction comes to its clip by its own condition than by another clip's.

    C = mean over t_k of  d(own clip | another clip's condition) - d(own clip | own condition)

d is one minus the mean cosine between a teacher's frames of the one-step prediction and those of the clip, as in
stage/discrepancy.py. Both predictions start from the same x_t, so that what the condition does not say is in both terms
and cancels. C is 0 for a model that is untrained or has no condition; it rises as the model learns what conditions
mean, and stops rising at what they can tell, whatever detail is still to come. It needs no reference and no level of a
data set. All of it is our definition (docs/method.md, section 1).

`ConditionGain` measures C, in our training loop and in any other. `estimate` turns its curve into the regime, and
`follows_conditions` says of one reading whether the model knows its conditions already, as a pretrained one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor, nn

from segue.process.noise import keyed_noise
from segue.stage.discrepancy import Discrepancy, frame_distance, unit_features
from segue.stage.regime import RegimeConfig
from segue.stage.regime_state import RegimeReading, RegimeState, percent, stage_name
from segue.stage.slope import Slope

# t_k: next to pure noise the condition alone tells what the clip is, but the gain never quite ends there, and clips of
# random phase show none; lower down it ends, but stands still for a while where one thing is learned before another.
GAIN_TIMES = (0.85, 0.999)
OTHERS = 1  # other clips' conditions that each clip is given
CROSSED_FROM = 0.99  # from this time on other conditions cost no pass (`ConditionGain`)
CROSSED = 16  # other clips that a prediction is compared with there
DRAWS = 1  # of the noise
ROUNDING = 1e-6  # a gain below this is float32 noise
# Of the first reading alone (`follows_conditions`).
STANDS_OUT = 5.0  # standard errors over clips
AGREEMENT = 0.9  # share of clips that are nearer under their own condition
TRIAL = 4.0  # times n of the first line; until then later lines may take it back,
SURE = 3.0  # where their slope, less so many standard errors, is still that of a model that learns its conditions
# Of the curve (`estimate`).
CONFIDENCE = 1.64  # standard errors added to the slope
ONSET = 2.3  # residual standard deviations above 0 at which C counts
ONSET_PROBES = 3  # on how many consecutive probes
FALL = 2.0  # residual standard deviations below the highest C at which r is held,
FALL_SHARE = 0.05  # where that is at least this share of it


@dataclass(frozen=True)
class GainReading:
    """One measurement of the condition gain.

    Attributes:
        value: C.
        by_time: ((t_k, C at t_k), ...).
        standard_error: of C over the clips of the probe; None where a loop measures C by itself and gives none.
        agreement: share of the clips that are nearer under their own condition, ties by half; .5 is chance.
    """

    value: float
    by_time: tuple[tuple[float, float], ...] = ()
    standard_error: float | None = None
    agreement: float | None = None


class ConditionGain(Discrepancy):
    """Measures C of a model on a fixed probe set; it takes what `Discrepancy` takes, and leaves as little trace.

        measure = ConditionGain(ema, lambda x_t, t, rows: ema(x_t, t, captions[rows]), held_out, features)
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
        times: tuple[float, ...] = GAIN_TIMES,
        others: int = OTHERS,
        draws: int = DRAWS,
        crossed: bool = True,
        seed: int = 0,
        **options,
    ) -> None:
        """
        Args:
            model, x_0, features: as of `Discrepancy`.
            predict: as of `Discrepancy`; `rows` are the clips whose conditions are given, which may be others than the
                clips that x_t is of.
            times: t_k.
            others: other clips whose conditions each clip is given in turn.
            draws: of the noise; C is the mean over them.
            crossed: near pure noise, compare the predictions at hand with other clips in place of asking the model
                again under other conditions. Where `fill_known` is given the model is always asked again.
            seed: of the noise.
            options: `mask`, `latent_mask`, `fill_known`, `rank`, `world`, `reduce`, `device` and `at_once` of
                `Discrepancy`.

        Raises:
            UserError: fewer than 8 clips, or clips or features of another shape.
        """
        super().__init__(model, predict, x_0, features, times=times, seed=seed, **options)
        self._crossed = crossed and options.get("fill_known") is None
        clips = self.clips
        # Conditions of other clips by fixed shifts, not by draws: every condition is used equally often.
        self._shifts = [(k + 1) * clips // (others + 1) for k in range(others)]
        mine = self._mine or [0]
        positions = [[draw * clips + row for row in mine] for draw in range(draws)]
        self._noise = [keyed_noise(x_0.shape[1:], seed, "condition gain", p).to(self._x_0) for p in positions]

    @torch.no_grad()
    def distances(self) -> Tensor:
        """d of this rank's clips, [K, draws, 2, R] float64: under their own condition, and the mean under others'."""
        was_training = self.model.training
        self.model.eval()
        try:
            found = [[self._own_and_others(time, noise) for noise in self._noise] for time in self.times]
        finally:
            self.model.train(was_training)
        return torch.stack([torch.stack(draws) for draws in found])[..., : len(self._mine)]

    def __call__(self) -> GainReading:  # type: ignore[override]
        """C of the model's current weights, over all ranks."""
        sums = gain_sums(self.distances())
        return gain_of(sums if self._reduce is None else self._reduce(sums), self.times)

    def _own_and_others(self, time: float, noise: Tensor) -> Tensor:
        """d [2, R] at one time, from one draw of the noise."""
        rows = self._rows
        targets, real = unit_features(self._targets), self._real
        own = unit_features(self._features_at(time, noise))
        if time >= CROSSED_FROM and self._crossed:
            # Here x_t holds next to nothing of its clip: what a clip's condition makes of it, it would make of any
            # other clip's x_t. So the predictions at hand, compared with other clips, tell what other conditions make.
            steps = torch.arange(1, CROSSED, device=rows.device)[:, None]
            return crossed_distances(own, targets, real, rows, (rows + steps * self.clips // CROSSED) % self.clips)
        others = [unit_features(self._features_at(time, noise, shift)) for shift in self._shifts]
        distances = frame_distance(torch.stack([own, *others]), targets[rows], real[rows])
        return torch.stack([distances[0], distances[1:].mean(0)])


def crossed_distances(own: Tensor, targets: Tensor, real: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """d [2, R] float64 of predictions to their own clips and to other clips, each a mean over the same pairs.

    Args:
        own: [R, S, F] unit features of the predictions.
        targets, real: [M, S, F] unit features and [M, S] bool of all clips.
        rows: [R] the clip that each prediction is of.
        others: [K, R] clips that it is compared with.
    """
    # By matrix products, frame by frame: picking out every pair of clips would copy their features K times.
    cosine = torch.einsum("rsf,msf->rms", own, targets).double()
    # The same frames of both clips of a pair, so that their lengths make no difference.
    both = (real[rows][:, None] & real[None]).double()
    frames = both.sum(-1).clamp_min(1.0)
    here = torch.arange(len(rows), device=rows.device)
    to_own = 1 - (cosine[here, rows][:, None] * both).sum(-1) / frames
    to_other = 1 - (cosine * both).sum(-1) / frames
    return torch.stack([d[here, others].mean(0) for d in (to_own, to_other)])


def gain_sums(distances: Tensor) -> Tensor:
    """Sums over some clips (a rank's) from which C follows, in float64, so that those of all ranks can be added.

    Args:
        distances: [K, draws, 2, R] as `ConditionGain.distances` returns them.

    Returns:
        [K + 4]: the gain at each time; then, of the mean over times, its sum, its square's, clips that it is above 0
        of (0: a half), and clips.
    """
    gain = (distances[:, :, 1] - distances[:, :, 0]).mean(1)
    whole = gain.mean(0)
    above = ((whole > ROUNDING).double() + (whole >= -ROUNDING).double()) / 2
    of_clips = torch.stack([whole.sum(), whole.square().sum(), above.sum(), above.new_tensor(float(len(whole)))])
    return torch.cat([gain.sum(1), of_clips])


def gain_of(sums: Tensor, times: tuple[float, ...]) -> GainReading:
    """The reading from the sums [K + 4] over all clips; NaN where the features of predictions are not finite."""
    *gains, total, squares, above, clips = sums.double().cpu().tolist()
    mean = total / clips
    variance = max(0.0, squares / clips - mean**2) / (clips - 1)
    by_time = tuple((t, gain / clips) for t, gain in zip(times, gains))
    return GainReading(mean, by_time, math.sqrt(variance), above / clips)


def follows_conditions(gain: GainReading) -> bool:
    """Whether one reading alone says that the model follows its conditions already, as a pretrained one does.

    Its condition gain stands STANDS_OUT standard errors above 0, and the own condition gives the nearer prediction for
    a share of AGREEMENT of the clips. An untrained model has neither. Without a standard error the answer is no: then
    the slope of the curve tells, some probes later.
    """
    if gain.standard_error is None or gain.agreement is None or not math.isfinite(gain.value):
        return False
    return gain.value > max(STANDS_OUT * gain.standard_error, ROUNDING) and gain.agreement >= AGREEMENT


def begun(state: RegimeState, reading: RegimeReading, gain: GainReading) -> tuple[RegimeState, RegimeReading]:
    """State and reading of the probe at n = 0: r is 1 from the start where conditions are followed, else as they were.

    Alignment then never begins, unless the lines through later probes take it back (`estimate`).
    """
    if not follows_conditions(gain):
        return state, reading
    share = percent(gain.agreement or 0.0)
    why = f"conditions are followed at the start: the own one is nearer for {share} of the clips"
    state = replace(state, r=1.0, r_m=1.0, r_s=1.0, onset_at=0, unconfirmed=True)
    reason = f"{stage_name(1.0)}: {why} (r 1.00)"
    return state, replace(reading, regime=1.0, regime_monotone=1.0, regime_slow=1.0, reason=reason)


def estimate(config: RegimeConfig, state: RegimeState, line: Slope, n: int) -> tuple[RegimeState, float | None, str]:
    """r* = 1 - min(1, kappa g+ / C): the gain expected of the next doubling of n, over the gain so far. Our definition.

    g+ is the upper end of the confidence interval of the slope per doubling, so that noise reads as "still learning".
    """
    # Until C stands out of the noise r* is 0; once it has, that is not asked again.
    values = [value for _, value, _ in state.history]
    gain = line.fitted
    if state.onset_at is None:
        # The end of the line alone would stand out of noise too often.
        stands_out = min(gain, fmean(values[-line.points :])) > max(ONSET * line.residual_sd, ROUNDING)
        state = replace(state, promising=state.promising + 1 if stands_out else 0)
        if state.promising < ONSET_PROBES:
            return state, 0.0, "the condition gain does not stand out of its noise yet"
        state = replace(state, onset_at=n)
    # A fall is no saturation. Means of some probes are compared: the highest of many noisy probes lies above the curve,
    # and the end of a line through a bend, too.
    level = fmean(values[-max(3, line.points // 4) :])
    state = replace(state, high=max(state.high, level))
    if state.high - level > max(FALL * line.residual_sd, FALL_SHARE * state.high) or gain <= ROUNDING:
        why = f"holding: the condition gain fell from {state.high:.3f} to {level:.3f}"
        return state, None, why
    growth = max(0.0, line.slope + CONFIDENCE * line.standard_error) * math.log(2)
    target = 1.0 - min(1.0, config.kappa * growth / gain)
    words = f"the next doubling is expected to bring {percent(growth / gain)} of the condition gain so far, {gain:.3f}"
    if state.unconfirmed:
        # On trial for some doublings after the first line: averaged weights and the warm-up show nothing at first.
        first = state.onset_at or n
        state = replace(state, onset_at=first, unconfirmed=n < TRIAL * first)
        # By a lower end: a noisy line does not speak against what the first reading showed.
        sure = (line.slope - SURE * line.standard_error) * math.log(2)
        if config.kappa * sure / gain > 0.5:
            # The model followed something at the start, and is now learning its conditions all the same.
            state = replace(state, unconfirmed=False, r=0.0, r_m=0.0, r_s=0.0)
            return state, 0.0, f"not done at the start after all: {words}"
    return state, target, words
