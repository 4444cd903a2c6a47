"""A file seen with other bytes than it has: parts of it, and bytes of our own between them. The file stays as it is."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import IO

Part = bytes | tuple[int, int]  # bytes of our own, or (first byte, end) of the file


def overlaid(file: IO[bytes], parts: Sequence[Part]) -> IO[bytes]:
    """The parts of an opened file one after the other, as a seekable file to read; closing it closes `file`."""
    return io.BufferedReader(_Overlay(file, parts), 1 << 16)


class _Overlay(io.RawIOBase):
    def __init__(self, file: IO[bytes], parts: Sequence[Part]) -> None:
        self._file = file
        # Empty parts would stop readinto, for which 0 bytes mean the end.
        self._parts = [part for part in parts if _length(part)]
        self._ends = list(accumulate(map(_length, self._parts)))
        self._size = self._ends[-1] if self._ends else 0
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + position < 0:
            raise OSError("before the start")
        self._position = start + position
        return self._position

    def readinto(self, buffer) -> int:
        index = bisect_right(self._ends, self._position)
        if index == len(self._parts):
            return 0
        part = self._parts[index]
        inside = self._position - (self._ends[index] - _length(part))
        wanted = min(len(buffer), self._ends[index] - self._position)
        if isinstance(part, bytes):
            data = part[inside : inside + wanted]
        else:
            self._file.seek(part[0] + inside)
            data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def patched(size: int, patches: dict[int, bytes], start: int = 0, end: int | None = None) -> list[Part]:
    """Parts for bytes [start, end) of a file of `size` bytes, with other bytes at some offsets."""
    parts: list[Part] = []
    at = start
    for offset, data in sorted(patches.items()):
        parts += [(at, offset), data]
        at = offset + len(data)
    return [*parts, (at, size if end is None else end)]


def _length(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else max(0, part[1] - part[0])
