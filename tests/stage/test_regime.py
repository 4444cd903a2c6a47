import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.stage import regime
from segue.stage.policy import Policy
from segue.stage.regime import RegimeConfig
from segue.stage.regime_state import RegimeState
from segue.stage.variants.slope_regime import remaining_by_time
from segue.types import UserError

N = 200_000
CURVES = {
    "exponential": lambda x: 0.2 + 0.8 * math.exp(-x / 0.1),
    "slow exponential": lambda x: 0.2 + 0.8 * math.exp(-x),
    "power": lambda x: 0.1 + 0.3 * (x + 1e-3) ** -0.3,
    "delayed drop": lambda x: 0.3 + 0.7 / (1 + math.exp((x - 0.5) / 0.03)),
    "plateau then drop": lambda x: 0.6 + 0.3 * math.exp(-x / 0.02) - 0.5 / (1 + math.exp((0.5 - x) / 0.05)),
    "transient then log": lambda x: 0.4 + 0.5 * math.exp(-x / 0.02) - 0.06 * math.log(x / 0.02 + 1),
    "transient then exponential": lambda x: 0.3 * math.exp(-x / 0.02) + 0.6 * math.exp(-x / 0.5),
    "flat": lambda x: 0.9,
    "rise": lambda x: 0.3 + 0.6 * math.exp(-x / 0.08) + 0.4 * max(0.0, x - 0.4),
}
DEFAULT = RegimeConfig()


def even(probes=200):
    return [round(N * (i + 1) / probes) for i in range(probes)]


def log_spaced(factor=1.06, first=0.01):
    count = int(math.log(1 / first) / math.log(factor))
    return [round(first * N * factor**i) for i in range(count + 1)] + [N]


def update_regime(config, state, **options):
    """As a policy of this config reads it."""
    return regime.update_regime(config, state, **options, estimate=Policy(regime=config).estimate)


@pytest.fixture
def undamped(monkeypatch):
    """r is r* of each probe: no average, no limit to its moves."""
    monkeypatch.setattr(regime, "SMOOTHING", 1e-6)
    monkeypatch.setattr(regime, "MAX_MOVE", 1e6)


def follow(curve, config=DEFAULT, probes=None, noise=0.0, seed=0, state=None, **options):
    """[(n, state, reading)] of a run; `curve` is a name or a function of n / N."""
    curve = CURVES.get(curve, curve) if isinstance(curve, str) else curve
    rng, state, out = np.random.default_rng(seed), state or RegimeState(), []
    for n in probes or even():
        value = curve(n / N) + (noise * float(rng.standard_normal()) if noise else 0.0)
        state, reading = update_regime(config, state, examples_seen=n, total_examples=N, value=value, **options)
        out.append((n, state, reading))
    return out


def at(run, share):
    return min(run, key=lambda step: abs(step[0] - share * N))[2]


# -- what r reads on known curves --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kappa", [1.0, 2.0, 4.0, 8.0])
def test_r_of_a_power_law_agrees_with_its_closed_form(kappa):
    """D = c - a ln n: g = a exactly, so that r* = 1 - kappa a ln 2 / (a ln(n / n_ref)) at every n."""
    run = follow(lambda x: 3.0 - 0.2 * math.log(x), RegimeConfig(kappa=kappa), log_spaced(1.02, 0.001))
    reference = next(state.reference for _, state, _ in run if state.reference is not None)
    n_ref = N * math.exp((3.0 - reference) / 0.2)
    expected = 1 - min(1, kappa * math.log(2) / math.log(N / n_ref))
    assert run[-1][2].regime == pytest.approx(expected, abs=0.03)  # the moving average lags a little
    assert run[-1][2].slope == pytest.approx(-0.2, abs=1e-5)  # n is rounded to whole examples


