import torch

from segue.process.objectives import masked_mean, min_snr_weight, velocity_loss
from segue.process.path import clean_of, sample_path

G = torch.Generator().manual_seed(0)
X0, EPS, V = torch.randn(3, 2, 4, 6, dtype=torch.float64, generator=G)
MASK = torch.arange(6)[None] < torch.tensor([6, 2])[:, None]


def test_velocity_loss_by_hand():
    torch.testing.assert_close(velocity_loss(V, X0, EPS), ((V - (EPS - X0)) ** 2).mean((1, 2)))
    assert velocity_loss(EPS - X0, X0, EPS).max() == 0


def test_padding_counts_for_nothing():
    loss = velocity_loss(V, X0, EPS, MASK)
    torch.testing.assert_close(loss[1:], velocity_loss(V[1:, :, :2], X0[1:, :, :2], EPS[1:, :, :2]))
    spoiled = V.clone()
    for rubbish in (1e6, float("nan")):
        spoiled[1, :, 2:] = rubbish
        assert torch.equal(velocity_loss(spoiled, X0, EPS, MASK), loss)


def test_an_example_without_frames_gives_zero_and_no_nan():
    assert masked_mean(V, torch.zeros(2, 6, dtype=torch.bool)).tolist() == [0.0, 0.0]


def test_min_snr_weight_is_that_of_the_clean_sample_error():
    """weight(t) * velocity error = min(SNR, 5) * clean-sample error, at any t."""
    for time in (0.05, 0.2, 0.31, 0.5, 0.9):
        t = torch.full((2,), time, dtype=torch.float64)
        x_t = sample_path(X0, EPS, t)
        clean_error = ((clean_of(x_t, V, t) - X0) ** 2).mean((1, 2))
        snr = ((1 - time) / time) ** 2
        torch.testing.assert_close(min_snr_weight(t) * velocity_loss(V, X0, EPS), min(snr, 5.0) * clean_error)
