"""The condition gain against models whose answer is known, and the regime on curves whose stage is known."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from torch import nn

from segue.process.path import velocity_from_clean
from segue.stage.condition_gain import (
    ConditionGain,
    GainReading,
    crossed_distances,
    follows_conditions,
    gain_of,
    gain_sums,
)
from segue.stage.controller import ControllerState, Observation, StageController
from segue.stage.discrepancy import Discrepancy, ProbeConfig, frame_distance, unit_features
from segue.stage.policy import Policy, stage_policy
from segue.stage.regime import RegimeConfig
from segue.stage.stage import Stage
from segue.types import UserError

M, L = 16, 6
# Rows of a Hadamard matrix without its first column: of mean 0 and deviation 1 in each feature, so that standardising
# changes nothing, and the cosine of two clips is -1/15.
CODES = torch.tensor(hadamard(M)[:, 1:], dtype=torch.float32)
CLIPS = CODES[:, :, None].repeat(1, 1, L)
MODEL = nn.Linear(1, 1)


def frames(latents):
    return latents.transpose(1, 2)


def mixes(own, told):
    """A model that predicts `own` times the clip that x_t is of, and `told` times the clip whose condition it is given.

    At high noise nobody could see the former in x_t; here the clip is told by its place in the batch.
    """

    def predict(x_t, t, conditions):
        clean = own * CLIPS[predict.clips] + told * CLIPS[conditions]
        return velocity_from_clean(x_t, clean, t)

    predict.clips = torch.arange(M)
    return predict


def measure_of(predict, clips=CLIPS, **options):
    return ConditionGain(MODEL, predict, clips, frames, **options)


@pytest.mark.parametrize(("own", "told"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.3), (0.5, -0.2)])
def test_the_gain_of_a_mixture_agrees_with_its_closed_form(own, told):
    """cos(a x + b y, x) = (a - b / 15) / sqrt(a^2 + b^2 - 2 a b / 15) for clips of cosine -1/15."""
    cosine = (own - told / 15) / math.sqrt(own**2 + told**2 - 2 * own * told / 15)
    expected = math.copysign(1.0, own + told) - cosine
    reading = measure_of(mixes(own, told), times=(0.85, 0.95), others=3, draws=2)()
    assert reading.value == pytest.approx(expected, abs=1e-5)
    assert dict(reading.by_time) == pytest.approx({0.85: expected, 0.95: expected}, abs=1e-5)
    assert reading.standard_error == pytest.approx(0, abs=1e-6)
    assert reading.agreement == 1.0


def test_nothing_is_gained_from_a_condition_that_is_not_read():
    reading = measure_of(lambda x_t, t, conditions: x_t * 0.1, times=(0.85, 0.95))()
    assert reading.value == pytest.approx(0, abs=1e-9)
    assert reading.agreement == 0.5 and not follows_conditions(reading)


def test_a_condition_that_misleads_is_a_loss():
    reading = measure_of(mixes(1.0, -1.5), times=(0.85, 0.95))()
    assert reading.value < -0.1 and reading.agreement == 0.0 and not follows_conditions(reading)


def test_near_pure_noise_other_conditions_cost_no_pass():
    """A model that sees the condition alone: crossing its predictions gives what asking it again would give."""
    calls = []

    def predict(x_t, t, conditions):
        calls.append(float(t[0]))
        return velocity_from_clean(x_t, CLIPS[conditions], t)

    crossed, asked = (measure_of(predict, times=(time,), others=15)() for time in (0.999, 0.95))
    assert crossed.value == pytest.approx(asked.value, abs=1e-4) == pytest.approx(16 / 15, abs=1e-4)
    assert calls.count(pytest.approx(0.999)) == 1 and calls.count(pytest.approx(0.95)) == 16


def noisy(x_t, t, conditions, *masks):
    return velocity_from_clean(x_t, 0.4 * CLIPS[conditions % M] + 0.1 * x_t, t)


@pytest.mark.parametrize("clips", [16, 11])
def test_pieces_and_ranks_measure_what_one_pass_measures(clips):
    real = torch.arange(L) < torch.tensor([3 + k % 4 for k in range(clips)])[:, None]
    times = (0.85, 0.999)
    options = {"mask": real, "latent_mask": real, "others": 2, "draws": 2, "times": times}
    whole = measure_of(noisy, CLIPS[:clips], at_once=16, **options)()
    assert 0.05 < whole.value < 1.2 and 0 < whole.standard_error < 0.2
    assert measure_of(noisy, CLIPS[:clips], at_once=5, **options)().value == pytest.approx(whole.value, abs=1e-6)
    for world in (2, 3):
        sums = []
        for rank in range(world):
            measure_of(
                noisy, CLIPS[:clips], rank=rank, world=world, reduce=lambda x, s=sums: s.append(x) or x, **options
            )()
        added = gain_of(sum(sums), times)
        assert added.value == pytest.approx(whole.value, abs=1e-6)
        assert added.standard_error == pytest.approx(whole.standard_error, abs=1e-6)
        assert added.agreement == whole.agreement


def test_a_clip_keeps_its_own_mask_under_another_clips_condition():
    real = torch.arange(L) < torch.tensor([2 + k % 4 for k in range(M)])[:, None]
    seen = []

    def predict(x_t, t, conditions, mask):
        seen.append((conditions, mask))
        return x_t

    measure_of(predict, latent_mask=real, times=(0.9,))()
    assert [int(c[0]) for c, _ in seen] == [0, 8] and all(torch.equal(mask, real) for _, mask in seen)


def test_the_standard_error_is_that_of_the_mean_over_clips():
    gain = torch.randn(3, 2, 40, generator=torch.Generator().manual_seed(0)).double()
    reading = gain_of(gain_sums(torch.stack([torch.zeros_like(gain), gain], dim=2)), (0.85, 0.95, 0.999))
    per_clip = gain.mean((0, 1))
    assert reading.value == pytest.approx(float(per_clip.mean()))
    assert reading.standard_error == pytest.approx(float(per_clip.std() / 40**0.5))
    assert reading.agreement == pytest.approx(float((per_clip > 0).double().mean()))


def test_a_measurement_leaves_no_trace_and_repeats():
    model = nn.Linear(1, 1).train()
    state = torch.random.get_rng_state()
    measure = ConditionGain(model, noisy, CLIPS, frames)
    assert measure() == measure() and model.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_crossed_distances_are_those_of_each_pair():
    draw = torch.Generator().manual_seed(3)
    own = unit_features(torch.randn(3, 7, 5, generator=draw))
    targets = unit_features(torch.randn(6, 7, 5, generator=draw))
    real = torch.arange(7) < torch.tensor([7, 3, 5, 1, 7, 2])[:, None]
    rows, others = torch.tensor([1, 3, 5]), torch.tensor([[0, 2, 4], [2, 5, 0]])
    expected = [[], []]
    for n, row in enumerate(rows):
        for distances, to in zip(expected, ([row, row], others[:, n])):
            pairs = zip(to, others[:, n])
            found = [
                frame_distance(own[None, n : n + 1], targets[None, a], (real[row] & real[b])[None]) for a, b in pairs
            ]
            distances.append(float(torch.stack(found).mean()))
    torch.testing.assert_close(
        crossed_distances(own, targets, real, rows, others), torch.tensor(expected, dtype=torch.float64)
    )


# --- the regime -------------------------------------------------------------------------------------------------------

N = 100_000
CONFIG = RegimeConfig(signal="condition-gain", kappa=8.0)
POLICY = Policy(regime=CONFIG)
CURVES = {
    "saturating": lambda n: 0.4 * (1 - math.exp(-n / 4_000)),
    "late": lambda n: 0.5 / (1 + (60_000 / max(n, 1)) ** 3),
    "endless": lambda n: 0.05 * math.log(1 + n / 500),
    "flat": lambda n: 0.0,
    "falling": lambda n: 0.4 * (1 - math.exp(-n / 4_000)) - 0.3 * max(0.0, n / N - 0.5),
    "pretrained": lambda n: 0.4 + 0.01 * n / N,
    "pretrained elsewhere": lambda n: 0.15 + 0.4 * (1 - math.exp(-n / 20_000)),
}


def follow(curve, noise=0.0, seed=0, config=CONFIG, start=None, total=N, again=False):
    """[(n, state, reading)] of a run whose condition gain follows a curve, at the probes that the controller asks for.

    Args:
        start: agreement of each reading; None: one that follows from the gain.
        again: carry the state through JSON after each probe.
    """
    draw = np.random.default_rng(seed)
    controller = StageController(Policy(regime=config))
    state = controller.init(total)
    out = []
    while state.next_probe <= total:
        n = state.next_probe
        gain = CURVES.get(curve, curve)(n) + noise * draw.standard_normal()
        agreement = 0.5 + min(0.5, 2 * max(0.0, gain)) if start is None else start
        found = Observation(n, condition_gain=GainReading(gain, (), 0.02, agreement))
        state, decision = controller.update(state, found)
        out.append((n, state.regime, decision.regime))
        if again:
            state = ControllerState.from_json(json.loads(json.dumps(state.to_json(), allow_nan=False)))
    return out


def at(run, n):
    return min(run, key=lambda step: abs(step[0] - n))[2]


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.01])
def test_r_leaves_0_at_the_knee_of_a_saturating_curve(noise):
    """Of 1 - exp(-n / c) a doubling from 3 c on brings less than a twentieth."""
    run = follow("saturating", noise)
    assert at(run, 6_000).regime_monotone < 0.1
    # Noise reads as growth, and one run scatters by .17: the mean of twenty is told.
    seeds = range(1 if noise < 0.01 else 20)
    found = [at(follow("saturating", noise, seed), 50_000).regime for seed in seeds]
    assert np.mean(found) > (0.7 if noise < 0.01 else 0.5) and min(found) > 0.1
    half = next(n for n, _, reading in run if reading.regime >= 0.5)
    assert 12_000 < half < (30_000 if noise < 0.01 else 50_000)


def test_the_knee_does_not_depend_on_the_planned_length():
    """What the slope of the discrepancy could not: the same curve in a run of twice the length."""
    halves = []
    for total in (N, 2 * N):
        run = follow(lambda n: 0.4 * (1 - math.exp(-n / 10_000)), total=total)
        halves.append(next(n for n, _, reading in run if reading.regime >= 0.5))
    assert halves[0] == pytest.approx(halves[1], rel=0.1)


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_r_stays_0_while_every_doubling_brings_as_much(noise):
    assert follow("endless", noise)[-1][2].regime < 0.05
    late = follow("late", noise)
    assert late[-1][2].regime < 0.1


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.01])
def test_a_gain_that_never_comes_is_replaced_by_the_time_ramp(noise):
    run = follow("flat", noise)
    assert at(run, 20_000).regime == 0.0
    assert at(run, 60_000).signal == "time (fallback)" and at(run, 60_000).regime == pytest.approx(0.6, abs=0.05)


def test_a_run_too_short_to_show_a_gain_stays_at_the_start():
    """9,600 examples in all: by 30 % of them nothing can be said yet of what captions mean."""
    last = follow("flat", total=9_600)[-1]
    assert last[0] > 9_000 and last[2].regime == 0.0 and last[2].signal == "condition-gain"
    assert at(follow("flat", total=20_000), 15_000).signal == "time (fallback)"


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_a_fall_of_the_gain_is_no_saturation(noise):
    run = follow("falling", noise)
    assert at(run, 90_000).reason.startswith("holding: the condition gain fell from 0.")
    held = {reading.regime for n, _, reading in run if n > 80_000}
    assert len(held) == 1


def test_more_kappa_waits_longer():
    halves = []
    for kappa in (4.0, 8.0, 16.0):
        run = follow("saturating", config=RegimeConfig(signal="condition-gain", kappa=kappa))
        halves.append(next(n for n, _, reading in run if reading.regime >= 0.5))
    assert halves == sorted(halves) and halves[0] < halves[2]


def test_a_value_that_is_not_finite_is_skipped():
    bad = follow("saturating")[20][0]
    run = follow(lambda n: math.nan if n == bad else CURVES["saturating"](n))
    assert "the condition gain was not finite on this probe" in at(run, bad).reason
    assert run[-1][2].regime == pytest.approx(follow("saturating")[-1][2].regime, abs=0.02)


# --- models that follow their conditions from the start -----------------------------------------------------------------


def test_one_reading_tells_a_pretrained_model_from_an_untrained_one():
    assert follows_conditions(GainReading(0.4, (), 0.04, 0.97))
    for other in (
        GainReading(0.0, (), 0.0, 0.5),  # untrained
        GainReading(0.18, (), 0.04, 0.95),  # within its noise
        GainReading(0.2, (), 0.02, 0.75),  # followed by some clips
        GainReading(0.4),  # a loop that knows no standard error
        GainReading(math.nan, (), math.nan, 0.5),
    ):
        assert not follows_conditions(other)


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_a_pretrained_model_is_never_aligned(noise):
    run = follow("pretrained", noise, start=0.97)
    assert run[0][2].reason == (
        "refinement stage: conditions are followed at the start: the own one is nearer for 97 % of the clips (r 1.00)"
    )
    assert {reading.regime_monotone for _, _, reading in run} == {1.0}
    assert run[-1][2].regime > 0.7


def test_noise_does_not_take_back_a_start_that_followed_its_conditions():
    """Of a gain that stays at .4, probed with noise of .02, every line's upper end reads as growth."""
    runs = [follow(lambda n: 0.4, 0.02, seed, start=0.97) for seed in range(20)]
    assert not any("after all" in reading.reason for run in runs for _, _, reading in run)


