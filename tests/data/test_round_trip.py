import pytest
import torch

from segue.codecs import load_codec
from segue.data.round_trip import RoundTrip, check_round_trip, level_error_db, returned_by, round_trip_error
from segue.types import UserError

TIME_SEC = torch.arange(16000) / 16000
WAVES = torch.stack(
    [0.3 * torch.sin(2 * torch.pi * hz * TIME_SEC) * torch.exp(-3 * TIME_SEC) for hz in (220, 440, 900)]
)[:, None]


class Broken:
    """A codec that answers with something else."""

    sample_rate_hz = 16000

    def __init__(self, answer):
        self.answer = answer

    def encode(self, wave):
        return wave

    def decode(self, latents, samples):
        return self.answer(latents)


def noise(x):
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return drawn * x.std() / drawn.std()


def test_a_good_codec_passes():
    assert check_round_trip(load_codec("spectral", 16000), WAVES, "spectral").spectral_error < 1e-3


@pytest.mark.parametrize("answer", [noise, torch.zeros_like, lambda x: x * float("nan"), lambda x: 3 * x])
def test_a_codec_that_gives_back_something_else_is_refused(answer):
    with pytest.raises(
        UserError, match=r"the codec mine gives back noise, .*; hint: take one whose weights are trained"
    ):
        check_round_trip(Broken(answer), WAVES, "mine")


def test_the_error_of_a_gain_is_known():
    assert round_trip_error(WAVES, returned_by(Broken(lambda x: 0.75 * x), WAVES)) == pytest.approx(0.25, abs=1e-4)


def test_a_few_sounds_that_a_codec_cannot_render_are_no_broken_codec():
    def answer(x):
        return noise(x) if float(x.abs().max()) > 0.5 else x

    waves = torch.cat([WAVES, 3 * WAVES[:1], torch.zeros(4, 1, 16000)])
    assert check_round_trip(Broken(answer), waves, "mine").spectral_error < 1e-3
    with pytest.raises(UserError, match="gives back noise"):
        check_round_trip(Broken(answer), 3 * waves, "mine")


def test_levels_are_off_by_what_a_gain_says_and_blind_to_phases():
    assert level_error_db(WAVES, 0.5 * WAVES, 16000) == pytest.approx(6.02, abs=1), "but for what is near the floor"
    assert level_error_db(WAVES, -WAVES, 16000) == 0.0
    both = torch.cat([WAVES, WAVES / 2], dim=1)
    assert level_error_db(both, both.flip(1), 16000) > 3, "swapped sides are no good round trip"
    assert level_error_db(torch.zeros(1, 1, 4000), torch.zeros(1, 1, 4000), 16000) == 0.0


def test_the_figure_is_told_in_words():
    assert [RoundTrip(0.1, x).meaning.split(" (")[0] for x in (0.2, 1.5, 3.0, 6.5)] == [
        "good", "good", "audible loss", "unusable",
    ]  # fmt: skip
    assert check_round_trip(load_codec("spectral", 16000), WAVES, "spectral").meaning.startswith("good")