def test_half_means_that_the_next_doubling_brings_an_eighth_of_the_gain_so_far(undamped, monkeypatch):
    """On a curve whose every doubling brings the same, that is eight doublings after the reference."""
    monkeypatch.setattr(regime, "BURN_IN", 0.0)
    config = RegimeConfig()
    probes = [round(100 * 1.04**i) for i in range(200)]
    run = follow(lambda x: 3.0 - 0.2 * math.log(x), config, probes)
    n = next(n for n, _, reading in run if reading.regime >= 0.5)
    assert math.log2(n / probes[1]) == pytest.approx(8, abs=0.1)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("curve", ["transient then log", "transient then exponential"])
@pytest.mark.parametrize("probes", [even(), log_spaced()], ids=["even", "log"])
def test_a_fast_first_transient_does_not_read_as_semantics_done(curve, noise, probes):
    for seed in range(1 if noise == 0 else 3):
        run = follow(curve, probes=probes, noise=noise, seed=seed)
        assert at(run, 0.2).regime_monotone < 0.42
        assert at(run, 0.5).regime_monotone < 0.55
    plain = follow(curve, RegimeConfig(signal="slope-over-peak"))
    assert at(plain, 0.2).regime > 0.6  # what the scale-free form is for


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
def test_a_finished_curve_ends_refined_and_an_unfinished_one_semantic(noise):
    assert follow("exponential", noise=noise)[-1][2].regime > 0.6
    assert follow("slow exponential", noise=noise)[-1][2].regime_monotone < 0.2
    assert follow("power", noise=noise)[-1][2].regime < 0.6


def test_more_kappa_waits_longer():
    shares = [at(follow("exponential", RegimeConfig(kappa=k)), 0.5).regime for k in (1, 2, 4, 8)]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.85 and shares[-1] < 0.15


def test_counted_from_the_start_r_knows_nothing_of_the_planned_length(monkeypatch):
    """On a power law, counted from burn-in, r is a function of n / N alone: the time ramp under another name."""
    monkeypatch.setattr(regime, "SMOOTHING", 1e-6)
    places, law = [200 * k for k in range(1, 6)] + [round(1000 * 1.06**k) for k in range(1, 80)], {}
    for reference, kappa in (("start", 8.0), ("burn-in", 4.0)):
        for total in (50_000, 200_000):
            config, state, r = RegimeConfig(reference=reference, kappa=kappa), RegimeState(), {}
            for n in [0, *places]:
                value = 0.7 * (1 + n / 500) ** -0.4
                state, reading = update_regime(config, state, examples_seen=n, total_examples=total, value=value)
                r[n] = reading.regime
            law[reference, total] = [r[n] for n in places if 15_000 < n < 50_000]
    same, other = ([law[kind, total] for total in (50_000, 200_000)] for kind in ("start", "burn-in"))
    assert same[0] == pytest.approx(same[1], abs=1e-9) and 0.1 < same[0][0] < same[0][-1] < 0.9
    assert min(a - b for a, b in zip(*other)) > 0.1


def test_the_level_reads_where_the_curve_stands_and_neither_slope_nor_planned_length(monkeypatch):
    """D = .1 (n / 40,000)^-.4 passes .05 at 226,274 examples: r* = log2(n / 40,000) / 2.5 between, 0 before, 1 after."""
    monkeypatch.setattr(regime, "SMOOTHING", 1e-6)
    config = RegimeConfig(signal="level")
    places, read = [round(1000 * 1.06**k) for k in range(1, 110)], {}
    for total in (100_000, 1_000_000):
        state = RegimeState()
        for n in places:
            value = 0.1 * (n / 40_000) ** -0.4
            state, reading = update_regime(config, state, examples_seen=n, total_examples=total, value=value)
            read[total, n] = reading.regime
    both = [n for n in places if n > 30_000]  # both are past their burn-in, with eight probes behind them
    assert [read[100_000, n] for n in both] == pytest.approx([read[1_000_000, n] for n in both])
    expected = [min(1.0, max(0.0, math.log2(n / 40_000) / 2.5)) for n in both]
    assert [read[100_000, n] for n in both] == pytest.approx(expected, abs=0.01) and expected[
        -1
    ] == 1.0  # a line in a curve
    flat = follow("flat", config)  # never down to level_open: the semantic stage, not a failed signal
    assert {reading.regime for _, _, reading in flat} == {0.0} and flat[-1][2].signal == "level"
    assert "r leaves 0 below 0.1" in flat[-1][2].reason
    assert follow(lambda x: 0.04, config)[-1][2].regime == pytest.approx(1.0, abs=0.01)


