import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from segue.process.timesteps import LogitNormal, Mixture, Truncated, Uniform, distribution_from_json
from segue.stage.policy import Policy
from segue.stage.regime_state import RegimeState
from segue.stage.timesteps import TimestepsConfig, importance, stage_distribution
from segue.stage.variants.learned_timesteps import LearnedState
from segue.stage.variants.per_time_and_curriculum import curriculum_distribution, per_time_distribution
from segue.types import UserError

GRID = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
LATE = torch.tensor([0.8], dtype=torch.float64)
regimes = st.floats(0.0, 1.0)
floors = st.floats(0.05, 1.0)
remainders = st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4)
TIMES = (0.5, 0.7, 0.85, 0.95)


def choose(config, r=0.0, share=0.0, static=None):
    policy = Policy(static_timesteps=static or Uniform(), timesteps=config)
    return policy.timestep_distribution(RegimeState(), LearnedState(), share, r)


def high_noise_share(distribution):
    """P(t > 0.8)."""
    return 1 - float(distribution.cdf(LATE))


@settings(deadline=None, max_examples=60)
@given(r=regimes, floor=floors, mu_start=st.floats(0.0, 3.0), back=st.floats(0.0, 1.0), remaining=remainders)
def test_no_noise_level_starves(r, floor, mu_start, back, remaining):
    """The density is at least the floor everywhere, and high noise keeps its share of the floor at any r."""
    for distribution in (
        stage_distribution(r, floor, mu_start, back),
        per_time_distribution(tuple(zip(TIMES, remaining)), floor),
    ):
        assert distribution.density(GRID).min() >= floor - 1e-12
        assert high_noise_share(distribution) >= 0.2 * floor - 1e-12


def test_the_default_distribution_keeps_a_tenth_of_its_draws_above_t_08():
    shares = [high_noise_share(choose(TimestepsConfig(distribution="stage"), r)) for r in np.linspace(0, 1, 11)]
    assert min(shares) == shares[-1] == pytest.approx(0.107, abs=1e-3)
    assert shares[0] == pytest.approx(0.239, abs=1e-3)
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(("back", "end"), [(1.0, -1.2), (0.5, -0.6), (0.0, 0.0)])
def test_the_lean_at_the_end_is_a_share_of_the_lean_at_the_start(back, end):
    config = TimestepsConfig(distribution="stage", floor=0.2, mu_start=1.2, mu_end_ratio=back)
    for r, mu in ((0.0, 1.2), (1.0, end)):
        distribution = choose(config, r, 0.5)
        assert distribution == Mixture(0.2, LogitNormal(mu, 1.0))


def test_the_stage_distribution_leans_to_noise_then_to_data():
    config = TimestepsConfig(distribution="stage", floor=0.4, mu_start=0.6)
    assert choose(config, 0.25) == Mixture(0.4, LogitNormal(0.6 * 0.5, 1.0))
    means = [choose(config, r).mean() for r in (0.0, 0.3, 0.6, 1.0)]
    assert means == sorted(means, reverse=True)


def test_a_static_config_returns_the_static_distribution_whatever_the_stage():
    distribution = LogitNormal(0.3, 1.0)
    assert choose(TimestepsConfig(), r=0.7, share=0.9, static=distribution) is distribution


def test_the_per_time_distribution_follows_what_remains():
    distribution = per_time_distribution(tuple(zip(TIMES, (0.0, 0.2, 0.6, 1.0))))
    density = distribution.density(torch.tensor([0.1, 0.5, 0.6, 0.7, 0.85, 0.95, 0.99], dtype=torch.float64))
    assert density[0] == pytest.approx(float(density[1])) and density[5] == pytest.approx(float(density[6]))
    assert (density[1:6].diff() > 0).all()
    assert float(density[2]) == pytest.approx(float((density[1] + density[3]) / 2))
    excess = (density - 0.5) / (density[5] - 0.5)  # without the floor: 0.1 + remaining, up to scale
    torch.testing.assert_close(excess[[1, 3, 4, 5]], torch.tensor([0.1, 0.3, 0.7, 1.1], dtype=torch.float64) / 1.1)


@pytest.mark.parametrize("remaining", [(), tuple((t, 1.0) for t in TIMES), tuple((t, 0.0) for t in TIMES)])
def test_the_per_time_distribution_is_uniform_where_times_do_not_differ(remaining):
    torch.testing.assert_close(per_time_distribution(remaining).density(GRID), torch.ones_like(GRID))


