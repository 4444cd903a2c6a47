import pytest
import torch

from segue.process import noise
from segue.process.noise import BatchDraws, keyed_generator, keyed_noise


def test_noise_of_an_example_does_not_depend_on_its_batch():
    whole = keyed_noise((3, 5), 7, "noise", range(10, 20))
    halves = torch.cat([keyed_noise((3, 5), 7, "noise", range(10, 14)), keyed_noise((3, 5), 7, "noise", range(14, 20))])
    assert torch.equal(whole, halves)


def test_seed_stream_and_position_each_matter():
    base = keyed_noise((100,), 0, "noise", [0])[0]
    for other in (
        keyed_noise((100,), 1, "noise", [0]),
        keyed_noise((100,), 0, "times", [0]),
        keyed_noise((100,), 0, "noise", [1]),
    ):
        assert torch.corrcoef(torch.stack([base, other[0]]))[0, 1].abs() < 0.4
        assert not torch.equal(base, other[0])


def test_draws_are_standard_normal_and_independent_over_positions():
    x = keyed_noise((64,), 3, "noise", range(2000)).double()
    assert abs(float(x.mean())) < 0.01 and abs(float(x.var()) - 1) < 0.02
    neighbours = (x[:-1] * x[1:]).mean(1)
    assert abs(float(neighbours.mean())) < 0.01


def test_the_global_generator_is_left_alone():
    state = torch.random.get_rng_state()
    keyed_noise((4,), 0, "noise", range(3))
    assert torch.equal(state, torch.random.get_rng_state())
    assert keyed_generator(0, "x").initial_seed() >= 0


@pytest.mark.parametrize("block", [1, 3, 4, 256])
@pytest.mark.parametrize("world", [1, 2, 3, 6, 12])
def test_ranks_take_their_rows_of_one_global_batch(monkeypatch, block, world):
    monkeypatch.setattr(noise, "BLOCK", block)
    for name in ("normal", "uniform"):
        whole = getattr(BatchDraws(5, 24, 12), name)("noise", 4, 20)
        parts = [getattr(BatchDraws(5, 24, 12 // world, rank, world), name)("noise", 4, 20) for rank in range(world)]
        assert whole.shape == (12, 4, 20) and torch.equal(torch.cat(parts), whole)


def test_draws_of_a_batch_differ_by_seed_stream_position_row_and_block(monkeypatch):
    monkeypatch.setattr(noise, "BLOCK", 2)
    base = BatchDraws(0, 0, 4).normal("noise", 32)
    others = [BatchDraws(1, 0, 4).normal("noise", 32), BatchDraws(0, 4, 4).normal("noise", 32)]
    rows = torch.cat([base, *others, BatchDraws(0, 0, 4).normal("other", 32)])
    assert len(rows.unique(dim=0)) == len(rows)
    assert torch.equal(base, BatchDraws(0, 0, 4).normal("noise", 32))


def test_draws_of_a_batch_have_their_distribution():
    draws = BatchDraws(1, 512, 300)
    assert draws.normal("noise", 50).std().item() == pytest.approx(1, abs=0.03)
    even = draws.uniform("drop", 50)
    assert even.min() >= 0 and even.max() < 1 and even.mean().item() == pytest.approx(0.5, abs=0.01)
