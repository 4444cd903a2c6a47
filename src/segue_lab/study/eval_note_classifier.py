"""Evaluation by the note classifier: notes of trained and of held-out pairs, as a run makes them at each evaluation.

The classifier is ours, and knows the sound font that notes are rendered with. So the Frechet distance is taken a second
time between log-mel statistics, which nobody trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from segue.codecs import codec_of
from segue.data.cache import LatentCache
from segue.data.clip import Clip
from segue.evaluation.log_mel import DIM, log_mel_statistics
from segue.evaluation.note_classifier import NoteClassifier, NotePrediction
from segue.evaluation.notes import note_order, spread
from segue_lab.study.eval_audio import decoded_rows, is_recorded, quick, recorded_rows
from segue_lab.study.eval_set import NOTES, EvalSet, Space, evaluator_of, load_eval_set, measure_clips, save_eval_set
from segue_lab.study.evaluation import Evaluator, Measures
from segue_lab.study.study_config import EvaluationSettings, fingerprint

REFERENCE_NOTES = 4  # reference notes for every generated one


def make_note_eval_set(cache: LatentCache, clips: Sequence[Clip], count: int, folder: Path) -> EvalSet | None:
    """Choose prompts and embed the reference, or load what `folder` holds for the same question.

    Two thirds of the prompts are notes of the valid split ((instrument, pitch) pairs that were trained on), one third
    of the test split (held-out pairs).

    Args:
        clips: the data set's clips, for real references; empty = latents are decoded in their place.
        count: prompts; fewer where the cache has fewer.

    Returns:
        None where count is 0 or the cache holds no notes that the classifier knows.
    """
    classifier = NoteClassifier.load()
    notes = _notes(cache, classifier)
    if count == 0 or not any(cache.row(i)["split"] != "train" for i in notes):
        return None
    # "judge" is the classifier's first name: finished runs keep their keys.
    question = {"cache": cache.meta, "clips": len(clips), "judge": classifier.sha256, "count": count, "version": 2}
    key = fingerprint(question)
    stored = load_eval_set(folder, key)
    if stored is not None:
        return stored

    # The prompts, and other notes to compare with.
    asked = _asked(cache, notes, count)
    # Not those that are asked for: a clip compared with itself would be no reference.
    others = [i for i in notes if i not in set(asked)][: REFERENCE_NOTES * count]
    prompts = [_prompt(cache.row(i)) for i in asked]
    codec = quick(codec_of(cache.meta["codec_source"], cache.meta["codec"]))
    rate_hz = codec.sample_rate_hz
    by_id = {clip.id: clip for clip in clips}
    # Recordings are the better reference; without a manifest, latents stand in.
    compared = recorded_rows(cache, others, by_id, rate_hz) if clips else decoded_rows(cache, others, codec)
    references = (classifier.predict(compared, rate_hz).embedding, log_mel_statistics(compared, rate_hz))

    # What no run can surpass: the asked notes themselves, as recorded and after the codec.
    best = {"codec_round_trip": decoded_rows(cache, asked, codec)}
    if clips:
        best["real"] = recorded_rows(cache, asked, by_id, rate_hz)
    ceilings = {}
    for name, waves in best.items():
        embedded = (classifier.predict(waves, rate_hz), log_mel_statistics(waves, rate_hz))
        ceilings[name] = measure_notes(*embedded, classifier, prompts, references)[0]
    kind = "real clips" if clips else "decoded latents"
    found = EvalSet(NOTES, prompts, references[0], kind, ceilings, key, log_mel=references[1])
    return save_eval_set(found, folder)


def note_evaluator(asked: EvalSet, settings: EvaluationSettings, device: str = "cpu") -> Evaluator:
    """For `at_each_interval`: how the note classifier labels what a checkpoint makes of the prompts."""
    classifier = NoteClassifier.load()

    assert asked.log_mel is not None
    references = (asked.reference, asked.log_mel)

    def measure(waves: Tensor, rate_hz: int, usable: np.ndarray) -> tuple[Measures, dict[str, np.ndarray]]:
        found = (classifier.predict(waves, rate_hz), log_mel_statistics(waves, rate_hz))
        return measure_notes(*found, classifier, asked.prompts, references, usable)

    return evaluator_of(asked, settings, device, measure)


def measure_notes(
    predicted: NotePrediction,
    log_mel: np.ndarray,
    classifier: NoteClassifier,
    prompts: Sequence[Mapping],
    references: tuple[np.ndarray, np.ndarray],
    usable: np.ndarray | None = None,
) -> tuple[Measures, dict[str, np.ndarray]]:
    """`measure_clips` of N notes: accuracy of family and pitch, by kind of pair; `frechet_distance` in the classifier's
    space, and `log_mel_distance` (left out where clips are no more than its 64 dimensions).

    Args:
        log_mel: [N, 64], log-mel statistics of the notes.
        references: [M, 64] other notes in the classifier's space, and [M, 64] log-mel statistics of the same.
    """
    hits = {
        "family": predicted.family == [classifier.family_index(p["family"]) for p in prompts],
        "pitch": predicted.pitch == [classifier.pitch_index(p["pitch"]) for p in prompts],
    }
    spaces = {
        "frechet_distance": Space(predicted.embedding, references[0], 2),
        "log_mel_distance": Space(log_mel, references[1], DIM + 1),
    }
    return measure_clips(spaces, hits, prompts, usable, by_kind=True)


def _notes(cache: LatentCache, classifier: NoteClassifier) -> list[int]:
    """Rows that hold one whole note that the classifier knows."""
    found = []
    for i in range(len(cache)):
        fields = cache.row(i).get("fields") or {}
        known = fields.get("family") in classifier.families and fields.get("pitch") in classifier.pitches
        # Variants are softer or later: the recorded note is enough.
        if known and fields.get("kind") == "note" and is_recorded(cache, i):
            found.append(i)
    return found


def _asked(cache: LatentCache, notes: list[int], count: int) -> list[int]:
    ordered = sorted(notes, key=lambda i: note_order(cache.row(i)["fields"], cache.row(i)["id"]))
    # Sorted by instrument and pitch, then spread: the choice does not hang on the cache's order.
    trained, unseen = ([i for i in ordered if cache.row(i)["split"] == split] for split in ("valid", "test"))
    return [*spread(trained, count - count // 3), *spread(unseen, count // 3)]


def _prompt(row: Mapping) -> dict:
    fields = row["fields"]
    return {
        "caption": row["captions"][0],
        "family": fields["family"],
        "pitch": fields["pitch"],
        "held_out": row["split"] == "test",
    }
