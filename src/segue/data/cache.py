"""The latent cache, read: latents, text embeddings and teacher features of a data set, computed once.

A folder of safetensors shards with index.jsonl (one row a segment) and meta.json. `data/encoding.py` makes it.
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from segue.data.content import rows_digest
from segue.data.tars import is_address
from segue.types import UserError, first_line

SCHEMA_VERSION = 1
OPEN_SHARDS = 128  # files; a process may open 256 on some systems
_DTYPES: dict[str, np.dtype] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "BOOL": np.dtype("?")}
_SHARD_NAME = re.compile(r"(latents|text)-[0-9a-f]{32}\.safetensors")


@dataclass(frozen=True)
class Batch:
    """Rows of a cache, as a task takes them.

    Attributes:
        latents: [B, C, L] float32, not standardised.
        mask: [B, L] bool, True where a frame is real.
        tokens: [B, K, E] float32 text token embeddings.
        tokens_mask: [B, K] bool, True where a token is real.
        teacher: [B, S, F] features and [B, S] bool mask, where they are asked for.
        indices: rows of the cache.
    """

    latents: Tensor
    mask: Tensor
    tokens: Tensor
    tokens_mask: Tensor
    teacher: tuple[Tensor, Tensor] | None
    indices: list[int]


class LatentCache:
    """A finished cache. Rows are read in place, so that a process's memory does not grow with the cache.

    Attributes:
        path: its folder; the address, where it is streamed from one.
        meta: meta.json: fingerprints of codec, text encoder and teacher, seconds, dtype, counts, skipped files.
        channels, frames: C and L of every row; shorter rows are zero beyond their mask.
        text_dim, text_tokens: E and K of every caption.
        windows: what decides the order of training beside the seed; "" where nothing does.
    """

    windows = ""

    def __init__(self, path: Path, meta: dict, index: list[dict]) -> None:
        self.path = path
        self.meta = meta
        self._index = index
        self._shards_folder = Path(path) / "shards"  # of an address, never looked at
        self.channels = meta["channels"]
        self.frames = meta["frames"]
        self.text_dim = meta["text_dim"]
        self.text_tokens = meta["text_tokens"]
        self._opened: dict[str, _ShardFile] = {}
        self._text_ends = list(accumulate(shard["rows"] for shard in meta["text_shards"]))

    @classmethod
    def open(
        cls, path: Path | str, codec_fingerprint: dict | None = None, text_fingerprint: dict | None = None
    ) -> LatentCache:
        """Open a finished cache that is not packed; `open_cache` opens either.

        Args:
            codec_fingerprint, text_fingerprint: where given, what the cache must have been made with.

        Raises:
            UserError: no cache, an unfinished or damaged one, another version, or other fingerprints.
        """
        if is_packed(path):
            raise UserError(f"{path}: a packed cache; hint: segue.open_cache opens these, too")
        path = Path(path)
        if not (path / "meta.json").exists():
            if (path / "building.json").exists():
                raise UserError(f"{path}: an unfinished cache; hint: run its segue encode again, which continues it")
            raise UserError(f"{path}: no latent cache; hint: make one with segue encode SOURCE --out {path}")
        # The two JSON files first: they are checked before anything follows what they say.
        meta = read_json(path / "meta.json")
        if not isinstance(meta, dict):
            raise UserError(_malformed(path, "no JSON object"))
        if meta.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{path}: cache format {meta.get('schema_version')}, not {SCHEMA_VERSION} as this version reads; "
                "hint: encode again into another folder"
            )
        refuse_other_parts(path, meta, codec_fingerprint, text_fingerprint)
        index = read_index(path)
        _check_form(path, meta, index)
        # Then the shards, by their sizes alone: reading all of them would take minutes.
        for shard in (*meta["shards"], *meta["text_shards"]):
            file = path / "shards" / shard["file"]
            if not file.exists() or file.stat().st_size != shard["bytes"]:
                raise UserError(
                    f"{file}: missing or damaged; hint: delete {path / 'meta.json'} and run segue encode again"
                )
        return cls(path, meta, index)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def contents(self) -> str:
        """A hash of what its rows are (ids, contents, stretches, splits, captions, in order), whatever its shards."""
        return self.meta.get("contents") or rows_digest(map(self.row, range(len(self))))

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the train split's valid frames, [C, 1] float32 each; where the codec asks for
        global statistics, C times the same number."""
        statistics = self.meta["statistics"]
        mean = torch.tensor(statistics["mean"], dtype=torch.float32).unsqueeze(1)
        return mean, torch.tensor(statistics["std"], dtype=torch.float32).unsqueeze(1)

    def rows(self, split: str) -> list[int]:
        """Row numbers of a split ("train", "valid", "test"), in order."""
        return [i for i, row in enumerate(self._index) if row["split"] == split]

    def shuffled(self, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """These rows in the order of one epoch."""
        return rows[generator.permutation(len(rows))]

    def expect(self, indices: Sequence[int], teacher: bool) -> None:
        """Rows that will be asked for next: read ahead where they are streamed, with teacher features if so."""

    def row(self, i: int) -> dict:
        """Index entry: id, sha256, shard, row, frames, split, captions, caption_rows, start_sec, length_sec, fields."""
        return self._index[i]

    def batch(self, indices: Sequence[int], choice: Sequence[int] | None = None, with_teacher: bool = False) -> Batch:
        """These rows; see `text` for `choice`."""
        # Teacher features are read only where they are asked for: they are most of a batch's bytes.
        teacher = self.teacher(indices) if with_teacher else None
        return Batch(*self.latents(indices), *self.text(indices, choice), teacher, list(indices))

    def latents(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """[B, C, L] float32 latents, not standardised, and [B, L] bool, True where a frame is real."""
        latents = self._stacked("latents", indices)
        frames = torch.tensor([self._index[i]["frames"] for i in indices])
        return latents, torch.arange(self.frames) < frames.unsqueeze(1)

    def text(self, indices: Sequence[int], choice: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """[B, K, E] float32 token embeddings and [B, K] bool mask; K is the same for every batch.

        Args:
            choice: which of each row's captions, counted modulo their number; the first by default.
        """
        tokens = torch.zeros(len(indices), self.text_tokens, self.text_dim)
        mask = torch.zeros(len(indices), self.text_tokens, dtype=torch.bool)
        for b, (i, which) in enumerate(zip(indices, choice or [0] * len(indices), strict=True)):
            rows = self._index[i]["caption_rows"]
            # Modulo, so that one choice serves rows with different numbers of captions.
            number = rows[which % len(rows)]
            shard = bisect_right(self._text_ends, number)
            row = number - (self._text_ends[shard - 1] if shard else 0)
            text = self._shard(self.meta["text_shards"][shard]["file"])
            # Shards are padded to their own longest caption, batches to the cache's: shapes then never change.
            length = text.shape("tokens")[1]
            tokens[b, :length] = torch.from_numpy(text.row("tokens", row))
            mask[b, :length] = torch.from_numpy(text.row("mask", row))
        return tokens, mask

    def teacher(self, indices: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """[B, S, F] float32 teacher features and [B, S] bool mask, or None where the cache has none."""
        if self.meta["teacher"] is None:
            return None
        features = self._stacked("teacher", indices)
        rate_hz = self.meta["teacher_frame_rate_hz"]
        frames = torch.tensor([ceil(self._index[i]["length_sec"] * rate_hz) for i in indices])
        return features, torch.arange(features.shape[1]) < frames.unsqueeze(1)

    def _stacked(self, name: str, indices: Sequence[int]) -> Tensor:
        places = ((self._index[i]["shard"], self._index[i]["row"]) for i in indices)
        return torch.from_numpy(np.stack([self._shard(shard).row(name, row) for shard, row in places])).float()

    def _shard(self, name: str) -> _ShardFile:
        if name not in self._opened:
            if len(self._opened) >= OPEN_SHARDS:
                self._opened.pop(next(iter(self._opened)))  # the file closes with its last name
            self._opened[name] = self._fitting(name, _ShardFile(self._shards_folder / name))
        return self._opened[name]

    def _fitting(self, name: str, shard: _ShardFile) -> _ShardFile:
        """A shard whose tensors have the shapes that meta.json gives them."""
        rows = {s["file"]: s["rows"] for s in (*self.meta["shards"], *self.meta["text_shards"])}[name]
        if name.startswith("text-"):
            tokens = shard.shape("tokens")
            mask = shard.shape("mask")
            fits = len(tokens) == 3 and tokens[::2] == (rows, self.text_dim) and tokens[:2] == mask
            fits = fits and tokens[1] <= self.text_tokens
        else:
            fits = shard.shape("latents") == (rows, self.channels, self.frames)
            if self.meta["teacher"] is not None:
                fits = fits and shard.shape("teacher")[::2] == (rows, self.meta["teacher_dim"])
        if not fits:
            raise UserError(
                f"{self._shards_folder / name}: holds other tensors than meta.json says; "
                f"hint: delete it and {self._shards_folder.parent / 'meta.json'}, and run segue encode again"
            )
        return shard


class _ShardFile:
    """One safetensors file, of which single rows are read."""

    def __init__(self, path: Path) -> None:
        # The head is then read again by hand, for the offsets: rows are read in place, without mapping the whole file.
        read_tensors(path, names=())  # safetensors' own checks of the head: sizes, offsets, overlaps
        self._path = path
        self._file = path.open("rb", buffering=0)
        size = int.from_bytes(self._file.read(8), "little")
        head = json.loads(self._file.read(size))
        self._entries = {k: v for k, v in head.items() if k != "__metadata__" and v["dtype"] in _DTYPES}
        self._first = 8 + size

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor; () where there is none of that name, or one of another kind than segue encode writes."""
        return tuple(self._entries[name]["shape"]) if name in self._entries else ()

    def row(self, name: str, row: int) -> np.ndarray:
        """One row, a copy of the caller's own.

        Raises:
            UserError: the file ends before it.
        """
        entry = self._entries[name]
        dtype = _DTYPES[entry["dtype"]]
        shape = entry["shape"][1:]
        size = dtype.itemsize * int(np.prod(shape))
        # A bytearray, so that torch gets memory that it may write into.
        data = bytearray(_read_at(self._file, size, self._first + entry["data_offsets"][0] + row * size))
        if len(data) < size:
            raise UserError(f"{self._path}: ends too early; hint: delete it and meta.json, run segue encode again")
        return np.frombuffer(data, dtype).reshape(shape)


def is_packed(path: Path | str) -> bool:
    """Whether these are tar shards of `segue data pack`: an address always is one of them."""
    return is_address(path) or (Path(path) / "shards.json").exists()


def _read_at(file, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):  # leaves the position alone, which forked processes share
        return os.pread(file.fileno(), size, offset)
    file.seek(offset)
    return file.read(size)


def _check_form(path: Path, meta: dict, index: list[dict]) -> None:
    """Refuse meta.json and index.jsonl that no segue encode writes, before anything follows what they say.

    Raises:
        UserError: parts missing, of another kind, or out of range; a shard outside the cache's own folder.
    """
    try:
        check_meta(meta)
        shards = {s["file"]: s["rows"] for s in meta["shards"]}
        text_rows = sum(s["rows"] for s in meta["text_shards"])
        files = [s["file"] for s in (*meta["shards"], *meta["text_shards"])]
        sane = (
            # Names are followed to files: a name with a slash could lead out of the folder.
            all(_SHARD_NAME.fullmatch(name) for name in files)
            and all(type(s["rows"]) is int and s["rows"] > 0 for s in meta["text_shards"])
            and len(index) > 0
        )
        for row in index:
            check_row(row, meta)
            # `type(...) is int`, not isinstance: JSON's true and false are ints to Python.
            sane = (
                sane
                and all(type(n) is int for n in (row["row"], *row["caption_rows"]))
                and 0 <= row["row"] < shards[row["shard"]]
                and len(row["caption_rows"]) == len(row["captions"])
                and all(0 <= c < text_rows for c in row["caption_rows"])
            )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        # Every lookup above may fail in its own way on a made-up file; the reader gets one line.
        raise UserError(_malformed(path, f"{type(error).__name__}: {first_line(error)}")) from error
    if not sane:
        raise UserError(_malformed(path, "entries out of range"))


def refuse_other_parts(path: Path | str, meta: dict, codec: dict | None, text: dict | None) -> None:
    """
    Raises:
        UserError: the cache was not made with this codec or text encoder, where one is given.
    """
    for part, wanted in (("codec", codec), ("text", text)):
        # Through JSON and back: tuples of a fingerprint come back from a file as lists.
        if wanted is not None and json.loads(json.dumps(wanted)) != meta[part]:
            found = difference({part: meta[part]}, {part: json.loads(json.dumps(wanted))})
            raise UserError(f"{path}: made with another {part} ({found}); hint: encode again into another folder")


def check_meta(meta: dict) -> None:
    """What meta.json says of rows, whatever form they are in.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, RuntimeError: parts missing, of another kind, or out of range.
    """
    # Looked up alone: a missing part raises here instead of hours later.
    for part in ("codec", "text", "teacher", "teacher_source", "teacher_frame_rate_hz", "counts", "dtype"):
        meta[part]
    counts = [meta[n] for n in ("channels", "frames", "text_dim", "text_tokens", "sample_rate_hz", "hop_samples")]
    mean = torch.tensor(meta["statistics"]["mean"])
    std = torch.tensor(meta["statistics"]["std"])
    sane = (
        # Bounded counts: buffers are sized by them.
        all(type(n) is int and 0 < n < 1 << 31 for n in counts)
        and mean.shape == std.shape == (meta["channels"],)
        and bool(mean.isfinite().all() and std.isfinite().all() and (std > 0).all())
        and type(meta["seconds"]) in (int, float)
        and 0 < meta["seconds"] < float("inf")
        and isinstance(meta["codec_source"], str)
        and meta.get("audio_channels", 1) in (1, 2)
        and (meta["teacher"] is None or (meta["teacher_dim"] > 0 and 0 < meta["teacher_frame_rate_hz"] < 1e6))
    )
    if not sane:
        raise ValueError("entries out of range")


def check_row(row: dict, meta: dict) -> None:
    """What a row says of itself.

    Raises:
        KeyError, TypeError, ValueError: parts missing, of another kind, or out of range.
    """
    sane = (
        type(row["frames"]) is int
        and 0 < row["frames"] <= meta["frames"]
        and isinstance(row["split"], str)
        and isinstance(row["fields"], dict)
        # Starts and lengths have been through rounding to samples.
        and 0 < row["length_sec"] <= meta["seconds"] + 1e-6
        and len(row["captions"]) > 0
    )
    if not sane:
        raise ValueError("entries out of range")


def _malformed(path: Path, why: str) -> str:
    return f"{path}: meta.json or index.jsonl is not as segue encode writes it ({why}); hint: encode again"


def difference(found: dict, wanted: dict) -> str:
    """Names and values of what differs, one level into fingerprints."""
    differing = []
    for name, value in wanted.items():
        old = found.get(name)
        if old == value:
            continue
        if isinstance(old, dict) and isinstance(value, dict):
            keys = [k for k in {**old, **value} if old.get(k) != value.get(k)]
            differing += [f"{name}.{k} {old.get(k)} there, {value.get(k)} here" for k in keys]
        else:
            differing.append(f"{name} {_short(old)} there, {_short(value)} here")
    return "; ".join(differing)


def _short(value) -> str:
    return value.get("name", "another") if isinstance(value, dict) else str(value).replace("None", "none")


def read_tensors(path: Path, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a file, mapped; all of them by default.

    Raises:
        UserError: missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); hint: delete it and meta.json, run segue encode again"
        ) from error


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); hint: delete the cache and run segue encode again"
        ) from error


def read_index(path: Path) -> list[dict]:
    try:
        with (path / "index.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path / 'index.jsonl'}: cannot be read; hint: delete {path / 'meta.json'} and run segue encode again"
        ) from error
