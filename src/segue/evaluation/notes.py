"""Prompt accuracy of a set of generated notes, and their Frechet distance: what the demo and its summary carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from segue.evaluation.accuracy import accuracy
from segue.evaluation.frechet import frechet_distance
from segue.evaluation.note_classifier import NoteClassifier


@dataclass(frozen=True)
class NoteLabel:
    """What a clip of one note was asked to be.

    Attributes:
        family: instrument family.
        pitch: MIDI number.
        held_out: True where this (instrument, pitch) pair was never trained on.
    """

    family: str
    pitch: int
    held_out: bool


def spread(ordered: Sequence, count: int) -> list:
    """`count` entries at even distances (all, where there are fewer)."""
    size = len(ordered)
    return [ordered[i * size // count] for i in range(count)] if size > count else list(ordered)


def note_order(fields: Mapping, name: str) -> tuple:
    """What notes are sorted by before `spread`: family, instrument, pitch, and the clip's id."""
    return str(fields.get("family")), str(fields.get("instrument")), fields.get("pitch") or 0, name


def measure_notes(
    classifier: NoteClassifier, waves: Tensor, sample_rate_hz: int, labels: Sequence[NoteLabel], reference: np.ndarray
) -> dict:
    """Family and pitch accuracy, overall and on held-out pairs, and the Frechet distance in the classifier's space.

    Args:
        classifier: it must have taken no part in the training.
        waves: [N, T] clips, in the order of `labels`.
        sample_rate_hz: of the clips.
        labels: N labels.
        reference: [M, 64] classifier embeddings of real clips.

    Returns:
        plain numbers: each accuracy with `_interval` (bootstrap over clips, 95 %) and `_chance` (expected accuracy with
        shuffled labels), `clips`, `frechet_distance`, `frechet_distance_n`, and the same accuracies under
        "trained" and "held_out" for the two kinds of pairs.
    """
    found = classifier.predict(waves, sample_rate_hz)
    families = np.array([classifier.family_index(label.family) for label in labels])
    pitches = np.array([classifier.pitch_index(label.pitch) for label in labels])
    held_out = np.array([label.held_out for label in labels])

    def accuracies(rows: np.ndarray) -> dict:
        numbers: dict = {"clips": int(rows.sum())}
        for name, got, asked, classes in (
            ("family_accuracy", found.family, families, len(classifier.families)),
            ("pitch_accuracy", found.pitch, pitches, len(classifier.pitches)),
        ):
            # One clip has no interval.
            if rows.sum() >= 2:
                measured = accuracy(got[rows], asked[rows], classes)
                numbers[name] = measured.value
                numbers[f"{name}_interval"] = list(measured.interval)
                numbers[f"{name}_chance"] = measured.chance
        return numbers

    # All notes, then those of trained and of held-out (instrument, pitch) pairs.
    everything = accuracies(np.ones(len(labels), dtype=bool))
    return everything | {
        "trained": accuracies(~held_out),
        "held_out": accuracies(held_out),
        # Fewer notes than dimensions may be measured here: the figure is shown with its n for that reason.
        "frechet_distance": frechet_distance(found.embedding, reference, allow_few=True),
        "frechet_distance_n": len(labels),
    }


def describe(classifier: NoteClassifier, wave: Tensor, sample_rate_hz: int) -> str:
    """What the classifier says of one clip [T], in words: family, instrument, pitch, each with its probability."""
    found = classifier.predict(wave[None], sample_rate_hz)
    pitch = classifier.pitches[int(found.pitch[0])]
    name = (
        "no pitch"
        if pitch is None
        else f"{('C', 'C#', 'D', 'D#', 'E', 'F', 'F#', 'G', 'G#', 'A', 'A#', 'B')[pitch % 12]} {pitch // 12 - 1}"
    )
    return (
        f"{classifier.instruments[int(found.instrument[0])]} ({found.instrument_probability.max():.0%}), "
        f"{name} ({found.pitch_probability.max():.0%})"
    )
