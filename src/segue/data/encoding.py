"""Making a latent cache: latents, text embeddings and teacher features of a data set, computed once.

A folder of safetensors shards, each named by a hash of the contents, codec and settings that it was made from, with
index.jsonl (one row a segment) and meta.json, which is written last. A killed build is continued: shards appear whole
or not at all, and those that exist are kept. `data/cache.py` reads it.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from math import ceil
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from segue.codecs.base import Codec
from segue.conditioners.base import TextConditioner
from segue.data.audio import BadAudio, Header, read_segment
from segue.data.cache import (
    CAPTIONS_PER_SHARD,
    SCHEMA_VERSION,
    LatentCache,
    difference,
    read_index,
    read_json,
    read_tensors,
)
from segue.data.check import Inspection, inspect_clips
from segue.data.manifest import Clip
from segue.data.progress import track
from segue.data.round_trip import check_round_trip
from segue.files import make_folder, write_bytes
from segue.memory import peak_bytes, resident_bytes, spoken
from segue.ssl.base import Teacher
from segue.types import UserError, printable

DTYPES = {"float16": torch.float16, "float32": torch.float32}
ROWS_PER_SHARD = 512
CAPTIONS_AT_ONCE = 64
SHORTEST_REST = 0.1  # of a segment: a shorter rest at the end of a long file is left out


class _Unread(UserError):
    """A file that was fine when it was inspected, and is not when it is encoded.

    Attributes:
        path, reason: which, and what is wrong with it now.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; it was fine at first; mend: replace it, or --skip-bad to go on without it")
        self.path, self.reason = path, reason


@dataclass(frozen=True)
class _Segment:
    """One row to be: a stretch of a file."""

    clip: Clip
    inspection: Inspection
    start_sec: float
    length_sec: float
    frames: int

    @property
    def key(self) -> tuple[str, float, float]:
        return self.inspection.sha256, self.start_sec, self.length_sec


@dataclass(frozen=True)
class _Parts:
    """What turns sound and captions into rows."""

    codec: Codec
    conditioner: TextConditioner
    teacher: Teacher | None
    seconds: float
    dtype: str
    device: str

    @property
    def samples(self) -> int:
        return round(self.seconds * self.codec.sample_rate_hz)

    @property
    def frames(self) -> int:
        return self.codec.latent_frames(self.samples)

    @property
    def rates_hz(self) -> tuple[int, ...]:
        """What files are read at: the codec's rate, and the teacher's own."""
        return tuple(part.sample_rate_hz for part in (self.codec, self.teacher) if part is not None)

    def settings(self) -> dict:
        """What the bytes of the cache depend on, beside the data."""
        settings = {
            "schema_version": SCHEMA_VERSION,
            "codec": self.codec.fingerprint(),
            "text": self.conditioner.fingerprint(),
            "teacher": None if self.teacher is None else self.teacher.fingerprint(),
            "seconds": self.seconds,
            "dtype": self.dtype,
        }
        return json.loads(json.dumps(settings))


def build_cache(
    clips: Sequence[Clip],
    codec: Codec,
    conditioner: TextConditioner,
    teacher: Teacher | None = None,
    *,
    out: Path | str,
    seconds: float,
    dtype: str = "float16",
    skip_bad: bool = False,
    batch_size: int = 32,
    workers: int = 2,
    device: str = "cpu",
) -> LatentCache:
    """Encode a data set into `out`, or go on where a killed build stopped; a finished one is opened at once.

    Files longer than `seconds` are cut into consecutive segments, each row with its own start and length (a rest below
    a tenth of `seconds` is left out); shorter ones are padded with zeros, and `frames` says how many frames are real.

    Args:
        skip_bad: leave unusable files out and list them in meta.json, instead of refusing.
        device: where the codec runs; a teacher runs where it is.

    Raises:
        UserError: bad files, a cache made with other settings or from other files, a full disk.
    """
    out = Path(out)
    parts = _Parts(codec.to(device), conditioner, teacher, float(seconds), dtype, device)
    _check_arguments(clips, parts)
    settings = parts.settings()
    _refuse_other_settings(out, settings)
    inspections = list(inspect_clips(clips, workers))
    skipped = _bad_files(clips, inspections, skip_bad)
    while True:
        try:
            return _build(out, parts, settings, clips, inspections, skipped, batch_size, workers)
        except _Unread as error:
            # A file that changed, or that decodes differently each time, as some damaged MP3 do: without it, the whole
            # shards that are there are kept.
            if not skip_bad:
                raise
            found = {clip.id for clip in clips if clip.path == error.path}
            skipped += [{"id": name, "reason": error.reason} for name in sorted(found)]
            inspections = [
                replace(i, problem=error.reason) if clip.id in found else i for clip, i in zip(clips, inspections)
            ]
            print(printable(f"left out {', '.join(sorted(found))}: {error.reason}"), file=sys.stderr)


