import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from segue.process.timesteps import (
    LogitNormal,
    Mixture,
    Piecewise,
    Shifted,
    Truncated,
    Uniform,
    UniformAngle,
    distribution_from_json,
)

LAWS = [
    Uniform(),
    LogitNormal(0.0, 1.0),
    LogitNormal(0.8, 1.3),
    Shifted(LogitNormal(0.0, 1.0), 3.0),
    Shifted(Uniform(), 0.5),
    UniformAngle(),
    Truncated(Uniform(), 0.2, 0.7),
    Truncated(LogitNormal(-0.5, 1.0), 0.1, 0.95),
    Mixture(0.5, LogitNormal(0.8, 1.0)),
    Mixture(0.25, Truncated(LogitNormal(-1.0, 0.5), 0.05, 0.6)),
    Piecewise((0.2, 0.6, 0.95), (1.0, 4.0, 0.5)),
    Piecewise((0.0, 0.7, 1.0), (0.0, 2.0, 0.0)),
    Mixture(0.5, Piecewise((0.6, 0.7, 0.95), (0.1, 0.1, 1.0))),
]
every_law = pytest.mark.parametrize("law", LAWS, ids=str)


@every_law
def test_density_integrates_to_one_and_to_the_cdf(law):
    def p(t):
        return float(law.density(torch.tensor(t, dtype=torch.float64)))

    kinks = [0.05, 0.1, 0.2, 0.6, 0.7, 0.95]
    assert integrate.quad(p, 0, 1, points=kinks, limit=200)[0] == pytest.approx(1, abs=1e-7)
    for t in (0.15, 0.5, 0.8):
        part = integrate.quad(p, 0, t, points=[k for k in kinks if k < t], limit=200)[0]
        assert part == pytest.approx(float(law.cdf(torch.tensor(t, dtype=torch.float64))), abs=1e-7)


@every_law
def test_samples_follow_the_law(law):
    for stratified in (False, True):
        t = law.sample(20_000, torch.Generator().manual_seed(1), stratified=stratified)
        assert t.dtype == torch.float32 and t.min() > 0 and t.max() < 1
        distance = stats.kstest(t.double().numpy(), lambda x: law.cdf(torch.from_numpy(x)).numpy()).statistic
        assert distance < 0.012  # 1.63 / sqrt(20000): the 1 % point of the independent case


@every_law
def test_mean_equals_quadrature(law):
    def tp(t):
        return t * float(law.density(torch.tensor(t, dtype=torch.float64)))

    assert law.mean() == pytest.approx(
        integrate.quad(tp, 0, 1, points=[0.05, 0.1, 0.2, 0.6, 0.7, 0.95], limit=200)[0], abs=1e-4
    )


@settings(deadline=None, max_examples=60)
@given(law=st.sampled_from(LAWS), u=st.floats(1e-6, 1 - 1e-6))
def test_quantile_inverts_the_cdf(law, u):
    u = torch.tensor([u], dtype=torch.float64)
    torch.testing.assert_close(law.cdf(law.quantile(u)), u, atol=1e-9, rtol=0)


def bisected(law, u):
    low, high = torch.zeros_like(u), torch.ones_like(u)
    for _ in range(60):
        middle = (low + high) / 2
        below = law.cdf(middle) < u
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


@settings(deadline=None, max_examples=60)
@given(
    floor=st.floats(0.01, 1.0),
    mu=st.floats(-3.0, 3.0),
    sigma=st.floats(0.1, 2.0),
    low=st.sampled_from([0.0, 0.31]),
    seed=st.integers(0, 999),
)
def test_a_mixture_quantile_equals_bisection(floor, mu, sigma, low, seed):
    """Peaks, heavy tails and jumps of the density included."""
    base = LogitNormal(mu, sigma)
    if low and float(base.cdf(torch.tensor(low, dtype=torch.float64))) > 0.99:
        return
    law = Mixture(floor, Truncated(base, low, 1.0) if low else base)
    u = torch.rand(256, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(law.quantile(u), bisected(law, u), atol=1e-9, rtol=0)


@pytest.mark.parametrize("mu", [1.2, 0.3, -0.6])
def test_times_of_the_stage_recipe_are_read_off_the_table_alone(mu, monkeypatch):
    law = Mixture(0.2, LogitNormal(mu, 1.0))
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    law.quantile(u[:1])  # the table is made
    with monkeypatch.context() as patched:
        patched.setattr(Mixture, "density", None)  # Newton's method would ask for it
        t = law.quantile(u)
    assert float((law.cdf(t) - u).abs().max()) <= 1e-12


def test_a_quantile_keeps_the_shape_and_does_not_depend_on_its_neighbours():
    law = Mixture(0.5, LogitNormal(0.8, 1.0))
    u = torch.linspace(0.0, 1.0, 12, dtype=torch.float64).reshape(3, 4)
    together = law.quantile(u)
    assert together.shape == (3, 4)
    assert float(together[0, 0]) == pytest.approx(0, abs=1e-9) and float(together[2, 3]) == pytest.approx(1, abs=1e-9)
    alone = torch.stack([law.quantile(x.reshape(1))[0] for x in u.flatten()]).reshape(3, 4)
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)


