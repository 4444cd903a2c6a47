"""The shipped note classifier: what it promises about its input, its card, and that it tells notes apart."""

import json
import shutil

import numpy as np
import pytest
import torch

from segue.evaluation.note_classifier import NO_PITCH, NOTE_SAMPLES, SHIPPED, NoteClassifier, NoteFrontEnd, NoteNet
from segue.types import UserError


@pytest.fixture(scope="module")
def classifier():
    return NoteClassifier.load()


def tone(midi_pitch, rate=16000, samples=NOTE_SAMPLES, harmonics=8):
    """A plain harmonic tone that dies away, [1, T]."""
    t = torch.arange(samples, dtype=torch.float64) / rate
    f0 = 440.0 * 2.0 ** ((midi_pitch - 69) / 12)
    wave = sum(torch.sin(2 * torch.pi * f0 * h * t) / h for h in range(1, harmonics + 1) if f0 * h < 7000)
    return (0.1 * wave * torch.exp(-2 * t)).float()[None]


def test_a_gain_changes_nothing(classifier):
    wave = tone(60)
    front_end = NoteFrontEnd()
    torch.testing.assert_close(front_end(wave), front_end(0.05 * wave), atol=1e-3, rtol=0)


def test_an_octave_is_a_shift_of_the_picture():
    front_end = NoteFrontEnd()
    rows = [front_end(tone(p, harmonics=1))[0, 0, :, 30].argmax().item() for p in (57, 69, 81)]
    assert rows == [48, 72, 96]


def test_silence_and_single_samples_stay_finite(classifier):
    impulse = torch.zeros(2, 100)
    impulse[1, 3] = 1.0
    found = classifier.predict(impulse, 16000)
    for values in (found.family_probability, found.pitch_probability, found.embedding):
        assert np.isfinite(values).all()


def test_outputs_have_their_shapes(classifier):
    found = classifier.predict(torch.randn(5, 20000), 16000, batch_size=2)
    assert found.family.shape == found.pitch.shape == found.instrument.shape == (5,)
    assert found.embedding.shape == (5, 64)
    assert found.family_probability.shape == (5, len(classifier.families))
    np.testing.assert_allclose(found.pitch_probability.sum(1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(found.family, found.family_probability.argmax(1))


def test_batches_do_not_matter(classifier):
    waves = torch.cat([tone(p) for p in (50, 55, 60, 65, 70)])
    whole, single = classifier.predict(waves, 16000), classifier.predict(waves, 16000, batch_size=1)
    np.testing.assert_allclose(whole.embedding, single.embedding, atol=1e-4)


def test_it_tells_the_pitch_of_sounds_it_never_saw(classifier):
    pitches = list(range(45, 80, 3))
    found = classifier.predict(torch.cat([tone(p) for p in pitches]), 16000)
    asked = np.array([classifier.pitch_index(p) for p in pitches])
    assert (found.pitch == asked).mean() >= 0.7


def test_rate_and_length_are_fitted(classifier):
    low = classifier.predict(tone(60), 16000)
    high = classifier.predict(tone(60, rate=48000, samples=3 * NOTE_SAMPLES + 999), 48000)
    assert low.pitch[0] == high.pitch[0]
    np.testing.assert_allclose(low.family_probability, high.family_probability, atol=0.05)


def test_card_describes_the_weights(classifier):
    assert (SHIPPED / "note-classifier.safetensors").stat().st_size < 4_000_000
    parameters = sum(p.numel() for p in NoteNet(len(classifier.families), len(classifier.instruments)).parameters())
    assert parameters == classifier.card["parameters"] <= 1_200_000
    assert len(classifier.pitches) == NO_PITCH + 1 and classifier.pitches[-1] is None
    assert "drum" in classifier.families and classifier.sha256 == classifier.card["sha256"]
    for key in ("command", "commit", "machine", "data", "training", "preprocessing", "limits"):
        assert classifier.card[key]
    figures = classifier.card["figures"]
    assert figures["clean"]["family"]["accuracy"] >= 0.97
    assert figures["clean"]["pitch"]["accuracy"] >= 0.97
    assert min(figures["codec-like"][head]["accuracy"] for head in ("family", "pitch")) >= 0.85


def test_card_knows_the_demo_vocabulary(classifier):
    from segue.data.demo_set import demo_vocabulary

    vocabulary = demo_vocabulary()
    assert set(classifier.families) == set(vocabulary.families)
    assert set(classifier.instruments) == set(vocabulary.instruments) | set(vocabulary.drums)
    assert classifier.families[classifier.family_index("brass")] == "brass"
    assert classifier.pitches[classifier.pitch_index(60)] == 60


def test_refuses_bad_input(classifier, tmp_path):
    with pytest.raises(UserError, match=r"\[N, T\]"):
        classifier.predict(torch.zeros(100), 16000)
    with pytest.raises(UserError, match=r"clips \[1\]"):
        classifier.predict(torch.tensor([[0.0, 0.1], [0.0, float("nan")]]), 16000)
    with pytest.raises(UserError, match="no family 'kazoo'"):
        classifier.family_index("kazoo")
    with pytest.raises(UserError, match="missing"):
        NoteClassifier.load(tmp_path)


def test_refuses_weights_that_the_card_does_not_describe(tmp_path):
    for name in ("note-classifier.safetensors", "card.json"):
        shutil.copy(SHIPPED / name, tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps(card | {"sha256": "0" * 64}))
    with pytest.raises(UserError, match="sha256"):
        NoteClassifier.load(tmp_path)
