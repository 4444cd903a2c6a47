"""In-training evaluation: the same prompts and the same noise for every arm, seed and moment; the judge listens.

A run leaves checkpoints at fixed shares of its length; they are evaluated once the run is done, then all but the last
are deleted. What is kept: a line a moment in evaluation.jsonl, and beside it, in evaluation/, the judge's embeddings,
which clips it found right, and replicates of every measure over resampled clips.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save
from torch import Tensor

from segue.codecs import load_codec
from segue.codecs.base import Codec
from segue.conditioners import load_conditioner
from segue.data.audio import read_wave
from segue.data.cache import LatentCache
from segue.data.clip import Clip
from segue.files import write_bytes, write_text
from segue.metrics.frechet import frechet_between_gaussians, gaussian_of
from segue.metrics.judge import Judge, JudgeOutput
from segue.models.files import load_model
from segue.pipeline import Pipeline, Sampling
from segue.study.config import MOST_SNAPSHOTS, EvaluationSettings, fingerprint
from segue.training.checkpoint import list_checkpoints
from segue.training.log import read_log
from segue.types import UserError

REPLICATES = 200
PHASE_ITERATIONS = 2
REFERENCE_NOTES = 4  # reference notes for every judged one
EVALUATIONS = "evaluation.jsonl"
Measures = dict[str, float]
Listen = Callable[[Path], tuple[Measures, dict[str, np.ndarray]]]  # checkpoint folder -> its figures, and arrays


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
    decoded = {i: w for i, w in zip(asked, _decoded(cache, asked, codec))}
    by_id = {clip.id: clip for clip in clips}
    samples = round(cache.meta["seconds"] * rate_hz)
    if clips:
        reference_waves = torch.stack([_real(cache.row(i), by_id, rate_hz, samples) for i in others])
    else:
        reference_waves = _decoded(cache, others, codec)
    reference = judge.predict(reference_waves, rate_hz).embedding
    ceilings = {"codec_round_trip": torch.stack(list(decoded.values()))}
    if clips:
        ceilings["real"] = torch.stack([_real(cache.row(i), by_id, rate_hz, samples) for i in asked])
    measured = {
        name: measures(judge.predict(waves, rate_hz), judge, prompts, reference)[0] for name, waves in ceilings.items()
    }
    kind = "real clips" if clips else "decoded latents"
    stored = {"prompts": prompts, "reference_kind": kind, "ceilings": measured, "key": key}
    write_bytes(folder / "reference.safetensors", save({"reference": reference}))
    write_text(folder / "listening.json", json.dumps(stored, indent=1))
    return Listening(reference=reference, **stored)


def load_listening(folder: Path) -> Listening:
    """What `make_listening` left in `folder`."""
    stored = json.loads((folder / "listening.json").read_text())
    return Listening(reference=load_file(folder / "reference.safetensors")["reference"], **stored)


def judging(listening: Listening, settings: EvaluationSettings, device: str = "cpu") -> Listen:
    """For `at_each_moment`: what the judge hears in what a checkpoint makes of the prompts."""
    judge, pipeline_of = Judge.load(), _loader(device)
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


def at_each_moment(
    run_dir: Path,
    settings: EvaluationSettings,
    measure: Listen,
    *,
    total: int,
    batch_size: int,
) -> None:
    """Measure the checkpoints of a finished run that are not measured yet, write a line each, delete all but the last.

    Args:
        run_dir: with checkpoints at every share of settings.evaluate_at.
        measure: checkpoint folder -> what the line says, and the arrays to keep beside it.
        total: examples of the run.
        batch_size: of the training: a checkpoint stands at the first whole batch at or beyond its share.

    Raises:
        UserError: a checkpoint is missing.
    """
    done = {line["share"] for line in read_log(run_dir / EVALUATIONS)}
    checkpoints = {int(p.name.split("-")[1]): p for p in list_checkpoints(run_dir)}
    for share in (share for share in settings.evaluate_at if share not in done):
        seen = min(checkpoints, key=lambda n: abs(n - share * total), default=None)
        if seen is None or abs(seen - share * total) > batch_size + MOST_SNAPSHOTS:
            raise UserError(f"{run_dir}: no checkpoint at {share:g} of the run; delete this folder and run it again")
        started = time.monotonic()
        values, arrays = measure(checkpoints[seen])
        write_bytes(run_dir / "evaluation" / f"examples-{seen:010d}.safetensors", save(arrays))
        line = {"event": "evaluation", "examples_seen": seen, "share": share, **values,
                "seconds": time.monotonic() - started}  # fmt: skip
        _append(run_dir / EVALUATIONS, line)
    for old in list_checkpoints(run_dir)[:-1]:
        shutil.rmtree(old, ignore_errors=True)


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
    drawn = [values(rows) for rows in _resamples(held_out)]
    arrays = {"embedding": heard.embedding.astype(np.float32)}
    arrays |= {f"{name}_right": hits.astype(np.uint8) for name, hits in right.items()}
    arrays |= {f"replicates.{name}": np.array([d.get(name, found[name]) for d in drawn], np.float32) for name in found}
    return found, arrays


def quick(codec: Codec) -> Codec:
    """The codec with 2 phase iterations in place of 8: the judge hears magnitudes alone (see docs/studies.md)."""
    if codec.name != "autoencoder" or codec.config.refinements <= PHASE_ITERATIONS:
        return codec
    network = copy.copy(codec.network)
    network.config = replace(network.config, refinements=PHASE_ITERATIONS)
    fast = type(codec)(network)
    fast.source = codec.source
    return fast


def _resamples(held_out: np.ndarray) -> list[np.ndarray]:
    """[N] indices for each replicate, drawn with replacement within trained and within held-out pairs."""
    generator = np.random.default_rng(0)
    kinds = [rows for rows in (np.flatnonzero(~held_out), np.flatnonzero(held_out)) if len(rows)]
    return [
        np.concatenate([rows[generator.integers(0, len(rows), len(rows))] for rows in kinds]) for _ in range(REPLICATES)
    ]


def _loader(device: str):
    """checkpoint folder -> Pipeline; codec and text encoder are loaded once, captions encoded once."""
    parts: dict = {}

    def load(folder: Path) -> Pipeline:
        saved = load_model(folder / "model.safetensors", "ema")
        if not parts:
            text = saved.card.text
            parts["codec"] = quick(load_codec(saved.card.codec_source, saved.card.codec["sample_rate_hz"]))
            parts["text"] = load_conditioner(text["name"], text["max_tokens"])
        return Pipeline(saved, parts["codec"], parts["text"], device)

    return load


def _notes(cache: LatentCache, judge: Judge) -> list[int]:
    """Rows that hold one whole note that the judge knows."""
    found = []
    for i in range(len(cache)):
        fields = cache.row(i).get("fields") or {}
        if fields.get("kind") == "note" and fields.get("family") in judge.families and fields["pitch"] in judge.pitches:
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


def _decoded(cache: LatentCache, rows: Sequence[int], codec: Codec) -> Tensor:
    samples = round(cache.meta["seconds"] * codec.sample_rate_hz)
    parts = [rows[i : i + 32] for i in range(0, len(rows), 32)]
    return torch.cat([codec.decode(cache.latents(part)[0], samples) for part in parts])


def _real(row: Mapping, by_id: Mapping[str, Clip], sample_rate_hz: int, samples: int) -> Tensor:
    """The recording of a cache row, [samples], cut or padded."""
    clip = by_id.get(row["id"])
    if clip is None:
        raise UserError(f"data.manifest has no clip '{row['id']}', which the cache holds; name the cache's manifest")
    wave = read_wave(clip.path, sample_rate_hz)[round(row["start_sec"] * sample_rate_hz) :][:samples]
    return torch.from_numpy(np.pad(wave, (0, samples - len(wave))))


def _append(path: Path, line: dict) -> None:
    """Add a line by writing the whole file anew: a kill leaves no half line."""
    lines = [*read_log(path), line]
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in lines))
