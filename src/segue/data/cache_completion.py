"""The end of a latent cache's making: statistics read back from its shards, the index, and meta.json."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from math import ceil
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from segue.data.cache_layout import Parts, Shard
from segue.data.conditions import described
from segue.data.content import rows_digest
from segue.data.shards import read_tensors
from segue.files import write_bytes
from segue.ssl.base import Teacher
from segue.types import UserError


def finish_cache(
    out: Path,
    parts: Parts,
    settings: dict,
    index: list[dict],
    latent_shards: list[Shard],
    text_shards: list[Shard],
    skipped: list[dict],
) -> None:
    """Statistics, index, and last of all meta.json; then nothing but the cache is left in the folder."""
    folder = out / "shards"

    def listed(shards: list[Shard]) -> list[dict]:
        return [{"file": s.file, "rows": len(s.items), "bytes": (folder / s.file).stat().st_size} for s in shards]

    # Every caption has as many token places as the longest one.
    text_shapes = []
    for shard in text_shards:
        with safe_open(folder / shard.file, framework="pt") as file:
            text_shapes.append(file.get_slice("tokens").get_shape())
    splits = [row["split"] for row in index]
    meta = settings | {
        "codec_source": getattr(parts.codec, "source", parts.codec.name),
        "sample_rate_hz": parts.codec.sample_rate_hz,
        "audio_channels": parts.codec.audio_channels,
        "hop_samples": parts.codec.hop_samples,
        "channels": parts.codec.channels,
        "frames": parts.frames,
        "text_dim": parts.conditioner.dim,
        "text_tokens": max(shape[1] for shape in text_shapes),
        "teacher_dim": None if parts.teacher is None else parts.teacher.dim,
        "teacher_frame_rate_hz": None if parts.teacher is None else parts.teacher.frame_rate_hz,
        "teacher_source": None if parts.teacher is None else _findable(parts.teacher.source),
        "teacher_statistics": None if parts.teacher is None else _teacher_statistics(out, index, parts.teacher),
        "statistics": _statistics(out, index, parts.codec.statistics),
        "counts": {
            "rows": len(index),
            "clips": len({row["id"] for row in index}),
            "captions": sum(len(shard.items) for shard in text_shards),
            # Variants are the same sound again: they add rows, but no hours.
            "hours": sum(row["length_sec"] for row in index if "variant" not in row) / 3600,
            "splits": {split: splits.count(split) for split in sorted(set(splits))},
        },
        **({"conditions": described(index, parts.fields)} if parts.timed or parts.fields else {}),
        "contents": rows_digest(index),
        "skipped": skipped,
        "shards": listed(latent_shards),
        "text_shards": listed(text_shards),
    }
    # An earlier cache is whole until here. In between there is none, but the next build finds all shards.
    if (out / "meta.json").exists():
        os.replace(out / "meta.json", out / "building.json")
    write_bytes(out / "index.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in index).encode())
    write_bytes(out / "meta.json", (json.dumps(meta, indent=1, ensure_ascii=False) + "\n").encode())
    # Shards of an earlier set are of no use any more.
    kept = {shard.file for shard in (*latent_shards, *text_shards)}
    for path in (*folder.iterdir(), *out.glob("*.tmp")):
        if path.name not in kept:
            path.unlink()
    (out / "building.json").unlink(missing_ok=True)


def _statistics(out: Path, index: list[dict], mode: str) -> dict:
    """Mean and standard deviation over the train split's valid frames, in float64: per channel, or one for all.

    Read back from the shards, so that a resumed build gets the same bits as an uninterrupted one. A set without a
    train split takes all its rows.
    """
    # Padding is no sound: only real frames count.
    count, total, square = _moments(out, index, lambda shard, row: shard["latents"][row["row"], :, : row["frames"]])
    if mode == "global":
        # The mean of the channels' means and mean squares is that of all values, since each channel has as many frames.
        total, square = total.mean().expand_as(total), square.mean().expand_as(square)
    mean = total / count
    # Cancellation costs at most 1e-16 of the mean square: harmless unless std is below 1e-8 of the mean.
    std = (square / count - mean.square()).clamp(min=0).sqrt()
    # A channel that never moves must not be blown up.
    std = torch.where(std > 1e-4 * std.max(), std, std.max() if std.max() > 0 else torch.ones(()))
    return {"mode": mode, "mean": mean.tolist(), "std": std.tolist(), "frames": count}


def _findable(source: dict) -> dict:
    """A teacher's source that holds from another working directory too."""
    path = Path(source["name"])
    return source | {"name": str(path.resolve())} if path.exists() else source


def _teacher_statistics(out: Path, index: list[dict], teacher: Teacher) -> dict:
    """Mean and standard deviation of each feature over the train split's real frames; refuses a collapsed teacher.

    Raises:
        UserError: hardly any feature moves over the data: such a teacher has nothing to teach.
    """

    def real_frames(shard: dict[str, Tensor], row: dict) -> Tensor:
        return shard["teacher"][row["row"], : ceil(row["length_sec"] * teacher.frame_rate_hz)].T

    count, total, square = _moments(out, index, real_frames)
    mean = total / count
    std = (square / count - mean.square()).clamp(min=0).sqrt()
    # Relative to the root mean square, so that a teacher's own scale does not matter.
    alive = std > 1e-3 * (square / count).mean().sqrt()
    if float(alive.double().mean()) < 0.05:
        raise UserError(
            f"--teacher {teacher.source}: {int(alive.sum())} of its {teacher.dim} features move over this data: it is "
            "collapsed, or its weights never loaded; hint: choose another teacher or --teacher-layer"
        )
    # A dead feature gets the largest spread: divided by it, its noise stays small.
    std = torch.where(alive, std, std.max())
    return {"mean": mean.tolist(), "std": std.tolist(), "frames": count}


def _moments(out: Path, index: list[dict], frames_of: Callable) -> tuple[int, Tensor, Tensor]:
    """Count, sum and sum of squares over the train split's frames, in float64; frames_of gives a row's [C, frames]."""
    # Validation must not shape what training is standardised with, unless there is nothing else.
    rows = [row for row in index if row["split"] == "train"] or index
    by_shard: dict[str, list[dict]] = {}
    for row in rows:
        by_shard.setdefault(row["shard"], []).append(row)
    count = 0
    total = square = torch.zeros((), dtype=torch.float64)
    for name, members in by_shard.items():
        shard = read_tensors(out / "shards" / name)
        for row in members:
            # Sums over hours of frames need float64.
            valid = frames_of(shard, row).double()
            count += valid.shape[1]
            total, square = total + valid.sum(dim=1), square + valid.square().sum(dim=1)
    return count, total, square
