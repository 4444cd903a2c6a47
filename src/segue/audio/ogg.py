"""The pages of an Ogg file: is it whole, does it end as it should, is it several files put end to end (RFC 3533)?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

_BEGINS, _ENDS = 2, 4  # flags of a page
_POLYNOMIAL = 0x04C11DB7


@dataclass(frozen=True)
class Page:
    """Where a page is, its flags, and the stream that it belongs to."""

    offset: int
    size: int
    flags: int
    serial: int


def pages(file: IO[bytes], size: int) -> tuple[list[Page], bool]:
    """The whole pages of a file, and whether it ends behind the last of them: else it is cut, or damaged there."""
    found: list[Page] = []
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(27 + 255)
        if head[:4] != b"OggS":
            # Zeros, or a tag, behind the last page are no part of it.
            return found, b"OggS" not in head and not _more(file, at)
        if len(head) < 27 or len(head) < 27 + head[26]:
            return found, False
        length = 27 + head[26] + sum(head[27 : 27 + head[26]])
        if at + length > size:
            return found, False
        found.append(Page(at, length, head[5], int.from_bytes(head[14:18], "little")))
        at += length
    return found, True


def _more(file: IO[bytes], at: int) -> bool:
    """Whether there is another page within reach: then what is here was damaged."""
    file.seek(at)
    return b"OggS" in file.read(1 << 17)


def links(found: Sequence[Page]) -> list[list[Page]]:
    """The files that were put end to end, as their pages: one begins where a stream begins behind pages of others."""
    parts: list[list[Page]] = []
    beginning = False
    for page in found:
        # Several streams of one file begin together, side by side: only a beginning behind other pages is a new file.
        begins = bool(page.flags & _BEGINS)
        if not parts or (begins and not beginning):
            parts.append([])
        parts[-1].append(page)
        beginning = begins
    return parts


def ended(page: Page, data: bytes) -> bytes:
    """The bytes of a page with the flag that says that its stream ends."""
    head = bytearray(data[: page.size])
    head[5] |= _ENDS
    # The checksum is taken with its own place set to zero (RFC 3533, 6).
    head[22:26] = bytes(4)
    head[22:26] = _checksum(head).to_bytes(4, "little")
    return bytes(head)


def needs_end(page: Page) -> bool:
    """Whether the last page of a stream lacks that flag."""
    return not page.flags & _ENDS


def _checksum(data: bytes | bytearray) -> int:
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFFFFFF) ^ _TABLE[value >> 24 ^ byte]
    return value


def _table() -> list[int]:
    rows = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = value << 1 ^ (_POLYNOMIAL if value & 0x80000000 else 0)
        rows.append(value & 0xFFFFFFFF)
    return rows


_TABLE = _table()