def test_without_a_probe_at_the_start_the_reference_is_taken_after_burn_in():
    config = RegimeConfig(reference="start")
    assert [r for _, _, r in follow("exponential", config)] == [r for _, _, r in follow("exponential")]


def test_a_flat_curve_follows_the_time_ramp_and_says_so():
    for noise in (0.0, 0.02):
        run = follow("flat", noise=noise)
        assert at(run, 0.29).regime == 0.0 and at(run, 0.29).signal == "discrepancy"
        reading = at(run, 0.6)
        assert reading.signal == "time (fallback)" and reading.regime == pytest.approx(0.6)
        assert "no gain by 30 % of the run: following the time ramp" in reading.reason


def test_the_handover_to_the_ramp_is_no_jump():
    run = follow("flat")
    moves = [b[2].regime - a[2].regime for a, b in zip(run, run[1:])]
    doublings = [math.log2(b[0] / a[0]) for a, b in zip(run, run[1:])]
    assert max(m / d for m, d in zip(moves, doublings)) <= 1 + 1e-9


def test_noise_alone_is_seldom_taken_for_progress(monkeypatch):
    monkeypatch.setattr(regime, "FALLBACK_AT", 1.1)  # never: r is what the estimator says
    found = [follow("flat", DEFAULT, log_spaced(), 0.02, seed)[-1][1] for seed in range(40)]
    assert sum(state.onset_at is not None for state in found) <= 6
    assert max(state.r_m for state in found) < 0.4


def test_a_delayed_drop_leaves_the_fallback():
    run = follow("delayed drop", noise=0.02)
    assert at(run, 0.4).signal == "time (fallback)"
    late = at(run, 0.75)
    assert late.signal == "discrepancy" and late.regime < 0.05
    assert (
        late.regime < late.regime_slow < late.regime_monotone
    )  # it was semantic all along: r_s comes back, r_m cannot


def test_a_plateau_before_a_drop_is_recovered_from_slowly():
    run = follow("plateau then drop", RegimeConfig(kappa=1.0))
    assert at(run, 0.25).regime > 0.9
    assert at(run, 0.7).regime < 0.1
    assert at(run, 0.7).regime_monotone > 0.9
    assert 0.25 < at(run, 0.7).regime_slow < at(run, 0.45).regime_slow
    falls = [(a[2].regime_slow - b[2].regime_slow) / math.log2(b[0] / a[0]) for a, b in zip(run, run[1:])]
    assert max(falls) == pytest.approx(regime.MAX_FALL)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_rise_is_never_convergence(noise):
    run = follow("rise", noise=noise)
    assert run[-1][2].reason.startswith("holding: the discrepancy rose")
    held = [reading.regime for n, _, reading in run if n > 0.75 * N]
    assert max(held) == min(held)
    if noise:
        assert " sigma (r " in run[-1][2].reason


def test_a_falling_curve_is_hardly_ever_held():
    run = follow("exponential", noise=0.03, seed=3)
    assert sum(reading.reason.startswith("holding") for _, _, reading in run) <= 2


# -- guards ------------------------------------------------------------------------------------------------------------


def test_burn_in_lasts_to_two_per_cent_or_the_warm_up():
    for warmup, end in ((0, 4000), (30_000, 30_000)):
        run = follow("exponential", warmup_end=warmup)
        assert all(not state.history for n, state, _ in run if n < end)
        first = next(n for n, state, _ in run if state.history)
        assert end <= first <= end + 1000
        assert "burn-in until" in run[1][2].reason
        reference = sorted(CURVES["exponential"](n / N) for n, _, _ in run if n >= end)[-2]
        assert run[-1][1].reference == reference  # the second of the first three of a falling curve


