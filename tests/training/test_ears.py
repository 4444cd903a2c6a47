import torch

from segue.tasks.generation import standardise
from segue.training import ears


def test_ears_fitted_in_pieces_hear_what_those_fitted_at_once_hear(taught, monkeypatch):
    latents, mask = taught.latents(range(8))
    x_0 = standardise(latents, *taught.statistics, mask)
    heard = []
    for at_once in (512, 7):
        monkeypatch.setattr(ears, "FIT_AT_ONCE", at_once)
        heard.append(ears.latent_ears(taught, taught.statistics, "cpu")(x_0))
    torch.testing.assert_close(*heard, atol=1e-3, rtol=1e-3)
    assert heard[0].std() > 0.1


def test_the_fit_takes_less_the_fewer_clips_it_takes_at_once(taught, monkeypatch):
    whole = ears.fit_bytes(taught)
    monkeypatch.setattr(ears, "FIT_AT_ONCE", 8)
    assert 0 < ears.fit_bytes(taught) < whole
