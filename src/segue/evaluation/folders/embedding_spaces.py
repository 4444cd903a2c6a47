"""The embeddings of `segue evaluate generation`: how they are loaded and cached, and what they may measure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from segue.audio.tags import read_settings, read_tags
from segue.data.clip import Clip
from segue.evaluation.embeddings import Embedding, EncoderEmbedding, NoteEmbedding, cached, is_teacher
from segue.evaluation.folders.sound_sets import Findings, header_of, read
from segue.evaluation.log_mel import LogMelEmbedding
from segue.evaluation.note_classifier import NoteClassifier
from segue.evaluation.panns import PannsEmbedding
from segue.evaluation.vggish import VggishEmbedding
from segue.files import sha256_of
from segue.progress import track
from segue.types import UserError

CROP_SEC = 10.0
NOTES = "note-classifier"
_FROM_FILE: dict[str, Callable[[Path, float], Embedding]] = {
    "panns": lambda path, crop_sec: PannsEmbedding(path, crop_sec),
    "vggish": lambda path, crop_sec: VggishEmbedding(path, crop_sec=crop_sec),
    "vggish-pca": lambda path, crop_sec: VggishEmbedding(path, postprocess=True, crop_sec=crop_sec),
}


def _refuse_low_rate(path: Path, embedding: Embedding) -> None:
    """A file of a lower rate has nothing in the upper part of the embedding's band.

    Raises:
        UserError: the file's rate is below the embedding's.
    """
    has_hz = header_of(path).sample_rate_hz
    if has_hz < embedding.sample_rate_hz:
        raise UserError(
            f"{path}: {has_hz:,} Hz, but {embedding.name} takes {embedding.sample_rate_hz:,} Hz; "
            "hint: take an embedding of a lower rate"
        )


def load_embedding(name: str, layer: int | None, crop_sec: float | None, trust_remote_code: bool) -> Embedding:
    """What --embedding names.

    Args:
        name: note-classifier; log-mel; panns:FILE, vggish:FILE or vggish-pca:FILE with the published weights as
            safetensors; or what `segue.ssl.load_teacher` takes.
        crop_sec: default 10.

    Raises:
        UserError: it cannot be loaded, or has no layer or crop to choose.
    """
    name = NOTES if name == "judge" else name  # its earlier name
    # The kinds of embeddings, from the lightest to load to the heaviest.
    kind, _, file = name.partition(":")
    if layer is not None and kind in (NOTES, "log-mel", *_FROM_FILE):
        raise UserError(f"--layer: {kind} has one embedding only; hint: leave --layer away")
    if name == NOTES:
        if crop_sec is not None:
            raise UserError(
                "--crop-seconds: the note classifier takes the first 2.048 s; hint: leave --crop-seconds away"
            )
        return NoteEmbedding(NoteClassifier.load())
    crop_sec = CROP_SEC if crop_sec is None else crop_sec
    if name == "log-mel":
        return LogMelEmbedding(crop_sec)
    if kind in _FROM_FILE:
        if not file:
            raise UserError(
                f"--embedding {name}: needs its weights, {kind}:FILE.safetensors; hint: docs/metrics.md says how"
            )
        return _FROM_FILE[kind](Path(file), crop_sec)
    from segue.ssl import load_teacher

    try:
        return EncoderEmbedding(load_teacher(name, layer, trust_remote_code), crop_sec)
    except UserError as error:  # its words are those of `segue encode`
        words = str(error).replace("--teacher-layer", "--layer").replace("--teacher ", "--embedding ")
        raise UserError(words) from error


def embed(clips: dict[str, Clip], embedding: Embedding, folder: Path, what: str) -> dict[str, dict[str, np.ndarray]]:
    """id -> what `Embedding.embed` gives of a clip, from the cache in `folder` where it is there.

    Raises:
        UserError: a file is unusable, or its rate is below the embedding's.
    """
    # Of every clip, before an hour of embedding ends in a refusal.
    for clip in clips.values():  # all of them before the long work
        _refuse_low_rate(clip.path, embedding)
    embedded = {}
    for name, clip in track(clips.items(), len(clips), f"{what} by {embedding.name}", "clips"):
        content = sha256_of([clip.path])
        # Bound by the default, since the loop's variable changes.
        reader = lambda path=clip.path: read(path, embedding.sample_rate_hz)  # noqa: E731
        embedded[name] = cached(folder, content, embedding, reader)
    return embedded


def refuse_training_teachers(
    clips: dict[str, Clip], run: Path | None, embeddings: list[Embedding], force: bool, found: Findings
) -> None:
    """An embedding that took part in a run's training may not measure it.

    The run is --run, or what `segue generate` wrote into the files. A cache's teacher counts
    whether the recipe used it or not.

    Raises:
        UserError: it did, and is not forced; or --run is no run.
    """
    runs = [run] if run is not None else _named_runs(clips)
    if not runs:
        found.warnings.append("not checked whether the run was trained with this embedding: no run named (--run)")
    for folder in runs:
        teacher = _teacher_of(folder, run is not None, found)
        for embedding in embeddings:
            if not is_teacher(embedding, teacher):
                continue
            rule = "an embedding that took part in training may not measure it"
            line = f"{embedding.name} is the teacher of {folder}: {rule}"
            if not force:
                raise UserError(f"{line}; hint: take another --embedding, or --force")
            found.warnings.append(f"FORCED: {line}; these figures flatter it")


def _teacher_of(run: Path, asked: bool, found: Findings) -> dict | None:
    try:
        # The run names its cache, and that names the teacher; either may have been moved or deleted.
        cache = Path(json.loads((run / "config.json").read_text(encoding="utf-8"))["cache"])
        return json.loads((cache / "meta.json").read_text(encoding="utf-8")).get("teacher")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if asked:
            raise UserError(
                f"--run {run}: no run there, or its cache is gone: its teacher cannot be checked; hint: leave --run "
                "away, and the table will say so"
            ) from error
        found.warnings.append(
            f"not checked whether {run} was trained with this embedding: the run or its cache is gone"
        )
        return None


def _named_runs(clips: dict[str, Clip]) -> list[Path]:
    runs = (read_settings(clip.path).get("run") for clip in clips.values())
    return sorted({Path(run) for run in runs if isinstance(run, str)})


def tag_of(path: Path, tag: str) -> str:
    """A tag of a sound file ("title", "comment"); empty where it has none, or cannot be read: reading it complains."""
    return read_tags(path).get(tag, "")
