"""The safetensors shards of a latent cache, of which single rows are read straight into a batch's own memory.

Rows are read and not mapped: a process's memory does not grow with the cache, and a shard that is cut short meanwhile
is an error with a name, where a mapped one would kill the process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from math import prod
from pathlib import Path
from threading import Lock
from typing import IO

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from segue.types import UserError, first_line

OPEN_SHARDS = 128  # files; a process may open 256 on some systems
DTYPES: dict[str, np.dtype] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "BOOL": np.dtype("?")}


class ShardFile:
    """What one safetensors file holds, and where."""

    def __init__(self, path: Path) -> None:
        # The head is then read again by hand, for the offsets.
        read_tensors(path, names=())  # safetensors' own checks of the head: sizes, offsets, overlaps
        self.path = path
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(size))
        self._entries = {k: v for k, v in head.items() if k != "__metadata__" and v["dtype"] in DTYPES}
        self._places = {
            name: (8 + size + entry["data_offsets"][0], DTYPES[entry["dtype"]].itemsize * prod(entry["shape"][1:]))
            for name, entry in self._entries.items()
        }

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor; () where there is none of that name, or one of another kind than segue encode writes."""
        return tuple(self._entries[name]["shape"]) if name in self._entries else ()

    def dtype(self, name: str) -> np.dtype:
        """Of a tensor that is there."""
        return DTYPES[self._entries[name]["dtype"]]

    def place(self, name: str) -> tuple[int, int]:
        """Of a tensor: where its first row begins in the file, and the bytes of a row."""
        return self._places[name]


class OpenFiles:
    """Files that are read from, of which a limited number stays open. Threads may share it."""

    def __init__(self) -> None:
        self._opened: dict[Path, IO[bytes]] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._opened)

    def read(self, spans: Sequence[tuple[Path, int, memoryview]]) -> None:
        """Fill each buffer with the file's bytes from an offset on.

        Raises:
            UserError: a file cannot be read, or ends too early.
        """
        with self._lock:
            for path, offset, buffer in spans:
                try:
                    count = _read_at(self._opened.get(path) or self._open(path), offset, buffer)
                except OSError as error:
                    raise UserError(
                        f"{path}: cannot be read ({error.strerror or first_line(error)}); hint: delete it and "
                        "meta.json, run segue encode again"
                    ) from error
                if count < len(buffer):
                    raise UserError(f"{path}: ends too early; hint: delete it and meta.json, run segue encode again")

    def _open(self, path: Path) -> IO[bytes]:
        if len(self._opened) >= OPEN_SHARDS:
            self._opened.pop(next(iter(self._opened))).close()
        self._opened[path] = path.open("rb", buffering=0)
        return self._opened[path]


def _read_at(file: IO[bytes], offset: int, buffer: memoryview) -> int:
    if hasattr(os, "preadv"):  # leaves the position alone, which forked processes share
        return os.preadv(file.fileno(), [buffer], offset)
    file.seek(offset)
    return file.readinto(buffer)  # type: ignore[attr-defined]


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