def test_a_flat_warm_up_does_not_read_as_finished():
    for noise in (0.0, 0.02):
        run = follow(lambda x: CURVES["exponential"](max(0.0, x - 0.1)), noise=noise)
        assert at(run, 0.25).regime_monotone == 0.0


def test_values_that_are_not_finite_are_skipped_and_three_are_said():
    clean = follow("exponential")
    gaps = {}
    for bad in (math.nan, math.inf, None):
        state = RegimeState()
        for n, _, _ in clean:
            value = bad if n in (80_000, 100_000, 101_000, 102_000, 103_000) else CURVES["exponential"](n / N)
            state, gaps[n] = update_regime(DEFAULT, state, examples_seen=n, total_examples=N, value=value)
        assert "skipped" in gaps[80_000].reason and "skipped" in gaps[101_000].reason
        assert gaps[102_000].reason.startswith("holding: the discrepancy was not finite on 3 probes in a row")
        assert gaps[103_000].regime == gaps[100_000].regime == gaps[99_000].regime
        assert state.missing == 0
        assert state.r == pytest.approx(clean[-1][1].r, abs=0.01)
        json.dumps(state.to_json(), allow_nan=False)


def test_a_value_that_is_never_finite_ends_on_the_ramp():
    run = follow(lambda x: math.nan)
    assert run[-1][2].signal == "time (fallback)" and run[-1][2].regime == 1.0 and run[-1][2].slope is None


def test_the_decay_of_the_learning_rate_holds_r():
    first = follow("exponential", probes=[n for n in even() if n <= 120_000])
    tail = follow("exponential", probes=[n for n in even() if n > 120_000], state=first[-1][1], held=True)
    assert {reading.regime for _, _, reading in tail} == {first[-1][2].regime}
    assert tail[-1][2].reason == f"holding: the learning-rate decay has begun (r {first[-1][2].regime:.2f})"
    ramp = follow("exponential", RegimeConfig(signal="time"), held=True)
    assert ramp[-1][2].regime == 1.0


def test_the_budget_guard_forces_the_transition():
    run = follow("slow exponential", RegimeConfig(guard=True))
    assert at(run, 0.5).regime == 0.0
    assert at(run, 0.65).regime == pytest.approx(0.5) and "guard" in at(run, 0.65).reason
    assert run[-1][2].regime == run[-1][2].regime_slow == 1.0


def test_reasons_are_words():
    run = follow("exponential")
    assert at(run, 0.31).reason.startswith("semantic stage: the next doubling is expected to bring ")
    assert at(run, 0.31).reason.endswith(f" % of the gain so far (r {at(run, 0.31).regime:.2f})")
    assert at(run, 0.9).reason.startswith("refinement stage: ")
    assert "of the 8 probes that a slope needs" in run[6][2].reason


# -- other signals -----------------------------------------------------------------------------------------------------


def test_the_time_ramp_is_n_over_N_and_needs_no_value():
    state = RegimeState()
    for n in (0, 50_000, 120_000, 250_000):
        state, reading = update_regime(RegimeConfig(signal="time"), state, examples_seen=n, total_examples=N)
        r = min(1.0, n / N)
        assert (reading.regime, reading.regime_monotone, reading.regime_slow) == (r, r, r)
        assert reading.signal == "time" and reading.slope is None


def test_a_constant_is_constant():
    _, reading = update_regime(
        RegimeConfig(signal="constant", constant=0.25), RegimeState(), examples_seen=7, total_examples=9
    )
    assert (reading.regime, reading.regime_monotone, reading.regime_slow) == (0.25, 0.25, 0.25)


def test_a_validation_loss_goes_through_the_same_estimator():
    loss = follow(lambda x: 1.7 + 0.1 * CURVES["exponential"](x), RegimeConfig(signal="validation"))
    assert loss[-1][2].regime == pytest.approx(follow("exponential")[-1][2].regime, abs=1e-9)
    assert loss[-1][2].signal == "validation"


def test_slope_over_peak_is_one_minus_the_share_of_the_steepest_slope(undamped):
    run = follow("exponential", RegimeConfig(signal="slope-over-peak"))
    peak, last = run[-1][1].peak, run[-1][2]
    assert last.regime == pytest.approx(1 + last.slope / N / peak)


