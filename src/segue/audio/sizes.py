"""How long the sound of an AU, CAF or Wave64 file is by its own account, and what to show a decoder that needs one.

A file that was written to a pipe does not say; one that is shorter than it says was cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import IO

KINDS = ("au", "caf", "w64")
_MOST_CHUNKS = 10_000
_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_UNKNOWN = 1 << 62  # 64-bit sizes from here on stand for "not known"


@dataclass(frozen=True)
class Sound:
    """Where a file's sound is.

    Attributes:
        is_cut: the file ends before it.
        patches: offset -> bytes, which say its length where the file does not.
    """

    is_cut: bool = False
    patches: dict[int, bytes] = field(default_factory=dict)


def find(file: IO[bytes], kind: str, size: int) -> Sound | None:
    """The sound of a file of one of `KINDS`; None where there is none to be found."""
    return {"au": _au, "caf": _caf, "w64": _w64}[kind](file, size)


def _number(file: IO[bytes], offset: int, width: int, order: str) -> int:
    file.seek(offset)
    return int.from_bytes(file.read(width), "little" if order == "little" else "big")


def _au(file: IO[bytes], size: int) -> Sound | None:
    start, length = _number(file, 4, 4, "big"), _number(file, 8, 4, "big")
    if start > size or length == 0xFFFFFFFF:
        return None
    if length == 0:  # streamed; 0xFFFFFFFF stands for that
        return Sound(patches={8: b"\xff" * 4} if start < size else {})
    return Sound(is_cut=start + length > size)


def _caf(file: IO[bytes], size: int) -> Sound | None:
    at = 8
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = file.read(12)
        if len(head) < 12:
            return None
        length = int.from_bytes(head[4:], "big")
        if head[:4] == b"data":
            if length >= _UNKNOWN:
                return Sound(patches={at + 4: (size - at - 12).to_bytes(8, "big")})
            return Sound(is_cut=at + 12 + length > size)
        at += 12 + length
    return None


def _w64(file: IO[bytes], size: int) -> Sound | None:
    at = 40
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = file.read(24)
        length = int.from_bytes(head[16:], "little")
        # A chunk's size counts its own head of 24 bytes; less cannot be, and would never move on.
        if len(head) < 24 or length < 24:
            return None
        if head[:16] == _W64_DATA:
            return Sound(is_cut=length < _UNKNOWN and at + length > size)
        at += (length + 7) // 8 * 8
    return None
