"""Numbers and labels of a model: what it makes of them, and that nothing else depends on them."""

import math

import pytest
import torch

from segue.models.dit import DiT, DiTConfig
from segue.models.fields import LabelField, NumberField, asked_values, field_tensors
from segue.models.lengths import draw_seconds, faded_out
from segue.types import Condition, UserError

NUMBERS = (
    NumberField("seconds_start", 0.0, 0.0),
    NumberField("seconds_total", 0.05, 12.75),
    NumberField("bpm", 60.0, 180.0),
)
LABELS = (LabelField("key", ("A minor", "C")),)
SHAPE = {"channels": 4, "text_dim": 6, "width": 16, "depth": 2, "heads": 2}


def model(numbers=NUMBERS, labels=LABELS):
    torch.manual_seed(3)
    made = DiT(DiTConfig(**SHAPE, numbers=numbers, labels=labels))
    for name, parameter in made.named_parameters():
        if not name.startswith("fields."):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    return made.eval()


def condition(*values, drop=None):
    tokens = torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(0)).repeat(len(values), 1, 1)
    mask = torch.ones(len(values), 3, dtype=torch.bool)
    return Condition(tokens, mask, drop, **field_tensors(NUMBERS, LABELS, values))


def predicted(net, given):
    x = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1)).repeat(len(given.tokens), 1, 1)
    with torch.no_grad():
        return net(x, torch.full((len(x),), 0.5), given).prediction


def test_places_in_the_range():
    seconds, bpm = NUMBERS[1], NUMBERS[2]
    assert [bpm.place(x) for x in (60, 120, 180, 500, 0)] == [0, 0.5, 1, 1, 0]
    # log(1 + s / 0.05) is ln 2 at 0.05 s, ln 256 at 12.75 s, and halfway at 16 * sqrt 2 of it.
    assert [seconds.place(x) for x in (0.05, 12.75)] == [0, 1]
    assert seconds.place(0.05 * (math.exp(4.5 * math.log(2)) - 1)) == pytest.approx(0.5)
    assert NUMBERS[0].place(0.0) == 0.0


def test_every_field_matters_and_what_is_missing_is_unknown():
    net = model()
    known = {"seconds_start": 0.0, "seconds_total": 2.0, "bpm": 120.0, "key": "C"}
    others = [known | {"bpm": 121.0}, known | {"key": "A minor"}, known | {"seconds_total": 2.1}, {"key": "C"}, {}]
    whole = predicted(net, condition(known, *others))
    assert torch.equal(whole[0], predicted(net, condition(known))[0]) or torch.allclose(
        whole[0], predicted(net, condition(known))[0], atol=1e-6
    )
    assert all(float((whole[0] - other).abs().max()) > 1e-5 for other in whole[1:])
    # A label that training had none of counts as unknown, as does a condition without fields at all.
    torch.testing.assert_close(*predicted(net, condition({}, {"key": "H dur"})))
    plain = condition({})
    bare = Condition(plain.tokens, plain.tokens_mask)
    torch.testing.assert_close(predicted(net, plain), predicted(net, bare))


def test_dropping_hides_all_but_the_times():
    net = model()
    drop = torch.tensor([True, True, True])
    a, b, c = predicted(
        net, condition({"seconds_total": 2.0, "bpm": 90, "key": "C"}, {"seconds_total": 2.0}, {"bpm": 90}, drop=drop)
    )
    torch.testing.assert_close(a, b)
    assert float((a - c).abs().max()) > 1e-5


def test_initial_values_of_the_rest_do_not_depend_on_fields():
    torch.manual_seed(0)
    plain = DiT(DiTConfig(**SHAPE)).state_dict()
    torch.manual_seed(0)
    with_fields = DiT(DiTConfig(**SHAPE, numbers=NUMBERS, labels=LABELS)).state_dict()
    assert all(torch.equal(value, with_fields[name]) for name, value in plain.items())
    assert all(name.startswith("fields.") for name in with_fields.keys() - plain.keys())


def test_fields_that_a_start_lacks_begin_at_nothing():
    net = model()
    net.fields.begin_at_nothing()
    full = {"seconds_start": 0.0, "seconds_total": 2.0, "bpm": 90.0, "key": "C"}
    torch.testing.assert_close(predicted(net, condition(full)), predicted(model((), ()), condition({})))


def test_what_is_asked_for_is_checked():
    values, notes = asked_values(NUMBERS, LABELS, {"bpm": "200", "key": "A  minor"})
    assert values == {"bpm": 200.0, "key": "A minor"} and "60 to 180" in notes[0] and len(notes) == 1
    for asked, line in (
        ({"bpm": "fast"}, "not a number"),
        ({"bpm": "inf"}, "not a number"),
        ({"key": "c"}, "did you mean C"),
        ({"tempo": "3"}, "knows no tempo; hint: it knows bpm, key"),
        ({"seconds_total": "3"}, "--seconds"),
    ):
        with pytest.raises(UserError, match=line):
            asked_values(NUMBERS, LABELS, asked)
    with pytest.raises(UserError, match="segue encode --condition"):
        asked_values((), (), {"bpm": "3"})


def test_lengths_are_drawn_from_the_nearest_captions_or_from_all():
    lengths = {"quantiles": [0.1, 0.2, 4.0], "captions": {"drum snare hard": 0.4, "snare soft": 0.3, "ambi choir": 6.0}}
    assert draw_seconds(lengths, "Drum snare hard", 0, 0) == 0.4
    assert draw_seconds(lengths, "a choir, ambi", 0, 0) == 6.0
    drawn = [draw_seconds(lengths, "whale", seed, 0) for seed in range(200)]
    assert drawn == [draw_seconds(lengths, "whale", seed, 0) for seed in range(200)]
    assert 0.1 <= min(drawn) < 0.2 and 3 < max(drawn) <= 4.0 and 60 < sum(x < 0.2 for x in drawn) < 140


def test_behind_its_end_a_sound_fades_out():
    wave = torch.ones(3, 2, 1000)
    made = faded_out(wave, [0.3, 0.02, 7.0], 1000)
    assert torch.equal(made[0, 0, :301], wave[0, 0, :301]) and torch.equal(made[2], wave[2])
    assert float(made[0, 1, 325]) == pytest.approx(0.5)
    assert float(made[0, :, 350:].abs().max()) < 1e-5 and float(made[0, :, 351:].abs().max()) == 0.0
    assert float(made[1, :, 71:].abs().max()) == 0.0
