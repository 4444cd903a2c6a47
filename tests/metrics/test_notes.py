"""The measures of a set of notes: right labels score, shuffled ones fall to chance, parts add up."""

import numpy as np
import pytest
import torch

from segue.metrics.judge import JUDGE_SAMPLES, Judge
from segue.metrics.notes import NoteLabel, measure_notes, words


@pytest.fixture(scope="module")
def heard_as():
    """Noisy tones, and as labels what the judge hears in them: accuracies are then known."""
    judge = Judge.load()
    t = torch.arange(JUDGE_SAMPLES) / 16000
    f0 = 440.0 * 2.0 ** ((torch.arange(48, 78).float() - 69) / 12)
    waves = sum(torch.sin(2 * torch.pi * h * f0[:, None] * t) / h for h in (1, 2, 3)) * torch.exp(-2 * t) * 0.1
    heard = judge.predict(waves, 16000)
    labels = [
        NoteLabel(judge.families[f], judge.pitches[p] or 36, held_out=i % 3 == 0)
        for i, (f, p) in enumerate(zip(heard.family, heard.pitch))
    ]
    return judge, waves, labels, heard.embedding


def test_right_labels_score_fully_and_the_same_clips_are_at_no_distance(heard_as):
    judge, waves, labels, reference = heard_as
    found = measure_notes(judge, waves, 16000, labels, reference)
    assert found["family_accuracy"] == 1.0 and found["pitch_accuracy"] >= 0.9
    assert found["frechet_distance"] == pytest.approx(0.0, abs=1e-6) and found["frechet_distance_n"] == 30
    assert found["trained"]["judged_clips"] + found["held_out"]["judged_clips"] == found["judged_clips"] == 30


def test_shuffled_labels_score_chance_on_average(heard_as):
    judge, waves, labels, reference = heard_as
    generator = np.random.default_rng(0)
    pitches, chance = [], None
    predicted = judge.predict(waves, 16000).pitch
    for _ in range(400):
        order = generator.permutation(len(labels))
        pitches.append(np.mean([judge.pitch_index(labels[i].pitch) == p for i, p in zip(order, predicted)]))
    chance = measure_notes(judge, waves, 16000, labels, reference)["pitch_accuracy_chance"]
    assert np.mean(pitches) == pytest.approx(chance, abs=0.01)


def test_one_held_out_clip_gives_no_accuracy_instead_of_a_false_one(heard_as):
    judge, waves, labels, reference = heard_as
    some = [NoteLabel(x.family, x.pitch, held_out=i == 0) for i, x in enumerate(labels)]
    assert measure_notes(judge, waves, 16000, some, reference)["held_out"] == {"judged_clips": 1}


def test_words_name_what_is_heard(heard_as):
    judge, waves, *_ = heard_as
    said = words(judge, waves[12], 16000)
    assert said.count("%") == 2 and any(name in said for name in judge.instruments)
