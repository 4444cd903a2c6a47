"""Making a latent cache: latents, text embeddings and teacher features of a data set, computed once.

A folder of safetensors shards, each named by a hash of the contents, codec and settings that it was made from, with
index.jsonl (one row a segment) and meta.json, which is written last. A killed build is continued: shards appear whole
or not at all, and those that exist are kept. `data/cache_layout.py` says what goes where, `data/cache_completion.py`
writes what comes last, `data/cache.py` reads it.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from math import ceil
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from segue.codecs.base import Codec
from segue.conditioners.base import TextConditioner
from segue.conditioners.tokens import count_tokens
from segue.data.cache import DTYPES, LatentCache
from segue.data.cache_checks import read_index, read_json
from segue.data.cache_completion import finish_cache
from segue.data.cache_layout import (
    CAPTIONS_PER_SHARD,
    Parts,
    Segment,
    Shard,
    bad_files,
    changes,
    check_arguments,
    index_of,
    is_same_set,
    refuse_other_settings,
    segments_of,
    shards_of,
)
from segue.data.cache_parts import Part, begin_part, join_parts, refuse_parts
from segue.data.caption_encoding import CAPTIONS_AT_ONCE, caption_batches, embed, encode_captions
from segue.data.channels import what_becomes
from segue.data.check import Inspection, inspect_clips
from segue.data.clip import Clip
from segue.data.conditions import ConditionField, described, settled
from segue.data.decoding import FileWorkers, Task, read_stretch
from segue.data.encode_rows import Unread, encode_rows, placed, read_here, stretch_of
from segue.data.round_trip import check_round_trip
from segue.data.splits import missing_split_note, split_clips
from segue.files import make_folder, write_bytes
from segue.memory import format_bytes, peak_bytes, resident_bytes
from segue.progress import track
from segue.ssl.base import Teacher
from segue.types import UserError, printable

ROWS_PER_SHARD = 256  # about; see plan.shards_of
ROUND_TRIPS = 8  # clips that try the codec


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
    variants: int = 1,
    batch_size: int = 32,
    workers: int = 0,
    device: str = "cpu",
    part: Part | None = None,
    conditions: Sequence[str] = (),
    timed: bool = False,
) -> LatentCache:
    """Encode a data set into `out`, or continue where a killed build stopped; a finished one is opened at once.

    A finished one of the same settings that was made from fewer files, or with other captions, is brought up to date:
    shards whose rows stay are kept, and the result is, bit for bit, that of encoding anew (but where the longest
    caption went: the rows keep its room for tokens). Clips without a split get one by their content (data/splits.py).

    Files longer than `seconds` are cut into consecutive segments, each row with its own start and length (a rest below
    a tenth of `seconds` is left out); shorter ones are padded with zeros, and `frames` says how many frames are real.

    Args:
        skip_bad: leave unusable files out and list them in meta.json, instead of refusing.
        workers: processes that decode; they change nothing of the result. 0: two threads of this process, as a script
            needs that has no `if __name__ == "__main__"`.
        variants: rows for each stretch of a training file; all but the first are varied (see `plan.segments_of`).
        device: where codec and text encoder run; a teacher runs where it is.
        part: encode this part of the clips (data/cache_parts.py). The whole cache is returned where it was the last
            that was missing, else the part.
        conditions: fields of the clips that a model shall be conditioned on, as --condition takes them: "field=bpm".
        timed: keep for each row where in its sound it starts and how long that is, as conditions, and encode long files
            without seams: training then takes crops of any length from them, and learns the silence behind a sound.

    Raises:
        UserError: bad files, a cache made with other settings or from quite other files, a full disk, conditions that
            clips do not have.
    """
    out = Path(out)
    fields = settled([ConditionField.of(text) for text in conditions], clips)
    encoders = (codec.to(device), conditioner.to(device), teacher, float(seconds), dtype, device, variants)
    parts = Parts(*encoders, fields, timed)
    check_arguments(clips, parts)
    # Settings first: they refuse another cache's folder before a file is decoded.
    settings = parts.settings()
    whole = out
    if part is None:
        refuse_parts(out)
        refuse_other_settings(out, settings)
    elif not (out / "meta.json").exists():
        known = {"conditions": [asdict(field) for field in fields], "timed": timed} if fields or timed else {}
        clips = begin_part(out, part, clips, settings | known)
        refuse_other_settings(out := part.folder(out), settings)
    else:  # joined already
        refuse_other_settings(out, settings)
        return LatentCache.open(out)
    with FileWorkers(workers) as decoders:
        inspections = inspect_clips(clips, channels=parts.codec.audio_channels, decoders=decoders)
        skipped = bad_files(clips, inspections, skip_bad)
        good = {c.path: i.header for c, i in zip(clips, inspections) if i.problem is None and i.header}
        for line in what_becomes(list(good.values()), codec) if good else []:
            print(f"sound: {line}", file=sys.stderr)
        # Each turn leaves one more file out, so that this ends; shards that the file is not in are kept by their names.
        while True:
            try:
                made = _build(out, parts, settings, clips, inspections, skipped, batch_size, decoders, part)
                return (part and join_parts(whole, part, parts, settings)) or made
            except Unread as error:
                # A file that changed, or that decodes differently each time, as some damaged MP3 do: without it, the
                # whole shards that are there are kept.
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
    parts: Parts,
    settings: dict,
    clips: Sequence[Clip],
    inspections: Sequence[Inspection],
    skipped: list[dict],
    batch_size: int,
    decoders: FileWorkers,
    part: Part | None = None,
) -> LatentCache:
    """What `build_cache` does once it knows which files it can use.

    Raises:
        Unread: a file cannot be read any more.
    """
    segments = [
        s
        for clip, inspection in _split(clips, inspections, part is not None)
        for s in segments_of(clip, inspection, parts)
    ]
    if not segments:
        raise UserError(f"no usable sound among {len(clips)} files; hint: see segue data check")
    captions = list(dict.fromkeys(caption for s in segments for caption in s.clip.captions))

    # The layout of the cache: which rows and captions stand in which shard, by hashes of what they depend on.
    # The text encoder touches no latents: another one leaves these shards as they are.
    of_sound = {name: value for name, value in settings.items() if name != "text"}
    latent_shards = shards_of(segments, ROWS_PER_SHARD, of_sound, lambda s: s.key, "latents")
    text_shards = shards_of(captions, CAPTIONS_PER_SHARD, [settings["text"], parts.dtype], lambda c: c, "text")
    index = index_of(latent_shards, captions)
    # A finished cache of the same set is opened as it is.
    if (out / "meta.json").exists():
        found, meta = read_index(out), read_json(out / "meta.json")
        now = described(index, parts.fields) if parts.timed or parts.fields else None
        if is_same_set(found, index) and meta["text"] == settings["text"] and meta.get("conditions") == now:
            # Only the list of what was left out may differ: then the same rows are put together again below.
            if meta.get("skipped") == skipped:
                return LatentCache.open(out)
            print(f"{out}: going on from the cache that is there: other files are left out", file=sys.stderr)
        else:
            _announce_changes(out, found, index)

    # Encode what is not there yet.
    missing = [shard for shard in latent_shards if not _is_whole(out, shard)]
    missing_text = [shard for shard in text_shards if not _is_whole(out, shard)]
    # Disk, codec and speed are tried in this order, from the cheapest to the dearest, before the long work begins.
    _announce(out, parts, latent_shards, missing, captions)
    _check_codec(parts, segments)
    # Only now something is written: a refusal leaves no folder behind.
    make_folder(out / "shards")
    write_bytes(out / "building.json", json.dumps(settings).encode())
    _announce_rate(parts, missing, missing_text, batch_size)
    _encode_shards(out, parts, missing, batch_size, decoders)
    encode_captions(out, parts, missing_text)
    finish_cache(out, parts, settings, index, latent_shards, text_shards, skipped)
    return LatentCache.open(out)


def _split(clips: Sequence[Clip], inspections: Sequence[Inspection], is_part: bool) -> list[tuple[Clip, Inspection]]:
    """The clips that can be used, each with its split; notes on them are printed."""
    usable = [(clip, inspection) for clip, inspection in zip(clips, inspections) if inspection.problem is None]
    split = split_clips(
        [clip for clip, _ in usable],
        [inspection.sha256 for _, inspection in usable],
        lambda index: usable[index][1].seconds,
        is_part,
    )
    missing = None if is_part else missing_split_note(split.clips)
    for note in [*split.notes, *([missing] if missing else [])]:
        print(f"note: {note}", file=sys.stderr)
    # A clip may have been split into others: `origins` leads back to the one that was inspected.
    return [(clip, usable[origin][1]) for clip, origin in zip(split.clips, split.origins)]


def _announce_changes(out: Path, found: list[dict], index: list[dict]) -> None:
    """Say how an earlier cache differs, or refuse to replace one of another set."""
    try:
        changed = changes(found, index)
    except UserError as error:
        raise UserError(f"{out}: {error}; hint: --out another folder, or delete this one") from error
    print(f"{out}: continuing from the cache that is there: {changed}", file=sys.stderr)


def _announce(out: Path, parts: Parts, shards: list[Shard], missing: list[Shard], captions: list[str]) -> None:
    """Say how large the cache will be and what the text encoder loses of captions, and refuse now what would fill the
    disk later."""
    width = torch.finfo(DTYPES[parts.dtype]).bits // 8
    rows, rows_missing = (sum(len(s.items) for s in group) for group in (shards, missing))
    per_row = parts.codec.channels * parts.frames * width
    if parts.teacher is not None:
        per_row += ceil(parts.seconds * parts.teacher.frame_rate_hz) * parts.teacher.dim * width
    # A rough count, 1.4 tokens a word and two marks: nothing is tokenised for an estimate.
    tokens = min(parts.conditioner.max_tokens, 2 + round(1.4 * max(len(c.split()) for c in captions)))
    per_caption = tokens * parts.conditioner.dim * width
    expected = rows * per_row + len(captions) * per_caption
    done = f", {rows - rows_missing:,} of them done" if rows_missing < rows else ""
    print(
        f"{out}: {rows:,} rows{done}, {len(captions):,} captions, about {expected / 1e6:,.0f} MB "
        f"({per_row * 3600 / parts.seconds / 1e6:,.1f} MB per hour of sound)",
        file=sys.stderr,
    )
    counts = count_tokens(parts.conditioner, captions)
    for note in counts.notes() if counts else []:
        print(f"note: {note}", file=sys.stderr)
    place = out.resolve()
    free = shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free
    if rows_missing * per_row > free:
        raise UserError(
            f"{out}: needs about {rows_missing * per_row / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free; "
            "hint: free space, or --out on another disk"
        )


def _announce_rate(parts: Parts, missing: list[Shard], missing_text: list[Shard], batch_size: int) -> None:
    """Encode one batch for nothing, and say how fast that went and how much memory the whole will take; what cannot be
    encoded is refused here already.

    No codec or teacher says what it needs, so a batch shows it. What comes on top is counted: a shard as its rows,
    joined, and as the bytes of its file.
    """
    peak = 0.0
    # Rows, their concatenation and the file's bytes, all in memory for a moment.
    joined = 3
    # A batch is encoded for its time and size, and again when its turn comes.
    if missing:
        segments = missing[0].items[:batch_size]

        def encode(some: Sequence[Segment]) -> tuple[dict[str, Tensor], int]:
            waves = [read_here(segment, parts) for segment in some]
            return encode_rows(parts, some, waves), sum(wave.nbytes for row in waves for wave in row)

        encode(segments[:1])  # warms up
        start = time.monotonic()
        rows, read = encode(segments)
        # 1e-6: a clock may not move during a tiny batch.
        rate = len(segments) / max(time.monotonic() - start, 1e-6)
        todo = sum(len(shard.items) for shard in missing)
        print(f"encoding about {rate:,.1f} clips/s: {todo:,} clips in about {todo / rate:,.0f} s", file=sys.stderr)
        per_row = sum(x.nbytes for x in rows.values()) / len(segments)
        # Later on this batch's sounds lie there twice, as read and as placed, and the next one's are read ahead.
        peak = peak_bytes() + 2 * read + joined * per_row * max(len(shard.items) for shard in missing)
    # The longest captions take most.
    if missing_text:
        items = max((shard.items for shard in missing_text), key=len)
        longest = caption_batches(items, CAPTIONS_AT_ONCE)[-1]
        tokens, _ = embed(parts, [items[i] for i in longest])
        peak = max(peak, peak_bytes(), resident_bytes() + joined * len(items) * tokens[0].nbytes)
    if peak:
        print(f"peak memory about {format_bytes(round(peak))}", file=sys.stderr)


def _check_codec(parts: Parts, segments: Sequence[Segment]) -> None:
    """Refuse a codec that does not give back most of a few clips."""
    # Spread over the set: neighbours may all be silence or all of one kind.
    some = segments[:: max(1, len(segments) // ROUND_TRIPS)][:ROUND_TRIPS]
    alone = [replace(segment, context_sec=None) for segment in some]
    waves = [read_here(segment, replace(parts, teacher=None))[0] for segment in alone]
    stacked = torch.from_numpy(np.stack(waves)).to(parts.device)
    found = check_round_trip(parts.codec, stacked, getattr(parts.codec, "source", parts.codec.name))
    print(
        f"codec round trip on {len(some)} clips: levels {found.level_error_db:.2f} dB off in the median, "
        f"{found.meaning}; spectral error {found.spectral_error:.3f} (0 is perfect)",
        file=sys.stderr,
    )


def _is_whole(out: Path, shard: Shard) -> bool:
    """Whether a shard of an earlier build can be kept."""
    try:
        with safe_open(out / "shards" / shard.file, framework="pt") as file:
            name = "latents" if shard.file.startswith("latents") else "tokens"
            # Names are hashes of the contents, so that the number of rows is left to check.
            return file.get_slice(name).get_shape()[0] == len(shard.items)
    except (OSError, SafetensorError):
        return False


def _encode_shards(out: Path, parts: Parts, shards: list[Shard], batch_size: int, decoders: FileWorkers) -> None:
    batches = _batches(parts, shards, batch_size, decoders)
    progress = track(batches, sum(len(s.items) for s in shards), "encoding", "clips", size=lambda b: len(b[1]))
    rows: list[dict[str, Tensor]] = []
    for shard, segments, waves in progress:
        rows.append(encode_rows(parts, segments, waves))
        # A shard is written as soon as its rows are complete, so that a killed build loses one shard at most.
        if sum(len(part["latents"]) for part in rows) == len(shard.items):
            tensors = {name: torch.cat([part[name] for part in rows]) for name in rows[0]}
            write_bytes(out / "shards" / shard.file, save(tensors))
            rows.clear()


def _batches(parts: Parts, shards: list[Shard], batch_size: int, decoders: FileWorkers) -> Iterator[tuple]:
    """Decoded batches, one read ahead; a batch never spans shards, so that a resumed build meets the same batches."""
    plan = [
        (shard, shard.items[i : i + batch_size]) for shard in shards for i in range(0, len(shard.items), batch_size)
    ]

    def ask(segments: Sequence[Segment]) -> list[Task]:
        return [decoders.ask(s.clip.path, read_stretch, *stretch_of(s, parts)) for s in segments]

    # The next batch is read while this one is encoded.
    ahead = ask(plan[0][1]) if plan else []
    for number, (shard, segments) in enumerate(plan):
        tasks, ahead = ahead, ask(plan[number + 1][1]) if number + 1 < len(plan) else []
        yield shard, segments, [placed(s, parts, partial(decoders.result, t)) for s, t in zip(segments, tasks)]
