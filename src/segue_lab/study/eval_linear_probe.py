"""Evaluation of any captioned sounds: their distance by log-mel statistics, and a linear probe for one field.

The linear classifier is fitted on training clips of the data set itself (a named field of its manifest: language,
instrument, ...) and says whether a generated clip is of the class that its caption asks for. It takes part in no
training.
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
from segue.types import UserError
from segue_lab.linear_classifier import LinearClassifier, fit_linear_classifier
from segue_lab.study.eval_audio import decoded_rows, is_recorded, quick, recorded_rows
from segue_lab.study.eval_set import LOG_MEL, EvalSet, Space, evaluator_of, load_eval_set, measure_clips, save_eval_set
from segue_lab.study.evaluation import Evaluator, Measures
from segue_lab.study.study_config import EvaluationSettings, fingerprint

DISTANCE = "log_mel_distance"
REFERENCE_CLIPS = 4  # reference clips for every generated one


def make_probe_eval_set(
    cache: LatentCache, clips: Sequence[Clip], count: int, field: str, folder: Path
) -> EvalSet | None:
    """Choose prompts, embed the reference, fit the classifier; or load what `folder` holds for the same question.

    The prompts are captions of the valid and the test split, in turn. A generated clip is measured for as long as the
    one that its caption is of, since nothing was trained beyond.

    Args:
        clips: the data set's clips, for real references; empty = latents are decoded in their place.
        count: clips to generate; captions come round again where held-out rows are fewer.
        field: of the manifest, whose value the classifier names; "" = none.

    Returns:
        None where count is 0 or nothing is held out.

    Raises:
        UserError: no row has the field, or fewer than two values occur.
    """
    # Variants of a clip are the same sound again: none of them is asked for or compared with.
    rows = {split: [i for i in cache.rows(split) if is_recorded(cache, i) and (not field or _class(cache, i, field))]
            for split in ("train", "valid", "test")}  # fmt: skip
    if field and not all((rows["train"], rows["valid"] + rows["test"])):
        raise UserError(f"data.class_field: no clip to train on and to ask for has a field '{field}' in the manifest")
    if count == 0 or not rows["valid"] + rows["test"]:
        return None
    # "ear" is the classifier's first name: finished runs keep their keys.
    question = {"cache": cache.meta, "clips": len(clips), "ear": LOG_MEL, "field": field, "count": count, "version": 3}
    key = fingerprint(question)
    # The key covers all that the answer depends on; another question makes a new set.
    stored = load_eval_set(folder, key)
    if stored is not None:
        return stored
    # In the order of class and caption, so that every class is asked for.
    asked = _evenly(cache, rows["valid"] + rows["test"], field, count)
    known = _evenly(cache, rows["train"], field, min(REFERENCE_CLIPS * count, len(rows["train"])))
    codec = quick(codec_of(cache.meta["codec_source"], cache.meta["codec"]))
    rate_hz = codec.sample_rate_hz
    by_id = {clip.id: clip for clip in clips}

    def embedded(waves: Tensor, of: Sequence[int]) -> np.ndarray:
        # Each clip for as long as it sounds: padding would make short ones alike.
        return log_mel_statistics(waves, rate_hz, [_length_sec(cache, i) for i in of])

    # The reference, and the classifier. It must not take the codec's sound for a class, so it is fitted on recordings
    # and on decoded latents where recordings are at hand.
    decoded = embedded(decoded_rows(cache, known, codec), known)
    reference = embedded(recorded_rows(cache, known, by_id, rate_hz), known) if clips else decoded
    learned = np.concatenate([reference, decoded]) if clips else decoded
    # Once for the recordings and once for the decoded latents.
    names = [_class(cache, i, field) for i in known] * (len(learned) // len(known))
    classifier = fit_linear_classifier(learned, names) if field else None

    # What no run can surpass: the asked clips themselves, as recorded and after the codec, each once.
    each = list(dict.fromkeys(asked))
    best = {"codec_round_trip": embedded(decoded_rows(cache, each, codec), each)}
    if clips:
        best["real"] = embedded(recorded_rows(cache, each, by_id, rate_hz), each)
    wanted = [_prompt(cache, i, field) for i in each]
    ceilings = {name: measure_any(found, classifier, wanted, reference)[0] for name, found in best.items()}
    if len(each) < count:  # a Frechet distance falls with N: one of fewer clips is no ceiling of one of more
        ceilings = {name: {k: v for k, v in found.items() if k != DISTANCE} for name, found in ceilings.items()}
    prompts = [_prompt(cache, i, field) for i in asked]
    kind = "real clips" if clips else "decoded latents"
    return save_eval_set(EvalSet(LOG_MEL, prompts, reference, kind, ceilings, key, classifier), folder)


def probe_evaluator(asked: EvalSet, settings: EvaluationSettings, device: str = "cpu") -> Evaluator:
    """For `at_each_interval`: log-mel statistics, and classes, of what a checkpoint makes of the prompts."""
    lengths = [p["length_sec"] for p in asked.prompts]

    def measure(waves: Tensor, rate_hz: int, usable: np.ndarray) -> tuple[Measures, dict[str, np.ndarray]]:
        embedding = log_mel_statistics(waves, rate_hz, lengths)
        return measure_any(embedding, asked.classifier, asked.prompts, asked.reference, usable)

    return evaluator_of(asked, settings, device, measure)


def measure_any(
    embedding: np.ndarray,
    classifier: LinearClassifier | None,
    prompts: Sequence[Mapping],
    reference: np.ndarray,
    usable: np.ndarray | None = None,
) -> tuple[Measures, dict[str, np.ndarray]]:
    """`measure_clips` of N clips: `class_accuracy` where there is a classifier, and `log_mel_distance` (Frechet, left
    out where clips are no more than its 64 dimensions)."""
    hits = {}
    if classifier is not None:
        hits["class"] = np.array(classifier.predict(embedding)) == np.array([p["class"] for p in prompts])
    # Fewer clips than dimensions have no covariance worth a distance.
    return measure_clips({DISTANCE: Space(embedding, reference, DIM + 1)}, hits, prompts, usable, by_kind=False)


def _class(cache: LatentCache, row: int, field: str) -> str:
    value = (cache.row(row).get("fields") or {}).get(field)
    return "" if value is None else str(value)


def _length_sec(cache: LatentCache, row: int) -> float:
    return cache.row(row)["length_sec"]


def _prompt(cache: LatentCache, row: int, field: str) -> dict:
    entry = cache.row(row)
    about = {"caption": entry["captions"][0], "length_sec": entry["length_sec"], "class": _class(cache, row, field)}
    return about | {"held_out": entry["split"] == "test"}


def _evenly(cache: LatentCache, rows: Sequence[int], field: str, count: int) -> list[int]:
    """`count` rows evenly spaced in order of class, caption and id; round again where there are fewer."""
    ordered = sorted(rows, key=lambda i: (_class(cache, i, field), cache.row(i)["captions"], cache.row(i)["id"]))
    most = len(ordered)
    # Round again, so that the number of prompts does not depend on the set.
    return [ordered[k * most // count] if most >= count else ordered[k % most] for k in range(count)]
