"""Any captioned sounds, where no judge knows them: their distance by log-mel statistics, and a linear ear for a field.

The ear is fitted on training clips of the data set itself (a named field of its manifest: language, instrument, ...)
and hears whether a generated clip is of the class that its caption asks for. Nothing in it was part of any training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from segue.codecs import load_codec
from segue.data.cache import LatentCache
from segue.data.clip import Clip
from segue.files import write_bytes, write_text
from segue.metrics.frechet import frechet_between_gaussians, gaussian_of
from segue.metrics.log_mel import DIM, LinearEar, fit_linear_ear, log_mel_statistics
from segue.pipeline import Sampling
from segue.study.config import EvaluationSettings, fingerprint
from segue.study.evaluate import Listen, Measures, resamples, save_arrays
from segue.study.material import checkpoint_loader, decoded_rows, is_recorded, quick, recorded_rows
from segue.types import UserError

DISTANCE = "log_mel_distance"
EAR = "log-mel"  # as listening.json names it
REFERENCE_CLIPS = 4  # reference clips for every generated one


@dataclass(frozen=True)
class Hearing:
    """What a study of any sounds asks for and compares with; one for the whole study.

    Attributes:
        prompts: {"caption", "class", "length_sec", "held_out"} for each clip; captions of the valid and the test split,
            in turn. A clip is heard for as long as the one that its caption is of: nothing was trained beyond.
        reference: [M, 64] log-mel statistics of training clips.
        ear: for the class; None where the study names no field.
        reference_kind: "real clips" or "decoded latents".
        ceilings: "real" and "codec_round_trip" -> measures of the asked clips themselves.
        key: hash of prompts, reference and ear.
    """

    prompts: list[dict]
    reference: np.ndarray
    ear: LinearEar | None
    reference_kind: str
    ceilings: dict[str, Measures]
    key: str


def make_hearing(cache: LatentCache, clips: Sequence[Clip], count: int, field: str, folder: Path) -> Hearing | None:
    """Choose prompts, embed the reference, fit the ear; or load what `folder` holds for the same question.

    Args:
        clips: the data set's clips, for real references; empty = latents are decoded in their place.
        count: clips to generate; captions come round again where held-out rows are fewer.
        field: of the manifest, whose value the ear hears; "" = none.

    Returns:
        None where count is 0 or nothing is held out.

    Raises:
        UserError: no row has the field, or fewer than two values occur.
    """
    rows = {split: [i for i in cache.rows(split) if is_recorded(cache, i) and (not field or _class(cache, i, field))]
            for split in ("train", "valid", "test")}  # fmt: skip
    if field and not all((rows["train"], rows["valid"] + rows["test"])):
        raise UserError(f"data.class_field: no clip to train on and to ask for has a field '{field}' in the manifest")
    if count == 0 or not rows["valid"] + rows["test"]:
        return None
    question = {"cache": cache.meta, "clips": len(clips), "ear": EAR, "field": field, "count": count, "version": 3}
    key = fingerprint(question)
    if (folder / "listening.json").exists() and json.loads((folder / "listening.json").read_text())["key"] == key:
        return load_hearing(folder)
    asked = _evenly(cache, rows["valid"] + rows["test"], field, count)
    known = _evenly(cache, rows["train"], field, min(REFERENCE_CLIPS * count, len(rows["train"])))
    codec = quick(load_codec(cache.meta["codec_source"], cache.meta["sample_rate_hz"]))
    rate_hz, by_id = codec.sample_rate_hz, {clip.id: clip for clip in clips}

    def heard(waves: Tensor, of: Sequence[int]) -> np.ndarray:
        return log_mel_statistics(waves, rate_hz, [_length_sec(cache, i) for i in of])

    made = heard(decoded_rows(cache, known, codec), known)
    reference = heard(recorded_rows(cache, known, by_id, rate_hz), known) if clips else made
    # The ear shall not take the codec's sound for a class, so it learns from both where recordings are at hand.
    learned = np.concatenate([reference, made]) if clips else made
    names = [_class(cache, i, field) for i in known] * (len(learned) // len(known))
    ear = fit_linear_ear(learned, names) if field else None
    each = list(dict.fromkeys(asked))  # a clip that is asked for twice is one clip of the ceilings
    ceilings = {"codec_round_trip": heard(decoded_rows(cache, each, codec), each)}
    if clips:
        ceilings["real"] = heard(recorded_rows(cache, each, by_id, rate_hz), each)
    wanted = [_prompt(cache, i, field) for i in each]
    measured = {name: measures(found, ear, wanted, reference)[0] for name, found in ceilings.items()}
    if len(each) < count:  # a Frechet distance falls with N: one of fewer clips is no ceiling of one of more
        measured = {name: {k: v for k, v in found.items() if k != DISTANCE} for name, found in measured.items()}
    prompts = [_prompt(cache, i, field) for i in asked]
    kind = "real clips" if clips else "decoded latents"
    hearing = Hearing(prompts, reference, ear, kind, measured, key)
    _write(hearing, folder)
    return hearing


def is_hearing(folder: Path) -> bool:
    """Whether `make_hearing` wrote what `folder` holds, rather than the judge."""
    return json.loads((folder / "listening.json").read_text()).get("ear") == EAR


def load_hearing(folder: Path) -> Hearing:
    """What `make_hearing` left in `folder`."""
    stored = json.loads((folder / "listening.json").read_text())
    arrays = load_file(folder / "reference.safetensors")
    ear = LinearEar(tuple(stored["classes"]), arrays["weight"], arrays["bias"]) if stored["classes"] else None
    parts = ("prompts", "reference_kind", "ceilings", "key")
    return Hearing(reference=arrays["reference"], ear=ear, **{name: stored[name] for name in parts})


def hearing(question: Hearing, settings: EvaluationSettings, device: str = "cpu") -> Listen:
    """For `at_each_moment`: what is heard in what a checkpoint makes of the prompts."""
    pipeline_of = checkpoint_loader(device)
    captions = [p["caption"] for p in question.prompts]
    sampling = Sampling(steps=settings.steps, solver="multistep", guidance_scale=settings.guidance)

    def listen(checkpoint: Path) -> tuple[Measures, dict[str, np.ndarray]]:
        pipeline = pipeline_of(checkpoint)
        waves = pipeline.generate(captions, seed=settings.seed, sampling=sampling, batch_size=32)
        finite = torch.isfinite(waves).all(dim=1)
        lengths = [p["length_sec"] for p in question.prompts]
        embedding = log_mel_statistics(waves.nan_to_num(0.0, 0.0, 0.0), pipeline.codec.sample_rate_hz, lengths)
        values, arrays = measures(embedding, question.ear, question.prompts, question.reference, finite.numpy())
        return {"clips": len(captions), **values, "clips_not_finite": int((~finite).sum())}, arrays

    return listen


def measures(
    embedding: np.ndarray,
    ear: LinearEar | None,
    prompts: Sequence[Mapping],
    reference: np.ndarray,
    usable: np.ndarray | None = None,
) -> tuple[Measures, dict[str, np.ndarray]]:
    """Measures of N clips, and the arrays to keep beside them: as `judged.measures`, for `class_accuracy` and
    `log_mel_distance` (Frechet, left out where usable clips are no more than its 64 dimensions).

    Args:
        embedding: [N, 64] log-mel statistics.
        usable: [N] bool; a clip that is not usable counts as wrong and is left out of the distance.
    """
    usable = np.ones(len(prompts), bool) if usable is None else usable
    right = None
    if ear is not None:
        right = (np.array(ear.hear(embedding)) == np.array([p["class"] for p in prompts])) & usable
    target = gaussian_of(reference)

    def values(rows: np.ndarray) -> Measures:
        found = {} if right is None else {"class_accuracy": float(right[rows].mean())}
        kept = rows[usable[rows]]
        if len(kept) > DIM and len(reference) > DIM:
            found[DISTANCE] = frechet_between_gaussians(*target, *gaussian_of(embedding[kept]))
        return found

    found = values(np.arange(len(prompts)))
    drawn = [values(rows) for rows in resamples(np.array([p["held_out"] for p in prompts]))]
    arrays = {"embedding": embedding.astype(np.float32)}
    arrays |= {} if right is None else {"class_right": right.astype(np.uint8)}
    arrays |= {f"replicates.{name}": np.array([d.get(name, found[name]) for d in drawn], np.float32) for name in found}
    return found, arrays


def _write(question: Hearing, folder: Path) -> None:
    arrays = {"reference": question.reference}
    if question.ear is not None:
        arrays |= {"weight": question.ear.weight, "bias": question.ear.bias}
    stored = {
        "ear": EAR, "classes": list(question.ear.classes) if question.ear else [], "prompts": question.prompts,
        "reference_kind": question.reference_kind, "ceilings": question.ceilings, "key": question.key,
    }  # fmt: skip
    write_bytes(folder / "reference.safetensors", save_arrays(arrays))
    write_text(folder / "listening.json", json.dumps(stored, indent=1))


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
    return [ordered[k * most // count] if most >= count else ordered[k % most] for k in range(count)]
