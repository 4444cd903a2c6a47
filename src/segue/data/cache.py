"""The latent cache, read: latents, text embeddings and teacher features of a data set, computed once.

A folder of safetensors shards with index.jsonl (one row a segment) and meta.json. `data/encoding.py` makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segue.data.cache_checks import check_form, malformed, read_index, read_json, refuse_other_parts
from segue.data.content import rows_digest
from segue.data.shards import OpenFiles, ShardFile
from segue.data.tars import is_address
from segue.types import UserError

SCHEMA_VERSION = 1
Rows = Sequence[int] | np.ndarray  # numbers of rows, or of their captions
DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Batch:
    """Rows of a cache, as a task takes them, in the numbers that are stored: a task makes them float32 on its device.

    Attributes:
        latents: [B, C, L], not standardised.
        mask: [B, L] bool, True where a frame is real; None where every frame is.
        tokens: [B, K, E] text token embeddings; K is that of the longest caption here.
        tokens_mask: [B, K] bool, True where a token is real.
        teacher: [B, S, F] features and [B, S] bool mask, where they are asked for.
        indices: rows of the cache.
        conditions: what is known of each, by names of fields (data/conditions.py); None of a cache without any.
    """

    latents: Tensor
    mask: Tensor | None
    tokens: Tensor
    tokens_mask: Tensor
    teacher: tuple[Tensor, Tensor] | None
    indices: list[int]
    conditions: list[dict] | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with each of its tensors changed."""
        parts = (self.latents, self.tokens, self.tokens_mask)
        latents, tokens, tokens_mask = (change(x) for x in parts)
        mask = None if self.mask is None else change(self.mask)
        teacher = None if self.teacher is None else (change(self.teacher[0]), change(self.teacher[1]))
        return Batch(latents, mask, tokens, tokens_mask, teacher, self.indices, self.conditions)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; a GPU copies pinned memory while this process goes on."""
        device = torch.device(device)
        return self.map(lambda x: x.to(device, non_blocking=device.type == "cuda"))


@dataclass(frozen=True)
class _Places:
    """Where each row of a cache stands, as whole arrays.

    Attributes:
        shard, row: number of its shard, and its row there.
        frames, length_sec: of its sound.
        first_caption: of its captions in `captions`, and at last where the next would be.
        captions: rows of the text shards, counted through all of them.
    """

    shard: np.ndarray
    row: np.ndarray
    frames: np.ndarray
    length_sec: np.ndarray
    first_caption: np.ndarray
    captions: np.ndarray


class LatentCache:
    """A finished cache. Rows are read in place, so that a process's memory does not grow with the cache.

    Attributes:
        path: its folder; the address, where it is streamed from one.
        meta: meta.json: fingerprints of codec, text encoder and teacher, seconds, dtype, counts, skipped files.
        channels, frames: C and L of every row; shorter rows are zero beyond their mask.
        text_dim, text_tokens: E and K of every caption.
        windows: what decides the order of training beside the seed; "" where nothing does.
        addressable: whether any row is at hand as cheaply as the next, so that whole tensors can be made of them.
    """

    windows = ""
    addressable = True

    def __init__(self, path: Path, meta: dict, index: list[dict]) -> None:
        self.path = path
        self.meta = meta
        self._index = index
        self._shards_folder = Path(path) / "shards"  # of an address, never looked at
        self.channels = meta["channels"]
        self.frames = meta["frames"]
        self.text_dim = meta["text_dim"]
        self.text_tokens = meta["text_tokens"]
        self._files = OpenFiles()
        self._heads: dict[str, ShardFile] = {}
        self._latent_files = [shard["file"] for shard in meta["shards"]]
        self._text_files = [shard["file"] for shard in meta["text_shards"]]
        # Where the rows of each text shard begin, counted through all of them, and at last how many there are.
        self._text_starts = np.array([0, *accumulate(shard["rows"] for shard in meta["text_shards"])])
        self._token_bits = np.zeros((self._text_starts[-1], -(-self.text_tokens // 8)), np.uint8)  # masks, packed
        self._token_bits_read = np.zeros(len(self._text_files), bool)

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
            raise UserError(malformed(path, "no JSON object"))
        if meta.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{path}: cache format {meta.get('schema_version')}, not {SCHEMA_VERSION} as this version reads; "
                "hint: encode again into another folder"
            )
        refuse_other_parts(path, meta, codec_fingerprint, text_fingerprint)
        index = read_index(path)
        check_form(path, meta, index)
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

    def row(self, i: int) -> dict:
        """Index entry: id, sha256, shard, row, frames, split, captions, caption_rows, start_sec, length_sec, fields."""
        return self._index[i]

    def conditions_of(self, rows: np.ndarray) -> list[dict] | None:
        """What is known of these rows, by names of fields; None of a cache without conditions."""
        if not self.meta.get("conditions"):
            return None
        return [self.row(row).get("conditions", {}) for row in rows.tolist()]

    # --- rows, by whole batches ---------------------------------------------------------------------------------------

    def batch(
        self,
        indices: Rows,
        choice: Rows | None = None,
        with_teacher: bool = False,
        pin: bool = False,
    ) -> Batch:
        """These rows as they are stored; see `text` for `choice`.

        Args:
            with_teacher: also read the teacher's features, where there are some: they are most of a batch's bytes.
            pin: into pinned memory, which a GPU copies without waiting.
        """
        rows = np.asarray(indices)
        teacher = None
        if with_teacher and self.meta["teacher"] is not None:
            features = self.stored_teacher(rows, pin)
            teacher = features, real_frames(self.teacher_frames_of(rows), features.shape[1])
        latents = self.stored_latents(rows, pin)
        mask = real_frames(self.frames_of(rows), self.frames)
        text = self.stored_text(rows, choice, pin)
        # A mask that masks nothing is left away: attention without one takes the faster kernel.
        batch = Batch(
            latents, None if bool(mask.all()) else mask, *text, teacher, rows.tolist(), self.conditions_of(rows)
        )
        return batch.map(lambda x: x if x.is_pinned() else x.pin_memory()) if pin else batch

    def latents(self, indices: Rows) -> tuple[Tensor, Tensor]:
        """[B, C, L] float32 latents, not standardised, and [B, L] bool, True where a frame is real."""
        rows = np.asarray(indices)
        return self.stored_latents(rows).float(), real_frames(self.frames_of(rows), self.frames)

    def text(self, indices: Rows, choice: Rows | None = None) -> tuple[Tensor, Tensor]:
        """[B, K, E] float32 token embeddings and [B, K] bool mask; K is that of the cache's longest caption.

        Args:
            choice: which of each row's captions, counted modulo their number; the first by default.
        """
        found, found_mask = self.stored_text(np.asarray(indices), choice)
        tokens = torch.zeros(len(found), self.text_tokens, self.text_dim)
        mask = torch.zeros(len(found), self.text_tokens, dtype=torch.bool)
        tokens[:, : found.shape[1]] = found
        mask[:, : found.shape[1]] = found_mask
        return tokens, mask

    def teacher(self, indices: Rows) -> tuple[Tensor, Tensor] | None:
        """[B, S, F] float32 teacher features and [B, S] bool mask, or None where the cache has none."""
        if self.meta["teacher"] is None:
            return None
        rows = np.asarray(indices)
        features = self.stored_teacher(rows).float()
        return features, real_frames(self.teacher_frames_of(rows), features.shape[1])

    # --- the same as it is stored, for batches and for what keeps them (data/resident.py) -----------------------------

    def frames_of(self, rows: np.ndarray) -> np.ndarray:
        """[B] real latent frames."""
        return self._places.frames[rows]

    def teacher_frames_of(self, rows: np.ndarray) -> np.ndarray:
        """[B] real teacher frames."""
        return np.ceil(self._places.length_sec[rows] * self.meta["teacher_frame_rate_hz"]).astype(np.int64)

    def stored_latents(self, rows: np.ndarray, pin: bool = False) -> Tensor:
        """[B, C, L] in the cache's dtype."""
        out = torch.empty(len(rows), self.channels, self.frames, dtype=self.dtype, pin_memory=pin)
        places = self._places
        return self._read("latents", self._latent_files, places.shard[rows], places.row[rows], out)

    def stored_teacher(self, rows: np.ndarray, pin: bool = False) -> Tensor:
        """[B, S, F] in the cache's dtype, of a cache with a teacher."""
        shards = self._places.shard[rows]
        shape = self._shard(self._latent_files[shards[0]]).shape("teacher")[1:]
        out = torch.empty(len(rows), *shape, dtype=self.dtype, pin_memory=pin)
        return self._read("teacher", self._latent_files, shards, self._places.row[rows], out)

    def stored_text(self, rows: np.ndarray, choice: Rows | None = None, pin: bool = False) -> tuple[Tensor, Tensor]:
        """[B, K, E] in the cache's dtype and [B, K] bool; K is that of the longest caption here."""
        captions = self.captions_of(rows, choice)
        mask = self.token_masks(captions)
        mask = mask[:, : longest(mask)]
        return self.stored_tokens(captions, mask, pin), torch.from_numpy(mask)

    def captions_of(self, rows: np.ndarray, choice: Rows | None = None) -> np.ndarray:
        """[B] numbers of captions; see `text` for `choice`."""
        places = self._places
        first = places.first_caption[rows]
        if choice is None:
            return places.captions[first]
        # Modulo, so that one choice serves rows with different numbers of captions.
        return places.captions[first + np.asarray(choice) % (places.first_caption[rows + 1] - first)]

    def token_masks(self, captions: np.ndarray) -> np.ndarray:
        """[B, K] bool: which tokens of these captions are real; K is that of the cache's longest caption."""
        shards = np.searchsorted(self._text_starts, captions, side="right") - 1
        # They are kept, eight to a byte: they say how much of the tokens must be read.
        for shard in np.unique(shards[~self._token_bits_read[shards]]).tolist():
            file = self._shard(self._text_files[shard])
            whole = np.empty(file.shape("mask"), bool)
            self._files.read([(file.path, file.place("mask")[0], whole.data.cast("B"))])
            first = self._text_starts[shard]
            bits = np.packbits(whole, axis=1)
            self._token_bits[first : first + len(bits), : bits.shape[1]] = bits
            self._token_bits_read[shard] = True
        return np.unpackbits(self._token_bits[captions], axis=1, count=self.text_tokens).view(bool)

    def stored_tokens(self, captions: np.ndarray, mask: np.ndarray, pin: bool = False) -> Tensor:
        """[B, K, E] in the cache's dtype: the tokens of these captions up to the last real one, and zeros behind it.

        Args:
            mask: [B, K] bool, of `token_masks`, of as many columns as are wanted.
        """
        shards = np.searchsorted(self._text_starts, captions, side="right") - 1
        out = torch.empty(*mask.shape, self.text_dim, dtype=self.dtype, pin_memory=pin)
        real = (mask * np.arange(1, mask.shape[1] + 1)).max(1).tolist()
        # Padding is not read: in the demo's cache it is half of what is stored. Nor is it zeroed by torch, which would
        # start threads of its own for the thread that reads ahead.
        for row, count in zip(out.numpy(), real):
            row[count:] = 0
        return self._read("tokens", self._text_files, shards, captions - self._text_starts[shards], out, real)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is stored."""
        return DTYPES[self.meta["dtype"]]

    @cached_property
    def _places(self) -> _Places:
        number = {name: n for n, name in enumerate(self._latent_files)}
        index = self._index
        return _Places(
            shard=np.array([number[row["shard"]] for row in index]),
            row=np.array([row["row"] for row in index]),
            frames=np.array([row["frames"] for row in index]),
            length_sec=np.array([row["length_sec"] for row in index], np.float64),
            first_caption=np.array([0, *accumulate(len(row["caption_rows"]) for row in index)]),
            captions=np.array([caption for row in index for caption in row["caption_rows"]]),
        )

    def _read(
        self,
        name: str,
        files: list[str],
        shards: np.ndarray,
        rows: np.ndarray,
        out: Tensor,
        counts: list[int] | None = None,
    ) -> Tensor:
        """Fill out [B, N, ...] with rows of a tensor, each from its file straight into its place.

        Args:
            counts: [B] how much of each row's first axis is read, from its beginning; the whole row by default.
        """
        whole = out.numpy().data.cast("B")
        size = len(whole) // len(out)
        each = size // out.shape[1]
        spans = []
        for n, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist())):
            file = self._shard(files[shard])
            first, row_bytes = file.place(name)
            stop = n * size + (size if counts is None else counts[n] * each)
            spans.append((file.path, first + row * row_bytes, whole[n * size : stop]))
        self._files.read(spans)
        return out

    def _shard(self, name: str) -> ShardFile:
        if name not in self._heads:
            self._heads[name] = self._fitting(name, ShardFile(self._shards_folder / name))
        return self._heads[name]

    def _fitting(self, name: str, shard: ShardFile) -> ShardFile:
        """A shard whose tensors have the shapes and dtypes that meta.json gives them."""
        rows = {s["file"]: s["rows"] for s in (*self.meta["shards"], *self.meta["text_shards"])}[name]
        if name.startswith("text-"):
            tokens = shard.shape("tokens")
            mask = shard.shape("mask")
            fits = len(tokens) == 3 and tokens[::2] == (rows, self.text_dim) and tokens[:2] == mask
            fits = fits and tokens[1] <= self.text_tokens and shard.dtype("mask").kind == "b"
            stored = ["tokens"]
        else:
            fits = shard.shape("latents") == (rows, self.channels, self.frames)
            stored = ["latents"]
            if self.meta["teacher"] is not None:
                fits = fits and shard.shape("teacher")[::2] == (rows, self.meta["teacher_dim"])
                stored.append("teacher")
        if not (fits and all(shard.dtype(tensor) == np.dtype(self.meta["dtype"]) for tensor in stored)):
            raise UserError(
                f"{self._shards_folder / name}: holds other tensors than meta.json says; "
                f"hint: delete it and {self._shards_folder.parent / 'meta.json'}, and run segue encode again"
            )
        return shard


def real_frames(frames: np.ndarray, length: int) -> Tensor:
    """[B, length] bool: True for the first so many frames of each row."""
    return torch.from_numpy(np.arange(length) < frames[:, None])


def longest(mask: np.ndarray) -> int:
    """Columns of a mask [B, K] up to the last that is True anywhere, and at least one: attention needs a token."""
    used = np.flatnonzero(mask.any(0))
    return int(used[-1]) + 1 if len(used) else 1


def is_packed(path: Path | str) -> bool:
    """Whether these are tar shards of `segue data pack`: an address always is one of them."""
    return is_address(path) or (Path(path) / "shards.json").exists()