@pytest.mark.parametrize("rises_from", [0, 8_000])
def test_a_start_that_later_lines_contradict_is_taken_back(rises_from):
    """Also where the curve is flat at first, as averaged weights are."""
    curve = CURVES["pretrained elsewhere"]
    run = follow(lambda n: curve(max(0, n - rises_from)), start=0.97)
    first = next(k for k, (_, state, _) in enumerate(run) if not state.unconfirmed)
    assert first >= 8 and run[7][2].regime == 1.0
    n, _, reading = run[first]
    assert reading.regime == reading.regime_monotone == reading.regime_slow == 0.0 and n < 0.2 * N
    assert "not done at the start after all" in reading.reason
    assert min(later.regime for _, _, later in run[first:]) < 0.05 and run[-1][2].regime > 0.15


def test_alignment_does_not_begin_at_a_start_that_follows_its_conditions():
    blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))
    policy = stage_policy()
    policy = Policy(regime=CONFIG, timesteps=policy.timesteps, alignment=policy.alignment)
    targets = torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(0))
    for reading, weight in ((GainReading(0.4, (), 0.02, 1.0), 0.0), (GainReading(0.0, (), 0.0, 0.5), 1.0)):
        stage = Stage(
            blocks, policy, total_examples=N, targets=targets, measure=lambda r=reading: r, log=lambda line: 0
        )
        assert stage.alignment_weight == weight
        assert stage.observation.condition_gain == reading


