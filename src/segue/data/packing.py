"""A finished latent cache into WebDataset tar shards, which training streams (data/streaming.py).

A sample is KEY.json (id, split, captions, lengths), KEY.latents.safetensors (latents, and the tokens of each caption)
and KEY.teacher.safetensors where the cache has a teacher. shards.json holds the cache's meta.json and where in its
shard each sample begins; it is written last.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
from safetensors.torch import save

from segue.data.cache import LatentCache
from segue.data.streaming import INDEX, SCHEMA_VERSION, Shard, StreamedCache, key_of
from segue.data.tars import tar_members
from segue.files import make_folder, replacing, write_text
from segue.progress import track
from segue.types import UserError, import_extra

BUILDING = "building.json"
LATENTS, TEACHER = "latents.safetensors", "teacher.safetensors"


def pack_cache(cache: LatentCache, out: Path | str, *, rows_per_shard: int = 512, window: int = 8) -> StreamedCache:
    """Write a cache's rows into tars in `out`, or continue where a killed packing stopped.

    Training rows are packed in a random order, so that a few shards are a sample of the whole set; others in their own,
    so that probe and validation meet the clips that they would meet in the cache.

    Args:
        rows_per_shard: samples of a tar.
        window: shards that training shuffles together.

    Raises:
        UserError: `out` holds something else, or there is no room.
    """
    out = Path(out)
    for name, value in (("--rows-per-shard", rows_per_shard), ("--window", window)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    if isinstance(cache, StreamedCache):
        raise UserError(f"{cache.path}: packed already; hint: name the cache that it was packed from")
    # What the shards depend on: another packing in this folder is refused, the same one is continued.
    source = {"rows_per_shard": rows_per_shard, "schema_version": SCHEMA_VERSION, "cache": _digest(cache)}
    _refuse_others(out, source)
    _check_room(cache, out)
    make_folder(out)
    write_text(out / BUILDING, json.dumps(source))
    plan = list(_plan(cache, rows_per_shard))
    shards = []
    first = 0
    # Shard by shard; those that are whole already are kept.
    for name, split, rows in track(plan, len(plan), "packing", "shards"):
        # A shard counts as whole by its members' names and sizes; it is renamed into place only when written.
        members = _whole_members(out / name, cache, first, len(rows))
        if members is None:
            _write(out / name, cache, rows, first)
            # Read back even where it was just written: offsets come from the file itself.
            members = _whole_members(out / name, cache, first, len(rows)) or []
        size = (out / name).stat().st_size
        shards.append(Shard(name, split, size, tuple(offset for pair in members for offset in pair)))
        first += len(rows)
    # The index comes last: with it the packing is finished.
    meta = {k: v for k, v in cache.meta.items() if k not in ("shards", "text_shards")}
    index = {
        "schema_version": SCHEMA_VERSION,
        "window": window,
        "rows_per_shard": rows_per_shard,
        "meta": meta,
        "shards": [vars(shard) for shard in shards],
    }
    write_text(out / INDEX, json.dumps(index))
    (out / BUILDING).unlink()
    return StreamedCache.open(out)


def _plan(cache: LatentCache, rows_per_shard: int) -> Iterator[tuple[str, str, list[int]]]:
    """File, split and cache rows of each shard."""
    splits = {row["split"] for row in map(cache.row, range(len(cache)))}
    for split in sorted(splits, key=lambda s: (s != "train", s)):
        rows = np.asarray(cache.rows(split))
        if split == "train":
            # A fixed seed: packing twice gives the same tars.
            rows = rows[np.random.default_rng(0).permutation(len(rows))]
        for number, start in enumerate(range(0, len(rows), rows_per_shard)):
            yield f"{split}-{number:06d}.tar", split, rows[start : start + rows_per_shard].tolist()


def _write(path: Path, cache: LatentCache, rows: list[int], first: int) -> None:
    writer = import_extra("webdataset", "stream").TarWriter
    # mtime 0 for the same reason: a tar keeps its members' times.
    with replacing(path) as temporary, temporary.open("wb") as file, writer(file, encoder=False, mtime=0) as tar:
        for number, row in enumerate(rows, first):
            tar.write({"__key__": key_of(number), **_sample(cache, row)})


def _sample(cache: LatentCache, i: int) -> dict[str, bytes]:
    """Member name -> bytes; as stored in the cache, captions cut to their longest."""
    row = {k: v for k, v in cache.row(i).items() if k not in ("shard", "row", "caption_rows")}
    captions = len(row["captions"])
    stored = cache.dtype
    tokens, mask = cache.text([i] * captions, list(range(captions)))
    # At least one token place, since an empty tensor has no shape to batch.
    longest = max(1, int(mask.any(0).sum()))
    tensors = {"latents": cache.latents([i])[0][0].to(stored).contiguous()}
    tensors |= {"tokens": tokens[:, :longest].to(stored).contiguous(), "mask": mask[:, :longest].contiguous()}
    parts = {"json": json.dumps(row, ensure_ascii=False).encode(), LATENTS: save(tensors)}
    features = cache.teacher([i])
    if features is not None:
        parts[TEACHER] = save({"teacher": features[0][0].to(stored).contiguous()})
    return parts


def _whole_members(path: Path, cache: LatentCache, first: int, rows: int) -> list[tuple[int, int]] | None:
    """Where each sample and its teacher features begin in a shard, and at last where the next would; None where it is
    not whole."""
    if not path.exists():
        return None
    names = ["json", LATENTS] + ([TEACHER] if cache.meta["teacher"] is not None else [])
    try:
        members = tar_members(str(path))
    except UserError:
        return None
    if [m.name for m in members] != [f"{key_of(n)}.{name}" for n in range(first, first + rows) for name in names]:
        return None
    # A tar head is one block of 512 bytes; members are filled up to whole blocks.
    starts = [m.offset - 512 for m in members]
    end = members[-1].offset + -(-members[-1].size // 512) * 512
    samples = [*starts[:: len(names)], end]
    teachers = starts[2::3] if len(names) == 3 else samples[1:]
    return [*zip(samples, teachers), (end, end)]


def _digest(cache: LatentCache) -> str:
    """A hash of all that the shards depend on: cache shards are named by their contents."""
    whole = sha256(json.dumps(cache.meta, sort_keys=True).encode())
    for i in range(len(cache)):
        whole.update(json.dumps(cache.row(i), sort_keys=True).encode())
    return whole.hexdigest()


def _refuse_others(out: Path, source: dict) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    building = out / BUILDING
    if (out / INDEX).exists() or not building.exists():
        what = "packed shards already" if (out / INDEX).exists() else "files that are no shards"
        raise UserError(f"{out}: holds {what}; hint: name a new or empty folder")
    if building.read_text(encoding="utf-8") != json.dumps(source):
        raise UserError(f"{out}: an unfinished packing of another cache, or with other settings; hint: another folder")


def _check_room(cache: LatentCache, out: Path) -> None:
    # 4096 bytes a sample: the heads and fillings of its members.
    expected = sum(shard["bytes"] for shard in cache.meta["shards"]) + 4096 * len(cache)
    texts = cache.meta["text_shards"]
    per_caption = sum(shard["bytes"] for shard in texts) / sum(shard["rows"] for shard in texts)
    expected += round(per_caption * sum(len(cache.row(i)["captions"]) for i in range(len(cache))))
    # The folder itself may not exist yet; its nearest parent is on the same disk.
    parent = next(p for p in (out, *out.resolve().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    print(f"{out}: {len(cache):,} rows, about {expected / 1e6:,.0f} MB", file=sys.stderr)
    if expected > free:
        raise UserError(
            f"{out}: needs about {expected / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free; hint: --out on another disk"
        )
