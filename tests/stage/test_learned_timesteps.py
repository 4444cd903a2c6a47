import json

import pytest
import torch

from segue.process.timesteps import Kumaraswamy, distribution_from_json
from segue.stage.variants.learned_timesteps import LearnedState, update_learned


@pytest.mark.parametrize("a,b", [(1.0, 1.0), (2.5, 1.2), (0.7, 3.0)])
def test_the_law_is_a_law(a, b):
    law = Kumaraswamy(a, b)
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(law.cdf(law.quantile(u)), u)
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    assert float(law.density(t).mean()) == pytest.approx(1, abs=5e-3)
    assert distribution_from_json(json.loads(json.dumps(law.to_json()))) == law


@pytest.mark.parametrize("t", [0.05, 0.4, 0.93])
def test_the_score_is_the_gradient_of_the_log_density(t):
    logs = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    a, b = logs.exp()
    log_density = a.log() + b.log() + (a - 1) * torch.tensor(t).log() + (b - 1) * torch.log1p(-(t**a))
    (gradient,) = torch.autograd.grad(log_density, logs)
    score = Kumaraswamy(a.item(), b.item()).score(t)
    assert score == pytest.approx(gradient.tolist(), rel=1e-5)


@pytest.mark.parametrize("where", [0.85, 0.15])
def test_it_learns_to_draw_where_the_gain_is(where):
    state, generator = LearnedState(), torch.Generator().manual_seed(0)
    for n in range(60):
        times = state.distribution.sample(64, generator, stratified=True).tolist()
        state = update_learned(state, times, [-abs(t - where) for t in times], n)
    drawn = state.distribution.sample(2000, generator)
    assert (drawn.mean() - 0.5) * (where - 0.5) > 0.02
    assert float(((drawn - where).abs() < 0.2).float().mean()) > 0.45  # 0.35 to 0.4 by uniform times


def test_gains_without_a_spread_or_not_finite_change_nothing():
    state = LearnedState(0.2, -0.1, 5)
    for gains in ([1.0, 1.0], [float("nan"), 1.0]):
        assert update_learned(state, [0.2, 0.8], gains, 9) == LearnedState(0.2, -0.1, 9)
    assert LearnedState.from_json(json.loads(json.dumps(state.to_json()))) == state
