"""What a text encoder loses of captions is counted: their ends, and words that it does not know."""

import pytest

from segue.conditioners import load_conditioner, load_token_counter
from segue.conditioners.tokens import count_tokens, fit_tokens
from segue.types import UserError

LONG = "a note, " * 30 + "and a bell"


@pytest.fixture(scope="module")
def minilm():
    return load_conditioner("minilm")


def test_tokens_are_counted_as_they_are_encoded(minilm):
    captions = ["a soft violin", "rain", LONG]
    lengths, unknown = minilm.count_tokens(captions)
    _, mask = minilm.with_max_tokens(200).encode(captions)
    assert lengths == mask.sum(1).tolist() and unknown == [0, 0, 0]
    assert load_token_counter("minilm").count_tokens(captions) == (lengths, unknown)


def test_too_few_or_too_many_tokens_name_their_option(minilm):
    for tokens in (0, 99999):
        with pytest.raises(UserError, match=f"--max-tokens {tokens}: hint: give 3 to 512"):
            minilm.with_max_tokens(tokens)


def test_cut_captions_are_counted_and_said(minilm):
    counts = count_tokens(minilm, ["rain", LONG])
    assert counts.cut == (LONG,) and counts.longest > 48 == counts.max_tokens
    (note,) = counts.notes()
    assert note.startswith("1 caption (e.g. 'a note, a note,") and "longer than 48 tokens, cut there" in note
    assert count_tokens(minilm, ["rain"]).notes() == []
    assert count_tokens(minilm, []) is None


@pytest.mark.parametrize("caption", ["🎸 solo", "𓀀 chant", "a \U0001f600 laugh"])
def test_signs_that_the_encoder_does_not_know_are_counted_and_said(minilm, caption):
    counts = count_tokens(minilm, ["rain", caption])
    assert counts.unknown == (caption,)
    assert "1 prompt (e.g." in counts.notes("prompt")[0] and "does not know" in counts.notes("prompt")[0]


def test_the_encoder_is_given_the_room_that_captions_need(minilm):
    assert fit_tokens(minilm, ["rain"]) is minilm
    assert fit_tokens(minilm, [LONG]).max_tokens == 96
    assert fit_tokens(minilm, [LONG * 9]).max_tokens == minilm.most_tokens == 512
    assert fit_tokens(minilm, [LONG], max_tokens=20).max_tokens == 20
    assert fit_tokens(minilm, ["rain"], least=96).max_tokens == 96  # an earlier cache had that
    for wrong in (2, 513, 0):
        with pytest.raises(UserError, match="give 3 to 512"):
            fit_tokens(minilm, ["rain"], max_tokens=wrong)
