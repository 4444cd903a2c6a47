import torch

from segue.training import features
from segue.training.build import cached_space


def test_a_fit_in_pieces_finds_what_one_at_once_finds(taught, monkeypatch):
    latents, mask = taught.latents(range(8))
    space = cached_space(taught)
    x_0 = space.standardise(latents, mask)
    found = []
    for at_once in (512, 7):
        monkeypatch.setattr(features, "FIT_AT_ONCE", at_once)
        found.append(features.latent_extract(taught, space, "cpu")(x_0))
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)
    assert found[0].std() > 0.1


def test_the_fit_takes_less_the_fewer_clips_it_takes_at_once(taught, monkeypatch):
    whole = features.fit_bytes(taught)
    monkeypatch.setattr(features, "FIT_AT_ONCE", 8)
    assert 0 < features.fit_bytes(taught) < whole
