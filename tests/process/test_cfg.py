import pytest
import torch

from segue.process.cfg import combine, guided, rescale_clean
from segue.process.path import clean_of
from segue.types import Condition

G = torch.Generator().manual_seed(0)
X = torch.randn(3, 4, 5, dtype=torch.float64, generator=G)
CONDITION = Condition(torch.randn(3, 2, 6, generator=G), torch.ones(3, 2, dtype=torch.bool))


class Field:
    """Velocity 2x where the caption is heard, -x where it is dropped; counts its calls and rows."""

    def __init__(self):
        self.rows = []

    def __call__(self, x, t, condition):
        self.rows.append(len(x))
        drop = condition.drop if condition.drop is not None else torch.zeros(len(x), dtype=torch.bool)
        return torch.where(drop[:, None, None], -x, 2 * x)


T = torch.full((3,), 0.5, dtype=torch.float64)


def test_combination_by_hand_in_one_batched_call():
    field = Field()
    torch.testing.assert_close(guided(field, CONDITION, 3.0)(X, T), -X + 3.0 * (2 * X + X))
    assert field.rows == [6]


def test_scale_one_is_the_conditional_alone():
    field = Field()
    assert torch.equal(guided(field, CONDITION, 1.0)(X, T), 2 * X)
    assert field.rows == [3]


def test_scale_zero_is_the_unconditional():
    torch.testing.assert_close(guided(Field(), CONDITION, 0.0)(X, T), -X)


@pytest.mark.parametrize(("time", "inside"), [(0.1, False), (0.3, True), (0.5, True), (0.8, True), (0.81, False)])
def test_interval(time, inside):
    field = Field()
    out = guided(field, CONDITION, 3.0, interval=(0.3, 0.8))(X, torch.full((3,), time, dtype=torch.float64))
    assert field.rows == ([6] if inside else [3])
    assert torch.equal(out, 2 * X) != inside


def test_rescaling_restores_the_conditional_spread():
    v_c = torch.randn(3, 4, 5, dtype=torch.float64, generator=G)
    v_u = torch.randn(3, 4, 5, dtype=torch.float64, generator=G)
    v = combine(v_c, v_u, 6.0)
    spread = clean_of(X, v_c, T).std((1, 2))
    torch.testing.assert_close(clean_of(X, rescale_clean(v, v_c, X, T, 1.0), T).std((1, 2)), spread)
    torch.testing.assert_close(rescale_clean(v, v_c, X, T, 0.0), v)
    assert (clean_of(X, v, T).std((1, 2)) > spread).all()


def test_rescaling_is_continuous_down_to_data():
    v_c, v_u = (torch.randn(3, 4, 5, dtype=torch.float64, generator=G) for _ in range(2))
    v = combine(v_c, v_u, 3.0)
    at_zero, near = (rescale_clean(v, v_c, X, torch.full((3,), t, dtype=torch.float64), 0.7) for t in (0.0, 0.002))
    assert bool(at_zero.isfinite().all())
    torch.testing.assert_close(at_zero, near, atol=0.05, rtol=0)


def test_a_condition_that_already_drops_keeps_its_drops():
    drop = torch.tensor([True, False, False])
    out = guided(Field(), Condition(CONDITION.tokens, CONDITION.tokens_mask, drop), 3.0)(X, T)
    torch.testing.assert_close(out[0], -X[0])


def test_a_negative_condition_stands_in_place_of_the_dropped_one_whatever_its_length():
    def sums(x, t, condition):
        return condition.tokens.mul(condition.tokens_mask[..., None]).sum((1, 2))[:, None, None].double().expand_as(x)

    for count in (1, 2, 4):
        tokens = torch.randn(3, count, 6, generator=torch.Generator().manual_seed(count))
        negative = Condition(tokens, torch.ones(3, count, dtype=torch.bool))
        given, against = (sums(X, T, c) for c in (CONDITION, negative))
        out = guided(sums, CONDITION, 3.0, negative=negative)(X, T)
        torch.testing.assert_close(out, against + 3.0 * (given - against), atol=1e-5, rtol=0)
    assert torch.equal(guided(Field(), CONDITION, 1.0, negative=CONDITION)(X, T), 2 * X)