def test_the_curriculum_opens_from_high_noise_cumulatively():
    base = LogitNormal(0.0, 1.0)
    lows = []
    for share in np.linspace(0, 1, 101):
        distribution = curriculum_distribution(base, share, clusters=5, open_at=0.5)
        lows.append(distribution.low if isinstance(distribution, Truncated) else 0.0)
    assert lows[0] == pytest.approx(0.8)
    assert all(a >= b for a, b in zip(lows, lows[1:]))
    assert sorted({round(low, 9) for low in lows}) == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert lows[49] > 0 and lows[50] == 0.0
    assert curriculum_distribution(base, 0.5, 5, 0.5) is base and curriculum_distribution(base, 0.0, 1) is base
    assert choose(TimestepsConfig("curriculum"), share=0.1, static=base) == Truncated(base, 1 - 2 / 10, 1.0)


EVERY = [
    stage_distribution(0.0),
    stage_distribution(0.7, floor=0.2, mu_start=1.5),
    per_time_distribution(tuple(zip(TIMES, (0.1, 0.9, 0.3, 1.0)))),
    per_time_distribution(()),
    curriculum_distribution(LogitNormal(0.0, 1.0), 0.2),
]


@pytest.mark.parametrize("distribution", EVERY, ids=str)
def test_stratified_draws_follow_the_distribution(distribution):
    generator = torch.Generator().manual_seed(7)
    t = torch.cat([distribution.sample(64, generator, stratified=True) for _ in range(100)]).double().numpy()
    result = stats.kstest(t, lambda x: distribution.cdf(torch.from_numpy(x)).numpy())
    assert result.statistic < 1.63 / math.sqrt(6400)  # the 1 % point of independent draws; stratified ones do better
    again = distribution.sample(64, torch.Generator().manual_seed(7), stratified=True)
    assert np.array_equal(again.double().numpy(), t[:64])


@pytest.mark.parametrize("distribution", EVERY, ids=str)
def test_a_distribution_survives_json(distribution):
    assert distribution_from_json(distribution.to_json()) == distribution


@pytest.mark.parametrize("distribution", EVERY[:4], ids=str)
def test_importance_turns_the_expected_loss_into_the_uniform_one(distribution):
    # E_p[w f] by the midpoint rule on the distribution's own quantile, against the integral of f over (0, 1)
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    t = distribution.quantile(u)
    weights = importance(distribution, t)
    assert float(weights.mean()) == pytest.approx(1.0, abs=1e-6)
    for f, integral in ((lambda t: t**2, 1 / 3), (lambda t: torch.cos(3 * t), math.sin(3) / 3)):
        assert float((weights * f(t)).mean()) == pytest.approx(integral, abs=1e-6)
    assert weights.max() <= 1 / distribution.floor + 1e-9
    drawn = distribution.sample(32, torch.Generator().manual_seed(0))
    assert importance(distribution, drawn).dtype == torch.float32 and importance(distribution, drawn).shape == (32,)


def test_uniform_times_need_no_correction():
    t = Uniform().sample(16, torch.Generator().manual_seed(0))
    assert torch.equal(importance(Uniform(), t), torch.ones(16))


def test_a_distribution_that_skips_times_cannot_be_corrected():
    with pytest.raises(ValueError, match="no mass"):
        importance(Truncated(Uniform(), 0.5, 1.0), torch.tensor([0.2]))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"distribution": "cosine"}, "timesteps.distribution"),
        ({"floor": 1.2}, "timesteps.floor"),
        ({"mu_start": -1.0}, "timesteps.mu_start"),
        ({"mu_end_ratio": 1.5}, "timesteps.mu_end_ratio"),
        ({"mu_start": float("nan")}, "timesteps.mu_start"),
        ({"distribution": "curriculum", "corrected": True}, "timesteps.corrected"),
        ({"distribution": "stage", "floor": 0.0, "corrected": True}, "timesteps.corrected"),
    ],
)
def test_a_mistaken_option_is_one_clear_line(options, named):
    with pytest.raises(UserError, match=named) as error:
        TimestepsConfig(**options)
    assert "\n" not in str(error.value)
