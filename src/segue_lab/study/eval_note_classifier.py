"""Evaluation by the note classifier: notes of trained and of held-out pairs, as a run makes them at each evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from segue.codecs import codec_of
from segue.data.cache import LatentCache
from segue.data.clip import Clip
from segue.evaluation.note_classifier import NoteClassifier, NotePrediction
from segue.evaluation.notes import note_order, spread
from segue_lab.study.eval_audio import decoded_rows, is_recorded, quick, recorded_rows
from segue_lab.study.eval_set import NOTES, EvalSet, evaluator_of, load_eval_set, measure_clips, save_eval_set
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
    question = {"cache": cache.meta, "clips": len(clips), "judge": classifier.sha256, "count": count, "version": 1}
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
    reference = classifier.predict(compared, rate_hz).embedding

    # What no run can surpass: the asked notes themselves, as recorded and after the codec.
    best = {"codec_round_trip": decoded_rows(cache, asked, codec)}
    if clips:
        best["real"] = recorded_rows(cache, asked, by_id, rate_hz)
    ceilings = {
        name: measure_notes(classifier.predict(waves, rate_hz), classifier, prompts, reference)[0]
        for name, waves in best.items()
    }
    kind = "real clips" if clips else "decoded latents"
    return save_eval_set(EvalSet(NOTES, prompts, reference, kind, ceilings, key), folder)


def note_evaluator(asked: EvalSet, settings: EvaluationSettings, device: str = "cpu") -> Evaluator:
    """For `at_each_interval`: how the note classifier labels what a checkpoint makes of the prompts."""
    classifier = NoteClassifier.load()

    def measure(waves: Tensor, rate_hz: int, usable: np.ndarray) -> tuple[Measures, dict[str, np.ndarray]]:
        return measure_notes(classifier.predict(waves, rate_hz), classifier, asked.prompts, asked.reference, usable)

    return evaluator_of(asked, settings, device, measure)


def measure_notes(
    predicted: NotePrediction,
    classifier: NoteClassifier,
    prompts: Sequence[Mapping],
    reference: np.ndarray,
    usable: np.ndarray | None = None,
) -> tuple[Measures, dict[str, np.ndarray]]:
    """`measure_clips` of N notes: accuracy of family and pitch, by kind of pair, and `frechet_distance`."""
    hits = {
        "family": predicted.family == [classifier.family_index(p["family"]) for p in prompts],
        "pitch": predicted.pitch == [classifier.pitch_index(p["pitch"]) for p in prompts],
    }
    return measure_clips(
        predicted.embedding, hits, prompts, reference, usable, distance="frechet_distance", fewest=2, by_kind=True
    )


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