def test_piecewise_is_scale_free_linear_between_and_constant_beyond():
    law = Piecewise((0.25, 0.75), (1.0, 3.0))
    t = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5], dtype=torch.float64)
    # mass 0.25 * 1 + 0.5 * 2 + 0.25 * 3 = 2
    torch.testing.assert_close(law.density(t), torch.tensor([0.5, 0.5, 0.5, 1.0, 1.5, 1.5, 0.0], dtype=torch.float64))
    tiny = Piecewise((0.25, 0.75), (1e-310, 3e-310))
    torch.testing.assert_close(tiny.density(t), law.density(t), atol=1e-6, rtol=1e-6)
    assert Piecewise((0.5,), (7.0,)).mean() == pytest.approx(0.5)
    assert Piecewise([0.25, 0.75], [1, 3]) == law and hash(Piecewise([0.25, 0.75], [1, 3])) == hash(law)


@every_law
def test_a_law_survives_json(law):
    assert distribution_from_json(json.loads(json.dumps(law.to_json()))) == law


def test_same_generator_same_times():
    law = Mixture(0.5, LogitNormal(0.8, 1.0))
    first, second = (law.sample(64, torch.Generator().manual_seed(5), stratified=True) for _ in range(2))
    assert torch.equal(first, second)


def test_stratified_batches_have_less_noise_in_their_mean():
    law, generator = LogitNormal(0.0, 1.0), torch.Generator().manual_seed(0)
    spread = {
        s: torch.stack([law.sample(32, generator, stratified=s).mean() for _ in range(300)]).std()
        for s in (False, True)
    }
    assert spread[True] < spread[False] / 5


def test_stratified_positions_are_in_random_order():
    """Each example of the batch sees the whole law over many batches, not its own slice of it."""
    generator = torch.Generator().manual_seed(0)
    first = torch.stack([Uniform().sample(8, generator, stratified=True)[0] for _ in range(4000)])
    assert stats.kstest(first.double().numpy(), "uniform").statistic < 0.026


def test_known_moments():
    assert Uniform().mean() == pytest.approx(0.5, abs=1e-9)
    assert LogitNormal(0.0, 2.0).mean() == pytest.approx(0.5, abs=1e-9)
    assert LogitNormal(0.7, 1.0).mean() + LogitNormal(-0.7, 1.0).mean() == pytest.approx(1, abs=1e-9)
    median = Shifted(Uniform(), 3.0).quantile(torch.tensor([0.5], dtype=torch.float64))
    assert float(median) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LogitNormal(0, 0),
        lambda: Shifted(Uniform(), 0),
        lambda: Truncated(Uniform(), 0.6, 0.6),
        lambda: Truncated(LogitNormal(-5.0, 0.3), 0.9, 1.0),
        lambda: Mixture(1.5, Uniform()),
        lambda: Piecewise((), ()),
        lambda: Piecewise((0.5,), (1.0, 2.0)),
        lambda: Piecewise((0.5, 0.4), (1.0, 2.0)),
        lambda: Piecewise((0.5, 1.2), (1.0, 2.0)),
        lambda: Piecewise((0.5, 0.6), (0.0, 0.0)),
        lambda: Piecewise((0.5, 0.6), (1.0, float("nan"))),
    ],
)
def test_impossible_laws_are_refused(make):
    with pytest.raises(ValueError):
        make()
