"""The judge listens: notes of trained and of held-out pairs, as a run makes them at each moment of its evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from segue.codecs import load_codec
from segue.data.cache import LatentCache
from segue.data.clip import Clip
from segue.files import write_bytes, write_text
from segue.metrics.frechet import frechet_between_gaussians, gaussian_of
from segue.metrics.judge import Judge, JudgeOutput
from segue.pipeline import Sampling
from segue.study.config import EvaluationSettings, fingerprint
from segue.study.evaluate import Listen, Measures, resamples, save_arrays
from segue.study.material import checkpoint_loader, decoded_rows, is_recorded, quick, recorded_rows

REFERENCE_NOTES = 4  # reference notes for every judged one


@dataclass(frozen=True)
class Listening:
    """What the judge hears and what it compares with; one for a whole study.

    Attributes:
        prompts: {"caption", "family", "pitch", "held_out"} for each clip.
        reference: [M, 64] judge embeddings of other notes of the data set.
        reference_kind: "real clips" or "decoded latents".
        ceilings: "real" and "codec_round_trip" -> measures of the asked notes themselves.
        key: hash of prompts, reference and judge.
    """

    prompts: list[dict]
    reference: np.ndarray
    reference_kind: str
    ceilings: dict[str, Measures]
    key: str


def make_listening(cache: LatentCache, clips: Sequence[Clip], count: int, folder: Path) -> Listening | None:
    """Choose prompts and embed the reference, or load what `folder` holds for the same question.

    Two thirds of the prompts are notes of the valid split ((instrument, pitch) pairs that were trained on), one third
    of the test split (held-out pairs).

    Args:
        clips: the data set's clips, for real references; empty = latents are decoded in their place.
        count: prompts; fewer where the cache has fewer.

    Returns:
        None where count is 0 or the cache holds no notes that the judge knows.
    """
    judge = Judge.load()
    notes = _notes(cache, judge)
    if count == 0 or not any(cache.row(i)["split"] != "train" for i in notes):
        return None
    question = {"cache": cache.meta, "clips": len(clips), "judge": judge.sha256, "count": count, "version": 1}
    key = fingerprint(question)
    if (folder / "listening.json").exists():
        stored = json.loads((folder / "listening.json").read_text())
        if stored["key"] == key:
            return Listening(reference=load_file(folder / "reference.safetensors")["reference"], **stored)
    asked = _asked(cache, notes, count)
    others = [i for i in notes if i not in set(asked)][: REFERENCE_NOTES * count]
    prompts = [_prompt(cache.row(i)) for i in asked]
    codec = quick(load_codec(cache.meta["codec_source"], cache.meta["sample_rate_hz"]))
    rate_hz = codec.sample_rate_hz
    by_id = {clip.id: clip for clip in clips}
    ceilings = {"codec_round_trip": decoded_rows(cache, asked, codec)}
    if clips:
        ceilings["real"] = recorded_rows(cache, asked, by_id, rate_hz)
    heard = recorded_rows(cache, others, by_id, rate_hz) if clips else decoded_rows(cache, others, codec)
    reference = judge.predict(heard, rate_hz).embedding
    measured = {
        name: measures(judge.predict(waves, rate_hz), judge, prompts, reference)[0] for name, waves in ceilings.items()
    }
    kind = "real clips" if clips else "decoded latents"
    stored = {"prompts": prompts, "reference_kind": kind, "ceilings": measured, "key": key}
    write_bytes(folder / "reference.safetensors", save_arrays({"reference": reference}))
    write_text(folder / "listening.json", json.dumps(stored, indent=1))
    return Listening(reference=reference, **stored)


def load_listening(folder: Path) -> Listening:
    """What `make_listening` left in `folder`."""
    stored = json.loads((folder / "listening.json").read_text())
    return Listening(reference=load_file(folder / "reference.safetensors")["reference"], **stored)


def judging(listening: Listening, settings: EvaluationSettings, device: str = "cpu") -> Listen:
    """For `at_each_moment`: what the judge hears in what a checkpoint makes of the prompts."""
    judge, pipeline_of = Judge.load(), checkpoint_loader(device)
    captions = [p["caption"] for p in listening.prompts]
    sampling = Sampling(steps=settings.steps, solver="multistep", guidance_scale=settings.guidance)

    def listen(checkpoint: Path) -> tuple[Measures, dict[str, np.ndarray]]:
        pipeline = pipeline_of(checkpoint)
        waves = pipeline.generate(captions, seed=settings.seed, sampling=sampling, batch_size=32)
        broken = ~torch.isfinite(waves).all(dim=1)
        heard = judge.predict(waves.nan_to_num(0.0, 0.0, 0.0), pipeline.codec.sample_rate_hz)
        values, arrays = measures(heard, judge, listening.prompts, listening.reference, ~broken.numpy())
        return {"clips": len(captions), **values, "clips_not_finite": int(broken.sum())}, arrays

    return listen


def measures(
    heard: JudgeOutput,
    judge: Judge,
    prompts: Sequence[Mapping],
    reference: np.ndarray,
    usable: np.ndarray | None = None,
) -> tuple[Measures, dict[str, np.ndarray]]:
    """Measures of N judged clips, and the arrays to keep beside them.

    Args:
        prompts: what was asked, N of them.
        reference: [M, 64] embeddings for the Frechet distance.
        usable: [N] bool; a clip that is not usable counts as wrong and is left out of the Frechet distance.

    Returns:
        values: accuracies of family and pitch over all clips and, as `..._trained` and `..._held_out`, by kind of pair;
        `frechet_distance` where at least two clips are usable. Arrays: `embedding` [N, 64], `family_right` and
        `pitch_right` [N] uint8, and `replicates.NAME` [200] float32: the same measures on resampled clips. Replicate b
        takes the same clips in every run of a study, so differences between arms keep their pairing.
    """
    usable = np.ones(len(prompts), bool) if usable is None else usable
    right = {
        "family": (heard.family == [judge.family_index(p["family"]) for p in prompts]) & usable,
        "pitch": (heard.pitch == [judge.pitch_index(p["pitch"]) for p in prompts]) & usable,
    }
    held_out = np.array([p["held_out"] for p in prompts])
    embedding = heard.embedding.astype(np.float64)
    target = gaussian_of(reference)

    def values(rows: np.ndarray) -> Measures:
        numbers: Measures = {}
        for name, hits in right.items():
            parts = {"": np.ones(len(rows), bool), "_trained": ~held_out[rows], "_held_out": held_out[rows]}
            numbers |= {f"{name}_accuracy{k}": float(hits[rows][m].mean()) for k, m in parts.items() if m.any()}
        kept = rows[usable[rows]]
        if len(kept) >= 2:
            numbers["frechet_distance"] = frechet_between_gaussians(*target, *gaussian_of(embedding[kept]))
        return numbers

    found = values(np.arange(len(prompts)))
    drawn = [values(rows) for rows in resamples(held_out)]
    arrays = {"embedding": heard.embedding.astype(np.float32)}
    arrays |= {f"{name}_right": hits.astype(np.uint8) for name, hits in right.items()}
    arrays |= {f"replicates.{name}": np.array([d.get(name, found[name]) for d in drawn], np.float32) for name in found}
    return found, arrays


def _notes(cache: LatentCache, judge: Judge) -> list[int]:
    """Rows that hold one whole note that the judge knows."""
    found = []
    for i in range(len(cache)):
        fields = cache.row(i).get("fields") or {}
        known = fields.get("family") in judge.families and fields.get("pitch") in judge.pitches
        if known and fields.get("kind") == "note" and is_recorded(cache, i):
            found.append(i)
    return found


def _asked(cache: LatentCache, notes: list[int], count: int) -> list[int]:
    trained, unseen = ([i for i in notes if cache.row(i)["split"] == split] for split in ("valid", "test"))
    return [*_spread(cache, trained, count - count // 3), *_spread(cache, unseen, count // 3)]


def _spread(cache: LatentCache, rows: list[int], count: int) -> list[int]:
    """`count` rows evenly spaced in order of family, instrument and pitch (all, where there are fewer)."""

    def place(i: int) -> tuple:
        fields = cache.row(i)["fields"]
        return str(fields["family"]), str(fields.get("instrument")), fields["pitch"], cache.row(i)["id"]

    ordered = sorted(rows, key=place)
    return [ordered[k * len(ordered) // count] for k in range(count)] if len(ordered) > count else ordered


def _prompt(row: Mapping) -> dict:
    fields = row["fields"]
    return {
        "caption": row["captions"][0],
        "family": fields["family"],
        "pitch": fields["pitch"],
        "held_out": row["split"] == "test",
    }