def test_gradient_cosine_reaches_one_where_the_gradients_oppose():
    config = RegimeConfig(signal="gradient-cosine")
    run = follow(lambda x: 0.3 - 0.5 * x, config, noise=0.03)
    assert at(run, 0.05).regime < 0.15
    assert at(run, 0.3).regime == pytest.approx(0.5, abs=0.15)
    assert run[-1][2].regime > 0.98
    never = follow(lambda x: -0.1, config)
    assert at(never, 0.2).regime == 0.0 and "never agreed" in at(never, 0.2).reason
    assert never[-1][2].signal == "time (fallback)"


# -- what remains, time by time ----------------------------------------------------------------------------------------


def test_what_remains_is_read_from_each_times_own_curve():
    times = (0.5, 0.7, 0.85, 0.95)
    curves = (
        lambda x: 0.08,  # done before the reference was taken
        lambda x: 0.1 + 0.6 * math.exp(-x / 0.03),  # done
        lambda x: 0.1 + 0.8 * math.exp(-x / 0.2),  # under way
        lambda x: 0.97,  # not begun
    )
    rng, state = np.random.default_rng(0), RegimeState()
    assert remaining_by_time(DEFAULT, state, times) == tuple((t, 1.0) for t in times)
    for n in even():
        by_time = tuple(c(n / N) + 0.002 * float(rng.standard_normal()) for c in curves)
        state, _ = update_regime(
            DEFAULT, state, examples_seen=n, total_examples=N, value=float(np.mean(by_time)), by_time=by_time
        )
        if n == 0.5 * N:
            break
    remaining = [r for _, r in remaining_by_time(DEFAULT, state, times)]
    assert remaining[0] == pytest.approx(0.08, abs=0.02)
    assert remaining[1] < 0.05
    assert 0.5 < remaining[2] <= 1.0
    assert remaining[3] > 0.95
    back = RegimeState.from_json(json.loads(json.dumps(state.to_json())))
    assert remaining_by_time(DEFAULT, back, times) == remaining_by_time(DEFAULT, state, times)
    with pytest.raises(ValueError, match="2 times but 4 values"):
        remaining_by_time(DEFAULT, state, (0.5, 0.9))
    with pytest.raises(ValueError, match="1 probe times after 4"):
        update_regime(DEFAULT, state, examples_seen=N, total_examples=N, value=0.5, by_time=(0.5,))


# -- properties --------------------------------------------------------------------------------------------------------

names = st.sampled_from(sorted(CURVES))
noises = st.sampled_from([0.0, 0.01, 0.05])


@settings(deadline=None, max_examples=25)
@given(
    name=names, noise=st.sampled_from([0.01, 0.05]), seed=st.integers(0, 99), a=st.floats(0.01, 100), b=st.floats(-5, 5)
)
def test_scale_and_offset_of_the_value_do_not_matter(name, noise, seed, a, b):
    plain = follow(name, probes=log_spaced(), noise=noise, seed=seed)
    rng = np.random.default_rng(seed)
    scaled = follow(lambda x: a * (CURVES[name](x) + noise * float(rng.standard_normal())) + b, probes=log_spaced())
    for (_, _, p), (_, _, q) in zip(plain, scaled):
        assert q.regime == pytest.approx(p.regime, abs=1e-6) and q.regime_slow == pytest.approx(p.regime_slow, abs=1e-6)
        assert q.signal == p.signal


@settings(deadline=None, max_examples=25)
@given(
    name=names,
    noise=noises,
    seed=st.integers(0, 99),
    signal=st.sampled_from(["discrepancy", "slope-over-peak", "validation", "gradient-cosine"]),
    kappa=st.floats(0.5, 16),
    guard=st.booleans(),
    gaps=st.floats(0, 0.3),
)
def test_r_stays_in_its_range_and_r_m_never_falls(name, noise, seed, signal, kappa, guard, gaps):
    rng, holes = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    config = RegimeConfig(signal=signal, kappa=kappa, guard=guard)
    run = follow(
        lambda x: math.nan if holes.random() < gaps else CURVES[name](x) + noise * float(rng.standard_normal()),
        config,
        log_spaced(1.1),
    )
    previous = 0.0
    for _, state, reading in run:
        assert 0 <= reading.regime <= reading.regime_slow <= reading.regime_monotone <= 1
        assert reading.regime_monotone >= previous
        previous = reading.regime_monotone
        assert len(state.history) <= 12


