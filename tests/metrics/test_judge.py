"""The shipped judge: what it promises about its input, its card, and that it hears."""

import json
import shutil

import numpy as np
import pytest
import torch

from segue.metrics.judge import JUDGE_SAMPLES, NO_PITCH, SHIPPED, Judge, JudgeFrontEnd, JudgeNet
from segue.types import UserError


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


def tone(midi_pitch, rate=16000, samples=JUDGE_SAMPLES, harmonics=8):
    """A plain harmonic tone that dies away, [1, T]."""
    t = torch.arange(samples, dtype=torch.float64) / rate
    f0 = 440.0 * 2.0 ** ((midi_pitch - 69) / 12)
    wave = sum(torch.sin(2 * torch.pi * f0 * h * t) / h for h in range(1, harmonics + 1) if f0 * h < 7000)
    return (0.1 * wave * torch.exp(-2 * t)).float()[None]


def test_a_gain_changes_nothing(judge):
    wave = tone(60)
    front_end = JudgeFrontEnd()
    torch.testing.assert_close(front_end(wave), front_end(0.05 * wave), atol=1e-3, rtol=0)


def test_an_octave_is_a_shift_of_the_picture():
    front_end = JudgeFrontEnd()
    rows = [front_end(tone(p, harmonics=1))[0, 0, :, 30].argmax().item() for p in (57, 69, 81)]
    assert rows == [48, 72, 96]


def test_silence_and_single_samples_stay_finite(judge):
    impulse = torch.zeros(2, 100)
    impulse[1, 3] = 1.0
    heard = judge.predict(impulse, 16000)
    for values in (heard.family_probability, heard.pitch_probability, heard.embedding):
        assert np.isfinite(values).all()


def test_outputs_have_their_shapes(judge):
    heard = judge.predict(torch.randn(5, 20000), 16000, batch_size=2)
    assert heard.family.shape == heard.pitch.shape == heard.instrument.shape == (5,)
    assert heard.embedding.shape == (5, 64)
    assert heard.family_probability.shape == (5, len(judge.families))
    np.testing.assert_allclose(heard.pitch_probability.sum(1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(heard.family, heard.family_probability.argmax(1))


def test_batches_do_not_matter(judge):
    waves = torch.cat([tone(p) for p in (50, 55, 60, 65, 70)])
    whole, single = judge.predict(waves, 16000), judge.predict(waves, 16000, batch_size=1)
    np.testing.assert_allclose(whole.embedding, single.embedding, atol=1e-4)


def test_it_hears_pitch_of_sounds_it_never_met(judge):
    pitches = list(range(45, 80, 3))
    heard = judge.predict(torch.cat([tone(p) for p in pitches]), 16000)
    asked = np.array([judge.pitch_index(p) for p in pitches])
    assert (heard.pitch == asked).mean() >= 0.7


def test_rate_and_length_are_fitted(judge):
    low = judge.predict(tone(60), 16000)
    high = judge.predict(tone(60, rate=48000, samples=3 * JUDGE_SAMPLES + 999), 48000)
    assert low.pitch[0] == high.pitch[0]
    np.testing.assert_allclose(low.family_probability, high.family_probability, atol=0.05)


def test_card_describes_the_weights(judge):
    assert (SHIPPED / "judge.safetensors").stat().st_size < 4_000_000
    parameters = sum(p.numel() for p in JudgeNet(len(judge.families), len(judge.instruments)).parameters())
    assert parameters == judge.card["parameters"] <= 1_200_000
    assert len(judge.pitches) == NO_PITCH + 1 and judge.pitches[-1] is None
    assert "drum" in judge.families and judge.sha256 == judge.card["sha256"]
    for key in ("command", "commit", "machine", "data", "training", "preprocessing", "limits"):
        assert judge.card[key]
    figures = judge.card["figures"]
    assert figures["clean"]["family"]["accuracy"] >= 0.97
    assert figures["clean"]["pitch"]["accuracy"] >= 0.97
    assert min(figures["codec-like"][head]["accuracy"] for head in ("family", "pitch")) >= 0.85


def test_card_knows_the_demo_vocabulary(judge):
    from segue.data.demo import demo_vocabulary

    vocabulary = demo_vocabulary()
    assert set(judge.families) == set(vocabulary.families)
    assert set(judge.instruments) == set(vocabulary.instruments) | set(vocabulary.drums)
    assert judge.families[judge.family_index("brass")] == "brass"
    assert judge.pitches[judge.pitch_index(60)] == 60


def test_refuses_bad_input(judge, tmp_path):
    with pytest.raises(UserError, match=r"\[N, T\]"):
        judge.predict(torch.zeros(100), 16000)
    with pytest.raises(UserError, match=r"clips \[1\]"):
        judge.predict(torch.tensor([[0.0, 0.1], [0.0, float("nan")]]), 16000)
    with pytest.raises(UserError, match="no family 'kazoo'"):
        judge.family_index("kazoo")
    with pytest.raises(UserError, match="missing"):
        Judge.load(tmp_path)


def test_refuses_weights_that_the_card_does_not_describe(tmp_path):
    for name in ("judge.safetensors", "card.json"):
        shutil.copy(SHIPPED / name, tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps(card | {"sha256": "0" * 64}))
    with pytest.raises(UserError, match="sha256"):
        Judge.load(tmp_path)
