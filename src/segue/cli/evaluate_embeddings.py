"""The embeddings of `segue evaluate generation`: how they are loaded and cached, and whom they may judge."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from segue.audio.tags import read_tags
from segue.cli.evaluate_common import Findings, header_of, read
from segue.data.clip import Clip
from segue.data.progress import track
from segue.files import sha256_of
from segue.metrics.embeddings import Embedding, EncoderEmbedding, JudgeEmbedding, cached, guided
from segue.metrics.judge import Judge
from segue.metrics.log_mel import LogMelEmbedding
from segue.metrics.panns import PannsEmbedding
from segue.metrics.vggish import VggishEmbedding
from segue.types import UserError

CROP_SEC = 10.0
_FROM_FILE: dict[str, Callable[[Path, float], Embedding]] = {
    "panns": lambda path, crop_sec: PannsEmbedding(path, crop_sec),
    "vggish": lambda path, crop_sec: VggishEmbedding(path, crop_sec=crop_sec),
    "vggish-pca": lambda path, crop_sec: VggishEmbedding(path, postprocess=True, crop_sec=crop_sec),
}


def _refuse_low_rate(path: Path, ears: Embedding) -> None:
    """Upsampled, a file would hold nothing of what the embedding listens for above its own band.

    Raises:
        UserError: the file's rate is below the embedding's.
    """
    has_hz = header_of(path).sample_rate_hz
    if has_hz < ears.sample_rate_hz:
        raise UserError(
            f"{path}: {has_hz:,} Hz, but {ears.name} hears at {ears.sample_rate_hz:,} Hz; "
            "take an embedding of a lower rate"
        )


def load_embedding(name: str, layer: int | None, crop_sec: float | None, trust_remote_code: bool) -> Embedding:
    """What --embedding names.

    Args:
        name: judge; log-mel; panns:FILE, vggish:FILE or vggish-pca:FILE with the published weights as safetensors; or
            what `segue.ssl.load_teacher` takes.
        crop_sec: default 10.

    Raises:
        UserError: it cannot be loaded, or has no layer or crop to choose.
    """
    kind, _, file = name.partition(":")
    if layer is not None and kind in ("judge", "log-mel", *_FROM_FILE):
        raise UserError(f"--layer: {kind} has one embedding only; leave --layer away")
    if name == "judge":
        if crop_sec is not None:
            raise UserError("--crop-seconds: the judge hears the first 2.048 s; leave --crop-seconds away")
        return JudgeEmbedding(Judge.load())
    crop_sec = CROP_SEC if crop_sec is None else crop_sec
    if name == "log-mel":
        return LogMelEmbedding(crop_sec)
    if kind in _FROM_FILE:
        if not file:
            raise UserError(f"--embedding {name}: needs its weights, {kind}:FILE.safetensors; docs/metrics.md says how")
        return _FROM_FILE[kind](Path(file), crop_sec)
    from segue.ssl import load_teacher

    try:
        return EncoderEmbedding(load_teacher(name, layer, trust_remote_code), crop_sec)
    except UserError as error:  # it speaks to those who encode
        words = str(error).replace("--teacher-layer", "--layer").replace("--teacher ", "--embedding ")
        raise UserError(words) from error


def embed(clips: dict[str, Clip], ears: Embedding, folder: Path, what: str) -> dict[str, dict[str, np.ndarray]]:
    for clip in clips.values():  # all of them before the long work
        _refuse_low_rate(clip.path, ears)
    heard = {}
    for name, clip in track(clips.items(), len(clips), f"{what} by {ears.name}", "clips"):
        content = sha256_of([clip.path])
        heard[name] = cached(folder, content, ears, lambda path=clip.path: read(path, ears.sample_rate_hz))
    return heard


def refuse_guides(
    clips: dict[str, Clip], run: Path | None, listeners: list[Embedding], force: bool, found: Findings
) -> None:
    """An embedding that guided a run may not judge it.

    The run is --run, or what `segue generate` wrote into the files ("RUN seed N"). A cache's teacher counts as a guide
    whether the recipe used it or not.

    Raises:
        UserError: it did, and is not forced; or --run is none.
    """
    runs = [run] if run is not None else _named_runs(clips)
    if not runs:
        found.warnings.append("not checked whether the embedding guided the generator: no run named (--run)")
    for folder in runs:
        teacher = _teacher_of(folder, run is not None, found)
        for ears in listeners:
            if not guided(ears, teacher):
                continue
            line = f"{ears.name} is the teacher of {folder}: an embedding that guided a run may not judge it"
            if not force:
                raise UserError(f"{line}; take another --embedding, or --force")
            found.warnings.append(f"FORCED: {line}; these figures flatter it")


def _teacher_of(run: Path, asked: bool, found: Findings) -> dict | None:
    try:
        cache = Path(json.loads((run / "config.json").read_text(encoding="utf-8"))["cache"])
        return json.loads((cache / "meta.json").read_text(encoding="utf-8")).get("teacher")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if asked:
            raise UserError(
                f"--run {run}: no run there, or its cache is gone: its teacher cannot be checked; leave --run away, "
                "and the table will say so"
            ) from error
        found.warnings.append(f"not checked whether the embedding guided {run}: the run or its cache is gone")
        return None


def _named_runs(clips: dict[str, Clip]) -> list[Path]:
    named = (re.fullmatch(r"(.+) seed -?\d+(?: take \d+)?", tag_of(clip.path, "comment")) for clip in clips.values())
    return sorted({Path(match.group(1)) for match in named if match})


def tag_of(path: Path, tag: str) -> str:
    return read_tags(path).get(tag, "")  # a file without tags, or that cannot be read: reading it complains
