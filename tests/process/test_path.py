import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.process.path import (
    clean_of,
    cosine_angle,
    cosine_norm,
    cosine_target,
    expand,
    log_snr,
    noise_of,
    sample_path,
    time_of_log_snr,
    velocity_from_clean,
    velocity_of,
    velocity_target,
)

G = torch.Generator().manual_seed(0)
X0, EPS = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=G)


def test_ends():
    assert torch.equal(sample_path(X0, EPS, torch.zeros(3)), X0)
    assert torch.equal(sample_path(X0, EPS, torch.ones(3)), EPS)


@settings(deadline=None, max_examples=30)
@given(t=st.floats(0.05, 1.0))
def test_every_reading_of_a_point_agrees(t):
    t = torch.full((3,), t, dtype=torch.float64)
    x_t, v = sample_path(X0, EPS, t), velocity_target(X0, EPS)
    torch.testing.assert_close(clean_of(x_t, v, t), X0)
    torch.testing.assert_close(noise_of(x_t, v, t), EPS)
    torch.testing.assert_close(velocity_from_clean(x_t, X0, t), v)


def test_velocity_is_the_derivative_of_the_path():
    t, h = torch.full((3,), 0.4, dtype=torch.float64), 1e-6
    slope = (sample_path(X0, EPS, t + h) - sample_path(X0, EPS, t - h)) / (2 * h)
    torch.testing.assert_close(slope, velocity_target(X0, EPS), atol=1e-8, rtol=0)


def test_below_the_floor_velocity_stays_finite():
    t = torch.zeros(3, dtype=torch.float64)
    v = velocity_from_clean(sample_path(X0, EPS, t), X0 + 1.0, t, floor=0.05)
    torch.testing.assert_close(v, torch.full_like(v, -20.0))


def test_velocity_of():
    t = torch.full((3,), 0.5, dtype=torch.float64)
    assert velocity_of(X0, "velocity", EPS, t) is X0
    torch.testing.assert_close(velocity_of(X0, "clean", EPS, t), (EPS - X0) * 2)
    with pytest.raises(ValueError, match="clean"):
        velocity_of(X0, "noise", EPS, t)


# --- what t means on every path ---------------------------------------------------------------------------------------

TIMES = torch.tensor([1e-4, 0.02, 0.3, 0.5, 0.77, 0.999], dtype=torch.float64)


def test_a_time_is_a_log_snr_on_every_path():
    """The straight path, the cosine path by its angle, and noise over data, each by its own closed form."""
    wanted = log_snr(TIMES)
    torch.testing.assert_close(wanted, torch.log((1 - TIMES) ** 2 / TIMES**2))
    assert torch.allclose(time_of_log_snr(wanted), TIMES, rtol=1e-12, atol=0)
    angle = cosine_angle(TIMES) * math.pi / 2
    torch.testing.assert_close(torch.log(angle.cos() ** 2 / angle.sin() ** 2), wanted)
    sigma = TIMES / (1 - TIMES)
    torch.testing.assert_close(-2 * torch.log(sigma), wanted)


def test_the_cosine_path_is_the_straight_one_scaled():
    x_0, eps = torch.randn(2, len(TIMES), 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angle = (cosine_angle(TIMES) * math.pi / 2)[:, None, None]
    point = angle.cos() * x_0 + angle.sin() * eps
    x_t = sample_path(x_0, eps, TIMES)
    torch.testing.assert_close(x_t / expand(cosine_norm(TIMES), x_t), point)
    v = cosine_target(x_0, eps, TIMES)
    torch.testing.assert_close(v, angle.cos() * eps - angle.sin() * x_0)
    # v gives back the clean sample on its own path, and the velocity on ours.
    torch.testing.assert_close(angle.cos() * point - angle.sin() * v, x_0)
    torch.testing.assert_close(velocity_of(v, "v", x_t, TIMES), eps - x_0)