# --- in a loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.5, 0.97])
@pytest.mark.parametrize("curve", ["saturating", "falling", "pretrained elsewhere"])
def test_an_interrupted_controller_decides_what_an_uninterrupted_one_does(curve, start):
    assert follow(curve, 0.003, start=start) == follow(curve, 0.003, start=start, again=True)


def test_a_number_is_a_condition_gain_where_the_policy_reads_one():
    blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
    stage = Stage(blocks, POLICY, total_examples=N, measure=lambda: 0.25, log=lambda line: None)
    assert stage.decision and stage.observation.condition_gain == GainReading(0.25)


def test_ranks_that_measure_apart_agree_on_the_mean():
    blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
    lines = []
    mine, other = GainReading(0.2, ((0.9, 0.2),), 0.02, 0.8), torch.tensor([0.4, 0.4, 0.04, 1.0], dtype=torch.float64)
    stage = Stage(
        blocks, POLICY, total_examples=N, measure=lambda: mine, world=2, reduce=lambda x: (x + other) / 2,
        log=lines.append,
    )  # fmt: skip
    assert stage.decision
    found = stage.observation.condition_gain
    assert (found.value, found.standard_error, found.agreement) == pytest.approx((0.3, 0.03, 0.9))
    assert lines[0]["condition_gain"] == pytest.approx(0.3) and lines[0]["condition_gain_by_t"] == {"0.9": found.value}


