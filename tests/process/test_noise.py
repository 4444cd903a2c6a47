import torch

from segue.process.noise import keyed_generator, keyed_noise


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
