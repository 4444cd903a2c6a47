"""Latents from WebDataset tar shards (data/packing.py makes them): a latent cache whose rows are read in place.

Nothing is held but the rows at hand, from a disk or from an address that the user named. The order of training is a
permutation of the shards, and in each window of some shards one of their rows: reading stays near, and the order is a
function of seed and position alone, so a run continues exactly, on any number of ranks. webdataset's own readers cannot
promise that: they split shards among workers, shuffle through a buffer, and skip to a position by reading up to it.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from segue.data.cache import LatentCache, Rows, longest
from segue.data.cache_checks import check_meta, check_row, refuse_other_parts
from segue.data.tars import file_bytes, located, read_spans
from segue.types import UserError, first_line

INDEX = "shards.json"
SCHEMA_VERSION = 1
HELD_BYTES = 1 << 24  # of rows that are kept, beside the batch at hand
MOST_ROW_BYTES = 1 << 28  # a row of two hours of latents; an index with longer ones is false
_NAME = re.compile(r"[a-z]+-\d{6}\.tar")
# What false entries raise; RuntimeError holds RecursionError, and what torch says of shapes.
_WRONG = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError)
_PARTS = ("json", "latents.safetensors", "teacher.safetensors")


def key_of(row: int) -> str:
    """The key of a row's members."""
    return f"{row:09d}"