def test_the_other_measure_is_refused_by_name():
    blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
    gain = measure_of(noisy)
    discrepancy = Discrepancy(MODEL, noisy, CLIPS, frames)
    with pytest.raises(UserError, match="give a ConditionGain"):
        assert Stage(blocks, POLICY, total_examples=N, measure=discrepancy).decision
    by_level = Policy(regime=RegimeConfig(signal="level"))
    with pytest.raises(UserError, match="give a Discrepancy"):
        assert Stage(blocks, by_level, total_examples=N, measure=gain).decision
    with pytest.raises(UserError, match="nothing measures the regime's signal 'condition-gain'"):
        Stage(blocks, POLICY, total_examples=N)


class Labels(nn.Module):
    """Predicts a clip from its label alone: what a table of labels has learned."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(M, M - 1)
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])
        nn.init.zeros_(self.table.weight)

    def forward(self, x_t, t, labels):
        return velocity_from_clean(x_t, self.table(labels)[:, :, None].expand_as(x_t), t)


def trained(steps, kept=None):
    """A foreign loop whose conditions are labels, from the start or from a kept state; its stage, model and log."""
    model, log = Labels(), []
    measure = ConditionGain(model, model, CLIPS, frames)
    policy = Policy(regime=CONFIG, probe=ProbeConfig(spacing=1.2))
    stage = Stage(model.blocks, policy, total_examples=6400, measure=measure, log=log.append)
    if kept is not None:
        model.load_state_dict(kept[0])
        stage.load_state_dict(json.loads(json.dumps(kept[1])))
    for step in range(stage.steps, steps):
        labels = (torch.arange(16) + step) % M
        t = stage.timesteps(16)
        x_t = CLIPS[labels] * (1 - t[:, None, None])
        clean = x_t - t[:, None, None] * model(x_t, t, labels)
        loss = (clean - CLIPS[labels]).square().sum()
        loss.backward()
        with torch.no_grad():
            model.table.weight -= 2e-4 * model.table.weight.grad
        model.zero_grad()
        stage.after_step(16)
    assert stage.decision
    return model, stage, log


def test_a_foreign_loop_reads_r_from_the_labels_that_it_learns():
    """A table learns all labels alike, so that C is that of an oracle from the first step: a curve without a slope."""
    model, stage, log = trained(400)
    assert log[0]["condition_gain"] == pytest.approx(0, abs=1e-6) and log[0]["regime"] == 0.0
    assert log[-1]["condition_gain"] == pytest.approx(16 / 15, abs=1e-3) and log[-1]["regime"] > 0.7
    half, kept, first = trained(200)
    again, resumed, second = trained(400, (half.state_dict(), kept.state_dict()))
    assert torch.equal(again.table.weight, model.table.weight) and resumed.state_dict() == stage.state_dict()
    assert [e for e in first + second if "condition_gain" in e][-1] == log[-1]
