"""What the judge makes of a set of generated notes: the measures that the demo and its summary carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from segue.metrics.accuracy import accuracy
from segue.metrics.frechet import frechet_distance
from segue.metrics.judge import Judge


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


def measure_notes(
    judge: Judge, waves: Tensor, sample_rate_hz: int, labels: Sequence[NoteLabel], reference: np.ndarray
) -> dict:
    """Family and pitch accuracy, overall and on held-out pairs, and the Frechet distance in the judge's space.

    Args:
        judge: the classifier; it must not have guided the training.
        waves: [N, T] clips, in the order of `labels`.
        sample_rate_hz: of the clips.
        labels: N labels.
        reference: [M, 64] judge embeddings of real clips.

    Returns:
        plain numbers: each accuracy with `_interval` (bootstrap over clips, 95 %) and `_chance` (expected accuracy with
        shuffled labels), `judged_clips`, `frechet_distance`, `frechet_distance_n`, and the same accuracies under
        "trained" and "held_out" for the two kinds of pairs.
    """
    heard = judge.predict(waves, sample_rate_hz)
    families = np.array([judge.family_index(label.family) for label in labels])
    pitches = np.array([judge.pitch_index(label.pitch) for label in labels])
    held_out = np.array([label.held_out for label in labels])

    def accuracies(rows: np.ndarray) -> dict:
        numbers: dict = {"judged_clips": int(rows.sum())}
        for name, got, asked, classes in (
            ("family_accuracy", heard.family, families, len(judge.families)),
            ("pitch_accuracy", heard.pitch, pitches, len(judge.pitches)),
        ):
            if rows.sum() >= 2:
                measured = accuracy(got[rows], asked[rows], classes)
                numbers[name] = measured.value
                numbers[f"{name}_interval"] = list(measured.interval)
                numbers[f"{name}_chance"] = measured.chance
        return numbers

    everything = accuracies(np.ones(len(labels), dtype=bool))
    return everything | {
        "trained": accuracies(~held_out),
        "held_out": accuracies(held_out),
        "frechet_distance": frechet_distance(heard.embedding, reference, allow_few=True),
        "frechet_distance_n": len(labels),
    }


def words(judge: Judge, wave: Tensor, sample_rate_hz: int) -> str:
    """What the judge hears in one clip [T], in words: family, instrument, pitch, each with its probability."""
    heard = judge.predict(wave[None], sample_rate_hz)
    pitch = judge.pitches[int(heard.pitch[0])]
    name = (
        "no pitch"
        if pitch is None
        else f"{('C', 'C#', 'D', 'D#', 'E', 'F', 'F#', 'G', 'G#', 'A', 'A#', 'B')[pitch % 12]} {pitch // 12 - 1}"
    )
    return (
        f"{judge.instruments[int(heard.instrument[0])]} ({heard.instrument_probability.max():.0%}), "
        f"{name} ({heard.pitch_probability.max():.0%})"
    )