@dataclass(frozen=True)
class Shard:
    """One tar.

    Attributes:
        file: its name.
        split: of all its rows.
        bytes: its size.
        offsets: of each sample, and of its teacher features, and twice of what follows the last.
    """

    file: str
    split: str
    bytes: int
    offsets: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many samples it holds."""
        return len(self.offsets) // 2 - 1


@dataclass(frozen=True)
class _Row:
    entry: dict
    latents: Tensor
    tokens: Tensor
    mask: Tensor
    teacher: Tensor | None
    bytes: int


class StreamedCache(LatentCache):
    """A packed cache; see LatentCache for what its methods return.

    Attributes:
        path: its folder, or the address of it.
        windows: a text that names what decides its order beside the seed.
    """

    addressable = False

    def __init__(self, path: Path | str, meta: dict, shards: list[Shard], window: int, rows_per_shard: int) -> None:
        # Shards are listed here with their offsets, so that the base class need not open any.
        super().__init__(cast(Path, path), meta | {"shards": [], "text_shards": []}, [])
        self.windows = f"{window} shards of {rows_per_shard} rows"
        self._shards = shards
        self._window = window
        self._first = np.cumsum([0, *(shard.rows for shard in shards)])
        self._held: dict[int, _Row] = {}
        self._lock = RLock()  # the thread that reads ahead, and who asks for the names of clips

    @classmethod
    def open(
        cls, path: Path | str, codec_fingerprint: dict | None = None, text_fingerprint: dict | None = None
    ) -> StreamedCache:
        """Read shards.json of a folder or an address.

        Raises:
            UserError: there is none, it is of another version, it is not as `segue data pack` writes it, a shard is
                missing or of another size than it says, or it was made with another codec or text encoder.
        """
        path = located(path)
        try:
            # The index is anybody's JSON; it passes `_check_shards` before an offset of it is followed.
            index = json.loads(file_bytes(_inside(path, INDEX)))
            if index.get("schema_version") != SCHEMA_VERSION:
                raise UserError(
                    f"{path}: shards of format {index.get('schema_version')}, not {SCHEMA_VERSION} as this version "
                    "reads; hint: segue data pack again"
                )
            shards = [Shard(s["file"], s["split"], s["bytes"], tuple(s["offsets"])) for s in index["shards"]]
            check_meta(index["meta"])
            window, rows_per_shard = index["window"], index["rows_per_shard"]
            _check_shards(shards, window, rows_per_shard)
        except _WRONG as error:
            raise UserError(
                f"{path}: {INDEX} is not as segue data pack writes it ({type(error).__name__}: {first_line(error)}); "
                "hint: pack again"
            ) from error
        refuse_other_parts(path, index["meta"], codec_fingerprint, text_fingerprint)
        # Sizes can be compared on a disk only.
        if isinstance(path, Path):
            for shard in shards:
                file = path / shard.file
                if not file.is_file() or file.stat().st_size != shard.bytes:
                    raise UserError(f"{file}: missing, cut short or replaced; hint: copy it again, or segue data pack")
        return cls(path, index["meta"], shards, window, rows_per_shard)

    @property
    def contents(self) -> str:
        """As of a cache; "" of shards that were packed before there was any: their rows are too far away to ask."""
        return self.meta.get("contents", "")

    def __len__(self) -> int:
        return int(self._first[-1])

    def rows(self, split: str) -> list[int]:
        firsts = zip(self._first.tolist(), self._shards)
        return [i for first, shard in firsts if shard.split == split for i in range(first, first + shard.rows)]

    def row(self, i: int) -> dict:
        return self._rows([i])[0].entry

    def conditions_of(self, rows: np.ndarray) -> list[dict] | None:
        if not self.meta.get("conditions"):
            return None
        return [row.entry.get("conditions", {}) for row in self._rows(rows.tolist())]

    def frames_of(self, rows: np.ndarray) -> np.ndarray:
        return np.array([row.entry["frames"] for row in self._rows(rows.tolist())])

    def teacher_frames_of(self, rows: np.ndarray) -> np.ndarray:
        length_sec = np.array([row.entry["length_sec"] for row in self._rows(rows.tolist())])
        return np.ceil(length_sec * self.meta["teacher_frame_rate_hz"]).astype(np.int64)

    def stored_latents(self, rows: np.ndarray, pin: bool = False) -> Tensor:
        # Not by torch, which would start threads of its own for the thread that reads ahead.
        return torch.from_numpy(np.stack([row.latents.numpy() for row in self._rows(rows.tolist())]))

    def stored_teacher(self, rows: np.ndarray, pin: bool = False) -> Tensor:
        found = self._rows(rows.tolist(), teacher=True)
        return torch.from_numpy(np.stack([row.teacher.numpy() for row in found if row.teacher is not None]))

    def stored_text(self, rows: np.ndarray, choice: Rows | None = None, pin: bool = False) -> tuple[Tensor, Tensor]:
        found = self._rows(rows.tolist())
        which = [0] * len(found) if choice is None else [int(n) % len(row.tokens) for n, row in zip(choice, found)]
        mask = torch.zeros(len(found), self.text_tokens, dtype=torch.bool)
        for at, (row, n) in enumerate(zip(found, which)):
            mask[at, : row.mask.shape[1]] = row.mask[n]
        mask = mask[:, : longest(mask.numpy())]
        tokens = torch.zeros(*mask.shape, self.text_dim, dtype=self.dtype)
        for at, (row, n) in enumerate(zip(found, which)):
            part = row.tokens[n, : mask.shape[1]]
            tokens[at, : len(part)] = part
        return tokens, mask

    def shuffled(self, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        # Whole shards are permuted first, and rows within a window of them: reading stays near its place.
        shard_of = np.searchsorted(self._first, rows, side="right") - 1
        shards = generator.permutation(np.unique(shard_of))
        windows = [shards[i : i + self._window] for i in range(0, len(shards), self._window)]
        return np.concatenate([generator.permutation(rows[np.isin(shard_of, window)]) for window in windows])

    def _has(self, i: int, teacher: bool) -> bool:
        wanted = teacher and self.meta["teacher"] is not None
        return i in self._held and not (wanted and self._held[i].teacher is None)

    def _rows(self, indices: Sequence[int], teacher: bool = False) -> list[_Row]:
        with self._lock:
            missing = [i for i in dict.fromkeys(indices) if not self._has(i, teacher)]
            self._held |= dict(zip(missing, self._read_rows(missing, teacher)))
            found = [self._held[i] for i in indices]
            self._forget(set(indices))
        return found

    def _forget(self, wanted: set[int]) -> None:
        """Let the rows go that were read longest ago, until few enough are left beside those wanted."""
        spare = sum(row.bytes for row in self._held.values()) - HELD_BYTES
        for i in [i for i in self._held if i not in wanted]:
            if spare <= 0:
                break
            spare -= self._held.pop(i).bytes

    def _read_rows(self, indices: Sequence[int], teacher: bool) -> list[_Row]:
        spans = []
        for i in indices:
            number = int(np.searchsorted(self._first, i, side="right")) - 1
            shard = self._shards[number]
            at = 2 * (i - int(self._first[number]))
            # Teacher features stand last in a sample, so that they can be left unread.
            stop = shard.offsets[at + 2] if teacher else shard.offsets[at + 1]
            spans.append((str(_inside(self.path, shard.file)), shard.offsets[at], stop))
        return [self._parsed(i, span, data) for i, span, data in zip(indices, spans, read_spans(spans))]

    def _parsed(self, i: int, span: tuple[str, int, int], data: bytes) -> _Row:
        """
        Raises:
            UserError: the bytes are not those of row i.
        """
        try:
            # What stands at an offset is compared with what the index promised: either file may have been replaced.
            parts = _members(data, key_of(i))
            entry = json.loads(parts["json"])
            check_row(entry, self.meta)
            tensors = load(parts["latents.safetensors"])
            features = load(parts["teacher.safetensors"])["teacher"] if "teacher.safetensors" in parts else None
            row = _Row(entry, tensors["latents"], tensors["tokens"], tensors["mask"], features, len(data))
            self._check_shapes(row)
        except (*_WRONG, tarfile.TarError, SafetensorError) as e:
            raise UserError(
                f"{span[0]}: row {i} is not at byte {span[1]:,} as {INDEX} says ({type(e).__name__}: {first_line(e)}); "
                "hint: copy both again, or segue data pack"
            ) from e
        return row

    def _check_shapes(self, row: _Row) -> None:
        captions = len(row.entry["captions"])
        columns = row.mask.shape[-1]
        fits = row.latents.shape == (self.channels, self.frames) and row.latents.dtype == self.dtype
        fits = fits and row.tokens.shape == (captions, columns, self.text_dim) and columns <= self.text_tokens
        fits = fits and row.mask.shape == (captions, columns) and row.mask.dtype == torch.bool
        if row.teacher is not None:
            fits = fits and row.teacher.ndim == 2 and row.teacher.shape[1] == self.meta["teacher_dim"]
        if not fits:
            raise ValueError("tensors of other shapes")


def _members(data: bytes, key: str) -> dict[str, bytes]:
    """The parts of one sample, headers and all: name behind the key -> bytes.

    Raises:
        ValueError, tarfile.TarError: other members than a sample has, in another order, or cut.
    """
    parts = {}
    at = 0
    for name in _PARTS:
        if at == len(data) and name == _PARTS[2]:
            break
        header = tarfile.TarInfo.frombuf(data[at : at + 512], "utf-8", "strict")
        if header.name != f"{key}.{name}":
            raise ValueError(f"{header.name[:80]} in place of {key}.{name}")
        start, at = at + 512, at + 512 + -(-header.size // 512) * 512
        if header.size < 0 or at > len(data):
            raise ValueError(f"{key}.{name} is cut")
        parts[name] = data[start : start + header.size]
    return parts


def _check_shards(shards: list[Shard], window: int, rows_per_shard: int) -> None:
    """
    Raises:
        ValueError: entries out of range.
    """
    sane = type(window) is int and window > 0 and type(rows_per_shard) is int and rows_per_shard > 0 and len(shards) > 0
    for shard in shards:
        offsets = shard.offsets
        # Each line bounds what a made-up index could make the reader do.
        sane = (
            sane
            and bool(_NAME.fullmatch(shard.file))
            and shard.file.startswith(f"{shard.split}-")
            and type(shard.bytes) is int
            and all(type(offset) is int for offset in offsets)
            and len(offsets) >= 4
            and len(offsets) % 2 == 0
            and offsets[0] >= 0
            and all(a <= b for a, b in zip(offsets, offsets[1:]))
            and all(a < b <= a + MOST_ROW_BYTES for a, b in zip(offsets[::2], offsets[2::2]))
            and offsets[-1] <= shard.bytes
        )
    if not sane or len({shard.file for shard in shards}) < len(shards):
        raise ValueError("entries out of range")


def _inside(path: Path | str, name: str) -> Path | str:
    return f"{path.rstrip('/')}/{name}" if isinstance(path, str) else path / name