def _build(
    out: Path,
    parts: _Parts,
    settings: dict,
    clips: Sequence[Clip],
    inspections: Sequence[Inspection],
    skipped: list[dict],
    batch_size: int,
    workers: int,
) -> LatentCache:
    """What `build_cache` does once it knows which files it can use.

    Raises:
        _Unread: a file cannot be read any more.
    """
    segments = [s for c, i in zip(clips, inspections) if i.problem is None for s in _segments(c, i, parts)]
    if not segments:
        raise UserError(f"no usable sound among {len(clips)} files; mend: see segue data check")
    captions = list(dict.fromkeys(caption for s in segments for caption in s.clip.captions))

    latent_shards = _shards(segments, ROWS_PER_SHARD, lambda s: [settings, s.key], "latents")
    text_shards = _shards(captions, CAPTIONS_PER_SHARD, lambda c: [settings["text"], parts.dtype, c], "text")
    index = _index(latent_shards, captions)
    if (out / "meta.json").exists():
        _refuse_other_files(out, index)
        return LatentCache.open(out)

    make_folder(out / "shards")
    write_bytes(out / "building.json", json.dumps(settings).encode())
    missing = [shard for shard in latent_shards if not _is_whole(out, shard)]
    missing_text = [shard for shard in text_shards if not _is_whole(out, shard)]
    _announce(out, parts, latent_shards, missing, captions)
    _check_codec(parts, segments)
    _announce_rate(parts, missing, missing_text, batch_size)
    _encode_shards(out, parts, missing, batch_size, workers)
    _encode_captions(out, parts, missing_text)
    _finish(out, parts, settings, index, latent_shards, text_shards, skipped)
    return LatentCache.open(out)


@dataclass(frozen=True)
class _Shard:
    """Rows that are encoded and written together; the name is a hash of all that they depend on."""

    file: str
    items: Sequence


def _shards(items: Sequence, size: int, key: Callable, what: str) -> list[_Shard]:
    shards = []
    for start in range(0, len(items), size):
        part = items[start : start + size]
        digest = sha256(json.dumps([key(item) for item in part], sort_keys=True).encode()).hexdigest()[:32]
        shards.append(_Shard(f"{what}-{digest}.safetensors", part))
    return shards


def _segments(clip: Clip, inspection: Inspection, parts: _Parts) -> Iterator[_Segment]:
    rate_hz, whole = parts.codec.sample_rate_hz, parts.samples
    total = max(1, round(inspection.header.seconds * rate_hz))
    for start in range(0, total, whole):
        samples = min(whole, total - start)
        if start > 0 and samples < SHORTEST_REST * whole:
            break
        frames = min(parts.frames, parts.codec.latent_frames(samples))
        yield _Segment(clip, inspection, start / rate_hz, samples / rate_hz, frames)


def _index(shards: list[_Shard], captions: list[str]) -> list[dict]:
    number = {caption: n for n, caption in enumerate(captions)}
    return [
        {
            "id": segment.clip.id,
            "sha256": segment.inspection.sha256,
            "shard": shard.file,
            "row": row,
            "frames": segment.frames,
            "split": segment.clip.split,
            "captions": list(segment.clip.captions),
            "caption_rows": [number[caption] for caption in segment.clip.captions],
            "start_sec": segment.start_sec,
            "length_sec": segment.length_sec,
            "fields": json.loads(json.dumps(segment.clip.fields)),
        }
        for shard in shards
        for row, segment in enumerate(shard.items)
    ]


def _check_arguments(clips: Sequence[Clip], parts: _Parts) -> None:
    if not clips:
        raise UserError("no clips to encode; mend: name a folder that holds sounds")
    if parts.dtype not in DTYPES:
        raise UserError(f"--dtype must be one of {', '.join(DTYPES)}, not {parts.dtype!r}")
    if not parts.samples > 0:
        raise UserError(f"--seconds must be positive, not {parts.seconds}")


def _refuse_other_settings(out: Path, settings: dict) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; mend: name a new or empty folder")
    made_with = next((p for p in (out / "meta.json", out / "building.json") if p.exists()), None)
    if made_with is None:
        if out.exists() and any(p.name != "shards" and p.suffix != ".tmp" for p in out.iterdir()):
            raise UserError(f"{out}: holds files that are not a latent cache; mend: name a new or empty folder")
        return
    found = read_json(made_with)
    if any(found.get(name) != value for name, value in settings.items()):
        raise UserError(
            f"{out}: a cache made with other settings ({difference(found, settings)}); "
            "mend: --out another folder, or delete this one"
        )


