import math

import pytest
import torch

from segue.process.path import velocity_of
from segue.process.solvers import solve, time_grid

# For data x_0 ~ Normal(m, s^2) the path's marginal is Normal((1-t) m, (1-t)^2 s^2 + t^2), and the exact velocity is
# v(x, t) = E[eps - x_0 | x_t = x]; its flow maps quantiles to quantiles.
M, S = 1.5, 0.4


def field(x, t):
    t = t.view(-1, 1)
    variance = (1 - t) ** 2 * S**2 + t**2
    centred = x - (1 - t) * M
    return (t - (1 - t) * S**2) / variance * centred - M


X = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
EXACT = M + S * X


def error(method, steps):
    return float((solve(field, X, time_grid(steps), method) - EXACT).abs().max())


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("multistep", 2)])
def test_convergence_order(method, order):
    measured = math.log2(error(method, 128) / error(method, 256))
    assert measured == pytest.approx(order, abs=0.15)
    assert error(method, 256) < 0.02


def test_dpm_is_of_second_order_in_log_snr():
    """Between two noise levels: at the ends of the path, which lie infinitely far in log-SNR, it takes Euler steps."""

    def at(t):
        return (1 - t) * M + math.sqrt((1 - t) ** 2 * S**2 + t**2) * X

    def error(steps):
        times = torch.sigmoid(torch.linspace(3.5, -3.5, steps + 1, dtype=torch.float64))
        return float((solve(field, at(float(times[0])), times, "dpm") - at(float(times[-1]))).abs().max())

    assert math.log2(error(128) / error(256)) == pytest.approx(2, abs=0.15)
    # A step that ends at the data is an Euler step: it lands on the clean sample.
    ends = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    assert torch.allclose(solve(field, X, ends, "dpm"), solve(field, X, ends, "euler"))


@pytest.mark.parametrize("method", ["heun", "multistep"])
def test_order_holds_on_uneven_grids(method):
    errors = [float((solve(field, X, time_grid(n, shift=3.0), method) - EXACT).abs().max()) for n in (1024, 2048)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(("method", "evaluations"), [("euler", 10), ("heun", 19), ("multistep", 10)])
def test_evaluations(method, evaluations):
    calls = []
    solve(lambda x, t: calls.append(t.shape) or torch.zeros_like(x), X, time_grid(10), method)
    assert len(calls) == evaluations and calls[0] == (9,)


@pytest.mark.parametrize("method", ["euler", "heun", "multistep"])
def test_a_constant_velocity_is_exact_in_any_number_of_steps(method):
    v = torch.randn(9, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(solve(lambda x, t: v, X, time_grid(3), method), X - v)


def test_there_and_back():
    times = time_grid(400)
    x = solve(field, X, times, "heun")
    back = solve(lambda y, t: -field(y, 1 - t), x, times, "heun")
    torch.testing.assert_close(back, X, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["euler", "heun", "multistep"])
@pytest.mark.parametrize("steps", [4, 24, 100])
def test_a_perfect_clean_prediction_leaves_no_noise(method, steps):
    def perfect(x, t):
        return velocity_of(torch.full_like(x, M), "clean", x, t, floor=1e-4)

    torch.testing.assert_close(solve(perfect, X, time_grid(steps), method), torch.full_like(X, M))


def test_grid():
    assert time_grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    shifted = time_grid(4, shift=3.0)
    assert shifted[0] == 1 and shifted[-1] == 0 and shifted[2] == pytest.approx(0.75)


def test_bad_arguments():
    with pytest.raises(ValueError, match="euler, heun, multistep"):
        solve(field, X, time_grid(3), "dopri")
    with pytest.raises(ValueError, match="descend"):
        solve(field, X, time_grid(3).flip(0))