@settings(deadline=None, max_examples=25)
@given(name=names, noise=noises, seed=st.integers(0, 99), cut=st.integers(1, 75))
def test_a_run_resumed_through_json_continues_identically(name, noise, seed, cut):
    rng = np.random.default_rng(seed)
    probes = log_spaced()
    values = {n: CURVES[name](n / N) + noise * float(rng.standard_normal()) for n in probes}
    whole = follow(lambda x: values[round(x * N)], probes=probes, by_time=(0.1, 0.2))
    state = whole[cut - 1][1]
    back = RegimeState.from_json(json.loads(json.dumps(state.to_json())))
    assert back == state
    assert follow(lambda x: values[round(x * N)], probes=probes[cut:], state=back, by_time=(0.1, 0.2)) == whole[cut:]


@pytest.mark.parametrize("name", sorted(set(CURVES) - {"rise"}))
def test_the_spacing_of_the_probes_does_not_matter(name):
    """Without noise: with it, fewer probes say less, and the confidence interval keeps r lower.

    Spacings whose first three probes after burn-in see the same reference: none may jump over a fast transient.
    """
    runs = [follow(name, probes=p) for p in (even(200), even(250), log_spaced(1.06), log_spaced(1.03))]
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        r = [at(run, share).regime for run in runs]
        assert max(r) - min(r) < 0.12, (share, r)


def test_the_history_stays_bounded():
    longest = max(len(state.history) for _, state, _ in follow("power", probes=even(300)))
    assert longest <= 152
    assert len(json.dumps(follow("power", probes=even(300))[-1][1].to_json())) < 8000


def test_equal_inputs_give_equal_outputs_and_the_state_is_not_touched():
    state = follow("power", probes=even()[:100])[-1][1]
    before = json.dumps(state.to_json())
    step = {"examples_seen": 101_000, "total_examples": N, "value": 0.5}
    assert update_regime(DEFAULT, state, **step) == update_regime(DEFAULT, state, **step)
    assert json.dumps(state.to_json()) == before


def test_a_probe_repeated_at_the_same_place_changes_nothing():
    _, state, reading = follow("power", probes=even()[:100])[-1]
    again, repeated = update_regime(DEFAULT, state, examples_seen=100_000, total_examples=N, value=CURVES["power"](0.5))
    assert (again.history, again.r, again.r_s) == (state.history, state.r, state.r_s)
    assert repeated.regime == reading.regime


def test_misuse_is_refused():
    state = replace(RegimeState(), examples_seen=10)
    with pytest.raises(ValueError, match="went back"):
        update_regime(DEFAULT, state, examples_seen=9, total_examples=N, value=0.5)
    with pytest.raises(ValueError, match="total_examples"):
        update_regime(DEFAULT, state, examples_seen=11, total_examples=0, value=0.5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"signal": "entropy"}, "regime.signal is 'entropy'; choose one of discrepancy, "),
        ({"constant": 1.5}, "regime.constant"),
        ({"kappa": 0.0}, "regime.kappa"),
        ({"kappa": float("nan")}, "regime.kappa"),
        ({"guard": True, "signal": "constant"}, "regime.guard is true"),
        ({"reference": "end"}, "regime.reference"),
        ({"level_closed": 0.0}, "regime.level_closed"),
        ({"level_open": 0.04}, "regime.level_open is 0.04; give more than regime.level_closed"),
    ],
)
def test_a_mistaken_option_is_one_clear_line(options, named):
    with pytest.raises(UserError) as error:
        RegimeConfig(**options)
    assert str(error.value).startswith(named) and "\n" not in str(error.value)