def _refuse_other_files(out: Path, index: list[dict]) -> None:
    found = read_index(out)
    if found == index:
        return

    def contents(rows: list[dict]) -> dict[str, str]:
        return {row["id"]: row["sha256"] for row in rows}

    then, now = contents(found), contents(index)
    new, gone = now.keys() - then.keys(), then.keys() - now.keys()
    changed = {i for i in now.keys() & then.keys() if now[i] != then[i]}
    counts = [
        f"{len(ids)} {word} (e.g. {min(ids)})"
        for ids, word in ((changed, "changed"), (new, "new"), (gone, "gone"))
        if ids
    ]
    raise UserError(
        f"{out}: made from other files: {', '.join(counts) or 'captions, splits or fields differ'}; "
        "mend: --out another folder, or delete this one"
    )


def _bad_files(clips: Sequence[Clip], inspections: Sequence[Inspection], skip_bad: bool) -> list[dict]:
    bad = [{"id": c.id, "reason": i.problem} for c, i in zip(clips, inspections) if i.problem is not None]
    if bad and not skip_bad:
        named = [f"{c.path}: {i.problem}" for c, i in zip(clips, inspections) if i.problem is not None]
        more = f"; and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise UserError(
            f"{len(bad)} of {len(clips)} files cannot be used ({'; '.join(named[:10])}{more}); "
            "mend: repair them, or --skip-bad to go on without them"
        )
    for entry in bad:
        print(printable(f"left out {entry['id']}: {entry['reason']}"), file=sys.stderr)
    return bad


def _announce(out: Path, parts: _Parts, shards: list[_Shard], missing: list[_Shard], captions: list[str]) -> None:
    """Say how large the cache will be, and refuse now what would fill the disk later."""
    width = torch.finfo(DTYPES[parts.dtype]).bits // 8
    rows, rows_missing = (sum(len(s.items) for s in group) for group in (shards, missing))
    per_row = parts.codec.channels * parts.frames * width
    if parts.teacher is not None:
        per_row += ceil(parts.seconds * parts.teacher.frame_rate_hz) * parts.teacher.dim * width
    tokens = min(parts.conditioner.max_tokens, 2 + round(1.4 * max(len(c.split()) for c in captions)))
    per_caption = tokens * parts.conditioner.dim * width
    expected = rows * per_row + len(captions) * per_caption
    done = f", {rows - rows_missing:,} of them done" if rows_missing < rows else ""
    print(
        f"{out}: {rows:,} rows{done}, {len(captions):,} captions, about {expected / 1e6:,.0f} MB "
        f"({per_row * 3600 / parts.seconds / 1e6:,.1f} MB per hour of sound)",
        file=sys.stderr,
    )
    free = shutil.disk_usage(out).free
    if rows_missing * per_row > free:
        raise UserError(
            f"{out}: needs about {rows_missing * per_row / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free; "
            "mend: free space, or --out on another disk"
        )


def _announce_rate(parts: _Parts, missing: list[_Shard], missing_text: list[_Shard], batch_size: int) -> None:
    """Encode one batch for nothing, and say how fast that went and how much memory the whole will take; what cannot be
    encoded is refused here already.

    No codec or teacher says what it needs, so a batch shows it. What comes on top is counted: a shard as its rows,
    joined, and as the bytes of its file.
    """
    peak, joined = 0, 3
    if missing:
        segments = missing[0].items[:batch_size]

        def encode(some: Sequence[_Segment]) -> dict[str, Tensor]:
            pieces = [_read(segment, parts.seconds, parts.rates_hz) for segment in some]
            waves, *teacher_waves = (torch.from_numpy(np.stack(same_rate)) for same_rate in zip(*pieces))
            return _encode_batch(parts, some, waves, *(teacher_waves or [None]))

        encode(segments[:1])  # warms up
        start = time.monotonic()
        rows = encode(segments)
        rate = len(segments) / max(time.monotonic() - start, 1e-6)
        todo = sum(len(shard.items) for shard in missing)
        print(f"encoding about {rate:,.1f} clips/s: {todo:,} clips in about {todo / rate:,.0f} s", file=sys.stderr)
        per_row = sum(x.nbytes for x in rows.values()) / len(segments)
        peak = peak_bytes() + joined * per_row * max(len(shard.items) for shard in missing)
    if missing_text:
        items = max((shard.items for shard in missing_text), key=len)
        longest = _caption_batches(items, CAPTIONS_AT_ONCE)[-1]
        tokens, _ = _embed(parts, [items[i] for i in longest])
        peak = max(peak, peak_bytes(), resident_bytes() + joined * len(items) * tokens[0].nbytes)
    if peak:
        print(f"peak memory about {spoken(round(peak))}", file=sys.stderr)


