"""A cache that several machines make: each encodes a part of the clips, and whoever ends last joins the parts.

    OUT/parts/set.json      how many parts of which clips, under which settings
    OUT/parts/003-of-016    a cache of the clips of part 3, as data/encoding.py makes any other

The parts stay whole until the joined cache is; after that they go. A joined cache has the rows, the order, the captions
and the statistics of one that was made at once, in other shards where parts meet.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import save

from segue.data.cache import DTYPES, LatentCache
from segue.data.cache_checks import difference, read_json
from segue.data.cache_completion import finish_cache
from segue.data.cache_layout import CAPTIONS_PER_SHARD, Parts, Shard, shards_of
from segue.data.clip import Clip
from segue.files import make_folder, write_bytes, write_text
from segue.types import UserError

FOLDER = "parts"
MOST_PARTS = 10_000


@dataclass(frozen=True)
class Part:
    """One of the parts of a cache: `number`, from 1, of `count`."""

    number: int
    count: int

    @classmethod
    def of(cls, text: str) -> Part:
        """From what stands behind --part.

        Raises:
            UserError: it is no part.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        number, count = (int(n) for n in found.groups()) if found else (0, 0)
        if not 1 <= number <= count <= MOST_PARTS:
            raise UserError(f"--part {text}: hint: give NUMBER/COUNT, from 1/16 to 16/16 for sixteen parts")
        return cls(number, count)

    def folder(self, out: Path) -> Path:
        """Its own cache."""
        return out / FOLDER / f"{self.number:03d}-of-{self.count:03d}"


def begin_part(out: Path, part: Part, clips: Sequence[Clip], settings: dict) -> list[Clip]:
    """The clips of a part, one stretch of the list; all clips of a file are of one part.

    Raises:
        UserError: parts of other clips, of another number, or of other settings are there, or a part without clips.
    """
    digest = sha256()
    for clip in clips:
        described = [clip.id, clip.start_sec, clip.length_sec, clip.split, list(clip.captions)]
        digest.update(json.dumps(described, sort_keys=True).encode() + b"\n")
    about = {"parts": part.count, "clips": digest.hexdigest()[:32], **settings}
    file = out / FOLDER / "set.json"
    if not file.exists():
        make_folder(file.parent)
        write_text(file, json.dumps(about, indent=1))
    # Read back also by the one that wrote it: two may begin at once, and the later one's words stand.
    found = read_json(file)
    if found != about:
        raise UserError(
            f"{out}: parts of another cache are there ({difference(found, about)}); hint: the same list and options "
            "for every part, or --out another folder"
        )
    paths = list(dict.fromkeys(clip.path for clip in clips))
    mine = set(paths[(part.number - 1) * len(paths) // part.count : part.number * len(paths) // part.count])
    if not mine:
        raise UserError(f"--part {part.number}/{part.count}: {len(paths)} files have no such part; hint: fewer parts")
    return [clip for clip in clips if clip.path in mine]


def missing_parts(out: Path) -> str:
    """In words, which parts of a cache that is made in parts are not there; "" where it is not made so, or all are."""
    file = out / FOLDER / "set.json"
    if not file.exists() or (out / "meta.json").exists():
        return ""
    count = read_json(file)["parts"]
    folders = [Part(number, count).folder(out) for number in range(1, count + 1)]
    left = [number for number, folder in enumerate(folders, 1) if not (folder / "meta.json").exists()]
    named = ", ".join(map(str, left[:10])) + (f" and {len(left) - 10} more" if len(left) > 10 else "")
    if not left:
        return ""
    return f"parts {named} of {count} are missing" if len(left) > 1 else f"part {named} of {count} is missing"


def refuse_parts(out: Path) -> None:
    """
    Raises:
        UserError: the cache in this folder is made in parts, and not joined yet.
    """
    if (out / FOLDER / "set.json").exists() and not (out / "meta.json").exists():
        count = read_json(out / FOLDER / "set.json")["parts"]
        left = missing_parts(out) or "its parts are not joined"
        raise UserError(f"{out}: {left}; hint: run segue encode with --part NUMBER/{count} and its other options again")


def join_parts(out: Path, part: Part, made_by: Parts, settings: dict) -> LatentCache | None:
    """The whole cache, where all parts are there; None where one is missing.

    Two machines that end together may both join: they write the same files, and either may be the one that clears up.
    """
    if missing_parts(out):
        return None
    try:
        if not (out / "meta.json").exists():
            _join(out, [Part(number, part.count).folder(out) for number in range(1, part.count + 1)], made_by, settings)
    except (OSError, UserError):
        if not (out / "meta.json").exists():
            raise
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    return LatentCache.open(out)


def _join(out: Path, folders: Sequence[Path], made_by: Parts, settings: dict) -> None:
    caches = [LatentCache.open(folder) for folder in folders]
    make_folder(out / "shards")

    # Sound: the shards as they are, under a second name while the parts are still needed.
    shards: dict[str, int] = {}
    for cache, folder in zip(caches, folders):
        for shard in cache.meta["shards"]:
            shards[shard["file"]] = shard["rows"]
            _link(folder / "shards" / shard["file"], out / "shards" / shard["file"])
    latent_shards = [Shard(file, range(rows)) for file, rows in shards.items()]

    # Captions: each once, in the order of a cache that is made at once, with the embeddings that a part has.
    place: dict[str, tuple[LatentCache, int, int]] = {}
    for cache in caches:
        for row in range(len(cache)):
            for choice, caption in enumerate(cache.row(row)["captions"]):
                place.setdefault(caption, (cache, row, choice))
    text_shards = shards_of(list(place), CAPTIONS_PER_SHARD, [settings["text"], made_by.dtype], lambda c: c, "text")
    for shard in text_shards:
        write_bytes(out / "shards" / shard.file, save(_texts([place[c] for c in shard.items], made_by)))

    number = {caption: n for n, caption in enumerate(place)}
    index = [
        row | {"caption_rows": [number[caption] for caption in row["captions"]]}
        for cache in caches
        for row in (cache.row(i) for i in range(len(cache)))
    ]
    skipped = [entry for cache in caches for entry in cache.meta["skipped"]]
    finish_cache(out, made_by, settings, index, latent_shards, text_shards, skipped)


def _texts(places: Sequence[tuple[LatentCache, int, int]], made_by: Parts) -> dict[str, torch.Tensor]:
    """A shard of captions, as wide as the longest of them."""
    found = [cache.text([row], [choice]) for cache, row, choice in places]
    longest = max(int(mask.sum()) for _, mask in found)
    tokens = torch.zeros(len(found), longest, made_by.conditioner.dim, dtype=DTYPES[made_by.dtype])
    masks = torch.zeros(len(found), longest, dtype=torch.bool)
    for i, (own, mask) in enumerate(found):
        kept = min(longest, mask.shape[1])
        tokens[i, :kept] = own[0, :kept].to(tokens)
        masks[i, :kept] = mask[0, :kept]
    return {"tokens": tokens, "mask": masks}


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:  # file systems without second names
        write_bytes(target, source.read_bytes())
