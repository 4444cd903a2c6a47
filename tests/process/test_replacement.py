"""Replacement on data that are Gaussian, where the exact velocity and the exact conditional are known."""

import pytest
import torch

from segue.process.path import sample_path
from segue.process.replacement import renoised, solve_replacing
from segue.process.solvers import time_grid

LENGTH, DRAWS = 6, 4000
AT = torch.arange(LENGTH)
COVARIANCE = 0.8 ** (AT[:, None] - AT).abs().double()
KNOWN = (AT < 2)[None, None]
VALUES = torch.tensor([1.5, 1.2, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64).expand(DRAWS, 1, LENGTH)
# The Gaussian of the unknown frames, given the known ones.
GAIN = COVARIANCE[2:, :2] @ torch.linalg.inv(COVARIANCE[:2, :2])
MEAN = GAIN @ VALUES[0, 0, :2]
SPREAD = COVARIANCE[2:, 2:] - GAIN @ COVARIANCE[:2, 2:]


def field(x, t):
    """E[eps - x_0 | x_t] for x_0 ~ Normal(0, COVARIANCE)."""
    t = float(t[0])
    total = (1 - t) ** 2 * COVARIANCE + t**2 * torch.eye(LENGTH, dtype=torch.float64)
    gain = torch.linalg.solve(total, t * torch.eye(LENGTH, dtype=torch.float64) - (1 - t) * COVARIANCE)
    return x @ gain


def noise(draw):
    return torch.randn(DRAWS, 1, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(draw))


def sampled(rounds, method="multistep", steps=24):
    return solve_replacing(field, noise(10**6), time_grid(steps), method, VALUES, KNOWN, noise, rounds=rounds)


@pytest.mark.parametrize("method", ["euler", "heun", "multistep", "dpm"])
def test_the_known_part_is_kept_exactly_by_every_solver(method):
    assert torch.equal(sampled(2, method, 8)[..., :2], VALUES[..., :2])


def test_going_back_and_forth_brings_the_rest_to_its_conditional():
    """Plain replacement makes too little of what is known (RePaint's reason); with rounds it approaches the truth."""
    errors = []
    for rounds in (1, 4, 12):
        made = sampled(rounds)[:, 0, 2:]
        errors.append(float((made.mean(0) - MEAN).norm() / MEAN.norm()))
        if rounds == 12:
            spread = torch.cov(made.T)
            assert float((spread - SPREAD).norm() / SPREAD.norm()) < 0.2
    assert errors[0] > 0.5 and errors[1] < 0.4 and errors[2] < 0.2, errors


def test_nothing_known_is_the_solver_alone():
    from segue.process.solvers import solve

    nothing = torch.zeros_like(KNOWN)
    x = noise(1)
    made = solve_replacing(field, x, time_grid(8), "euler", VALUES, nothing, noise, rounds=1, stretches=1)
    assert torch.equal(made, solve(field, x, time_grid(8), "euler"))


@pytest.mark.parametrize(("end", "begin"), [(0.0, 0.3), (0.4, 0.7), (0.9, 1.0)])
def test_noise_that_is_added_again_is_that_of_the_path(end, begin):
    x_0 = torch.full((DRAWS, 1, LENGTH), 2.0, dtype=torch.float64)
    times = torch.full((DRAWS,), end, dtype=torch.float64)
    x = renoised(sample_path(x_0, noise(3), times), end, begin, noise(4))
    assert float(x.mean()) == pytest.approx(2 * (1 - begin), abs=0.02)
    assert float(x.std()) == pytest.approx(begin, abs=0.02)