def _check_codec(parts: _Parts, segments: Sequence[_Segment]) -> None:
    """Refuse a codec that does not give back three of the clips."""
    some = segments[:: max(1, len(segments) // 3)][:3]
    waves = [_read(segment, parts.seconds, (parts.codec.sample_rate_hz,))[0] for segment in some]
    stacked = torch.from_numpy(np.stack(waves)).to(parts.device)
    error = check_round_trip(parts.codec, stacked, getattr(parts.codec, "source", parts.codec.name))
    print(f"codec round trip on {len(some)} clips: spectral error {error:.3f} (0 is perfect)", file=sys.stderr)


def _is_whole(out: Path, shard: _Shard) -> bool:
    """Whether a shard of an earlier build can be kept."""
    try:
        with safe_open(out / "shards" / shard.file, framework="pt") as file:
            name = "latents" if shard.file.startswith("latents") else "tokens"
            return file.get_slice(name).get_shape()[0] == len(shard.items)
    except (OSError, SafetensorError):
        return False


def _encode_shards(out: Path, parts: _Parts, shards: list[_Shard], batch_size: int, workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        batches = _batches(parts, shards, batch_size, pool)
        progress = track(batches, sum(len(s.items) for s in shards), "encoding", "clips", size=lambda b: len(b[1]))
        rows: list[dict[str, Tensor]] = []
        for shard, segments, waves, teacher_waves in progress:
            rows.append(_encode_batch(parts, segments, waves, teacher_waves))
            if sum(len(part["latents"]) for part in rows) == len(shard.items):
                tensors = {name: torch.cat([part[name] for part in rows]) for name in rows[0]}
                write_bytes(out / "shards" / shard.file, save(tensors))
                rows.clear()


def _batches(parts: _Parts, shards: list[_Shard], batch_size: int, pool: ThreadPoolExecutor) -> Iterator[tuple]:
    """Decoded batches, one read ahead; a batch never spans shards, so that a resumed build meets the same batches."""
    plan = [
        (shard, shard.items[i : i + batch_size]) for shard in shards for i in range(0, len(shard.items), batch_size)
    ]

    def submit(segments: Sequence[_Segment]) -> list:
        return [pool.submit(_read, segment, parts.seconds, parts.rates_hz) for segment in segments]

    ahead = submit(plan[0][1]) if plan else []
    for number, (shard, segments) in enumerate(plan):
        futures, ahead = ahead, submit(plan[number + 1][1]) if number + 1 < len(plan) else []
        waves = [future.result() for future in futures]
        by_rate = [torch.from_numpy(np.stack(same_rate)) for same_rate in zip(*waves)]
        yield shard, segments, by_rate[0], by_rate[1] if len(by_rate) > 1 else None


def _read(segment: _Segment, seconds: float, rates_hz: tuple[int, ...]) -> list[np.ndarray]:
    header: Header = segment.inspection.header
    try:
        pieces = read_segment(segment.clip.path, header, segment.start_sec, segment.length_sec, rates_hz)
    except BadAudio as error:
        raise _Unread(segment.clip.path, error.reason) from error
    return [np.pad(piece, (0, max(0, round(seconds * rate) - len(piece)))) for piece, rate in zip(pieces, rates_hz)]


@torch.inference_mode()
def _encode_batch(
    parts: _Parts, segments: Sequence[_Segment], waves: Tensor, teacher_waves: Tensor | None
) -> dict[str, Tensor]:
    latents = parts.codec.encode(waves.to(parts.device)).float().cpu()
    frames = torch.tensor([segment.frames for segment in segments])
    latents = latents * (torch.arange(latents.shape[-1]) < frames[:, None])[:, None]
    tensors = {"latents": _stored(latents, parts, segments, "codec")}
    if teacher_waves is not None:
        features = parts.teacher.encode(teacher_waves).float().cpu()
        tensors["teacher"] = _stored(features, parts, segments, "teacher")
    return tensors


def _stored(values: Tensor, parts: _Parts, segments: Sequence[_Segment], what: str) -> Tensor:
    stored = values.to(DTYPES[parts.dtype])
    fine = stored.flatten(1).isfinite().all(dim=1)
    if not bool(fine.all()):
        path = segments[int((~fine).nonzero()[0])].clip.path
        mend = "--dtype float32" if bool(values.isfinite().all()) else f"try another {what}"
        raise UserError(f"{path}: the {what} gives values that {parts.dtype} cannot hold; mend: {mend}")
    return stored.contiguous()


def _encode_captions(out: Path, parts: _Parts, shards: list[_Shard]) -> None:
    plan = [(shard, batch) for shard in shards for batch in _caption_batches(shard.items, CAPTIONS_AT_ONCE)]
    total = sum(len(shard.items) for shard in shards)
    rows: dict[int, tuple[Tensor, Tensor]] = {}
    for shard, batch in track(plan, total, "embedding captions", "captions", size=lambda b: len(b[1])):
        tokens, mask = _embed(parts, [shard.items[i] for i in batch])
        rows |= {i: (tokens[b], mask[b]) for b, i in enumerate(batch)}
        if len(rows) == len(shard.items):
            longest = max(int(mask.sum()) for _, mask in rows.values())
            tokens = torch.zeros(len(rows), longest, parts.conditioner.dim, dtype=DTYPES[parts.dtype])
            mask = torch.zeros(len(rows), longest, dtype=torch.bool)
            for i in sorted(rows):
                t, m = rows.pop(i)
                kept = min(longest, len(m))
                tokens[i, :kept], mask[i, :kept] = t[:kept], m[:kept]
            write_bytes(out / "shards" / shard.file, save({"tokens": tokens, "mask": mask}))


@torch.inference_mode()
def _embed(parts: _Parts, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Tokens [n, K, E] as the cache stores them, zero where the mask [n, K] is False."""
    tokens, mask = (x.cpu() for x in parts.conditioner.encode(captions))
    return (tokens.float() * mask[..., None]).to(DTYPES[parts.dtype]), mask


def _caption_batches(captions: Sequence[str], batch_size: int) -> list[list[int]]:
    """Batches of captions of like length: little padding, little waste."""
    order = sorted(range(len(captions)), key=lambda i: (len(captions[i]), i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _finish(
    out: Path,
    parts: _Parts,
    settings: dict,
    index: list[dict],
    latent_shards: list[_Shard],
    text_shards: list[_Shard],
    skipped: list[dict],
) -> None:
    """Statistics, index, and last of all meta.json; then nothing but the cache is left in the folder."""
    folder = out / "shards"

    def listed(shards: list[_Shard]) -> list[dict]:
        return [{"file": s.file, "rows": len(s.items), "bytes": (folder / s.file).stat().st_size} for s in shards]

    text_shapes = []
    for shard in text_shards:
        with safe_open(folder / shard.file, framework="pt") as file:
            text_shapes.append(file.get_slice("tokens").get_shape())
    splits = [row["split"] for row in index]
    meta = settings | {
        "codec_source": getattr(parts.codec, "source", parts.codec.name),
        "sample_rate_hz": parts.codec.sample_rate_hz,
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
            "hours": sum(row["length_sec"] for row in index) / 3600,
            "splits": {split: splits.count(split) for split in sorted(set(splits))},
        },
        "skipped": skipped,
        "shards": listed(latent_shards),
        "text_shards": listed(text_shards),
    }
    write_bytes(out / "index.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in index).encode())
    write_bytes(out / "meta.json", (json.dumps(meta, indent=1, ensure_ascii=False) + "\n").encode())
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
    count, total, square = _moments(out, index, lambda shard, row: shard["latents"][row["row"], :, : row["frames"]])
    if mode == "global":
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
    alive = std > 1e-3 * (square / count).mean().sqrt()
    if float(alive.double().mean()) < 0.05:
        raise UserError(
            f"--teacher {teacher.source}: {int(alive.sum())} of its {teacher.dim} features move over this data: it is "
            "collapsed, or its weights never loaded; mend: choose another teacher or --teacher-layer"
        )
    std = torch.where(alive, std, std.max())
    return {"mean": mean.tolist(), "std": std.tolist(), "frames": count}


def _moments(out: Path, index: list[dict], frames_of: Callable) -> tuple[int, Tensor, Tensor]:
    """Count, sum and sum of squares over the train split's frames, in float64; frames_of gives a row's [C, frames]."""
    rows = [row for row in index if row["split"] == "train"] or index
    by_shard: dict[str, list[dict]] = {}
    for row in rows:
        by_shard.setdefault(row["shard"], []).append(row)
    count, total, square = 0, 0.0, 0.0
    for name, members in by_shard.items():
        shard = read_tensors(out / "shards" / name)
        for row in members:
            valid = frames_of(shard, row).double()
            count += valid.shape[1]
            total, square = total + valid.sum(dim=1), square + valid.square().sum(dim=1)
    return count, total, square
