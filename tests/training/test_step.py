import pytest
import torch

from segue.process.noise import BatchDraws, keyed_generator
from segue.process.timesteps import LogitNormal, Uniform
from segue.training.step import Example, draw_example, losses
from segue.types import Condition, ModelOutput

G = torch.Generator().manual_seed(0)
X0 = torch.randn(8, 3, 5, generator=G)
CONDITION = Condition(torch.randn(8, 2, 4, generator=G), torch.ones(8, 2, dtype=torch.bool))


def draw(rows=slice(None), position=64, rank=0, world=1, distribution=None, **options):
    part = Condition(CONDITION.tokens[rows], CONDITION.tokens_mask[rows])
    t = (distribution or Uniform()).sample(8, keyed_generator(3, "times", 64), stratified=True)[rows]
    draws = BatchDraws(3, position, 8 // world, rank, world)
    return draw_example(X0[rows], part, None, t, draws, **options)


def test_ranks_draw_what_one_process_draws():
    whole = draw(dropout=0.5)
    parts = [draw(slice(4 * r, 4 * r + 4), rank=r, world=2, dropout=0.5) for r in (0, 1)]
    for name in ("eps", "t"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))
    assert torch.equal(torch.cat([p.condition.drop for p in parts]), whole.condition.drop)
    assert not torch.equal(parts[0].eps, parts[1].eps)


def test_dropout_has_its_rate_and_zero_drops_none():
    dropped = torch.cat([draw(position=p, dropout=0.2).condition.drop for p in range(0, 8000, 8)])
    assert float(dropped.float().mean()) == pytest.approx(0.2, abs=0.02)
    assert not draw(dropout=0.0).condition.drop.any()


def test_pieces_make_the_batch():
    example = draw(distribution=LogitNormal(0.5, 1.0))
    for parts in (1, 3, 8, 20):
        pieces = example.split(parts)
        assert torch.equal(torch.cat([p.eps for p in pieces]), example.eps)
        assert torch.equal(torch.cat([p.condition.tokens for p in pieces]), CONDITION.tokens)


class Constant(torch.nn.Module):
    """Predicts what it is told."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x_t, t, condition, mask):
        return ModelOutput(self.value)


def test_objectives_measure_one_error_in_three_ways():
    example = draw()
    guess = torch.randn(8, 3, 5, generator=G)
    velocity = losses(Constant(guess), example, "velocity")
    torch.testing.assert_close(velocity, (guess - (example.eps - X0)).square().mean((1, 2)))
    clean = losses(Constant(guess), example, "clean")
    torch.testing.assert_close(clean, (guess - X0).square().mean((1, 2)))
    # A velocity error counts t^2 in the clean sample.
    torch.testing.assert_close(losses(Constant(guess), example, "velocity", "clean"), velocity * example.t**2)
    high = example.t > 0.06  # above the floor under t
    torch.testing.assert_close(
        losses(Constant(guess), example, "clean", "velocity")[high], (clean / example.t**2)[high], rtol=1e-4, atol=1e-4
    )


def test_a_perfect_model_has_no_loss():
    example = draw()
    assert losses(Constant(example.eps - X0), example, "velocity").max() == 0
    assert losses(Constant(X0), example, "clean").max() == 0
    assert isinstance(example.to("cpu"), Example)
