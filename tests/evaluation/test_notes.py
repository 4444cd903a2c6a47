"""The measures of a set of notes: right labels score, shuffled ones fall to chance, parts add up."""

import numpy as np
import pytest
import torch

from segue.evaluation.note_classifier import NOTE_SAMPLES, NoteClassifier
from segue.evaluation.notes import NoteLabel, describe, measure_notes, note_order, spread


@pytest.fixture(scope="module")
def classified_as():
    """Noisy tones, and as labels what the classifier says of them: accuracies are then known."""
    classifier = NoteClassifier.load()
    t = torch.arange(NOTE_SAMPLES) / 16000
    f0 = 440.0 * 2.0 ** ((torch.arange(48, 78).float() - 69) / 12)
    waves = sum(torch.sin(2 * torch.pi * h * f0[:, None] * t) / h for h in (1, 2, 3)) * torch.exp(-2 * t) * 0.1
    found = classifier.predict(waves, 16000)
    labels = [
        NoteLabel(classifier.families[f], classifier.pitches[p] or 36, held_out=i % 3 == 0)
        for i, (f, p) in enumerate(zip(found.family, found.pitch))
    ]
    return classifier, waves, labels, found.embedding


def test_right_labels_score_fully_and_the_same_clips_are_at_no_distance(classified_as):
    classifier, waves, labels, reference = classified_as
    found = measure_notes(classifier, waves, 16000, labels, reference)
    assert found["family_accuracy"] == 1.0 and found["pitch_accuracy"] >= 0.9
    assert found["frechet_distance"] == pytest.approx(0.0, abs=1e-6) and found["frechet_distance_n"] == 30
    assert found["trained"]["clips"] + found["held_out"]["clips"] == found["clips"] == 30


def test_shuffled_labels_score_chance_on_average(classified_as):
    classifier, waves, labels, reference = classified_as
    generator = np.random.default_rng(0)
    pitches, chance = [], None
    predicted = classifier.predict(waves, 16000).pitch
    for _ in range(400):
        order = generator.permutation(len(labels))
        pitches.append(np.mean([classifier.pitch_index(labels[i].pitch) == p for i, p in zip(order, predicted)]))
    chance = measure_notes(classifier, waves, 16000, labels, reference)["pitch_accuracy_chance"]
    assert np.mean(pitches) == pytest.approx(chance, abs=0.01)


def test_one_held_out_clip_gives_no_accuracy_instead_of_a_false_one(classified_as):
    classifier, waves, labels, reference = classified_as
    some = [NoteLabel(x.family, x.pitch, held_out=i == 0) for i, x in enumerate(labels)]
    assert measure_notes(classifier, waves, 16000, some, reference)["held_out"] == {"clips": 1}


def test_words_name_what_is_found(classified_as):
    classifier, waves, *_ = classified_as
    said = describe(classifier, waves[12], 16000)
    assert said.count("%") == 2 and any(name in said for name in classifier.instruments)


def test_spread_takes_entries_at_even_distances_and_all_where_there_are_fewer():
    assert spread(range(10), 4) == [0, 2, 5, 7] and spread((1, 2), 4) == [1, 2] and spread([], 3) == []
    fields = [{"family": "reed", "instrument": "oboe", "pitch": p} for p in (60, None)]
    assert note_order(fields[1], "b") < note_order(fields[0], "a")  # what has no pitch comes first
