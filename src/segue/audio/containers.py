"""What the bytes of a file say: which kind it is, whether it was cut short, and how a decoder has to be shown it."""

from __future__ import annotations

from dataclasses import dataclass, field
from stat import S_IFREG, S_ISREG
from typing import IO, Literal

from segue.audio import mpeg, ogg, sizes
from segue.audio.overlay import Part, patched
from segue.audio.sound import BadAudio, SoundPath

Order = Literal["little", "big"]
_START = 4096
# A hostile file may name millions of empty chunks, each of which would cost a seek.
_MOST_CHUNKS = 10_000
_STREAMED = 0x7FFFF000  # sizes from here on stand for "not known yet", as in files that were written to a pipe
MIXED = "several files in one, of different sample rates or channel counts"
_CUT = "truncated: the file ends before its sound does"
_MAGIC = {
    b"fLaC": "flac", b"OggS": "ogg", b"caff": "caf", b"\x1a\x45\xdf\xa3": "matroska",
    b"\x30\x26\xb2\x75": "asf", b"wvpk": "wavpack", b"MAC ": "ape", b"riff": "w64", b".snd": "au",
}  # fmt: skip
_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_WAV_ENCODINGS = {
    0x0002: "MS ADPCM", 0x0011: "IMA ADPCM", 0x0031: "GSM 6.10", 0x0050: "MPEG audio", 0x0055: "MP3", 0x00FF: "AAC",
    0x0161: "Windows Media", 0x0162: "Windows Media", 0x2000: "AC-3", 0x2001: "DTS", 0x0270: "ATRAC3",
    0x0022: "TrueSpeech",
}  # fmt: skip
_OGG_ENCODINGS = {b"Speex   ": "Speex", b"\x80theora": "Theora", b"\x80kate": "Kate", b"CELT    ": "CELT"}
# What other kinds are called in a message.
NAMES = {"mp4": "MP4 (m4a)", "aac": "AAC", "matroska": "WebM or Matroska", "asf": "Windows Media", "caf": "CAF"}


@dataclass(frozen=True)
class Container:
    """A file as its bytes show it.

    Attributes:
        kind: "wav", "aiff", "flac", "ogg", "mpeg", "mp4", "aac", "matroska", ..., or "" for one that is not known.
        parts: how libsndfile has to be shown it, once for each of the files that were put end to end; an empty list
            stands for the file as it is.
        frames: what is known of its length; at most so many samples are its sound. None: nothing.
        layout: of an MPEG file.
        encoding: what its samples are, where libsndfile may not know that; for a message.
    """

    kind: str
    parts: list[list[Part]] = field(default_factory=lambda: [[]])
    frames: int | None = None
    layout: mpeg.Layout | None = None
    encoding: str = ""


def look(path: SoundPath) -> Container:
    """Look at a file's bytes; no more of it is read than headers, page heads and frame heads.

    Raises:
        BadAudio: unreadable, empty, no sound, or cut short.
    """
    try:
        about = path.stat()
        # What is no path of a disk (a member of a tar, a cell) has no mode, and counts as a file.
        if not S_ISREG(getattr(about, "st_mode", S_IFREG)):  # opening a pipe would wait for somebody to write into it
            raise BadAudio(path, "unreadable: no file but a folder, pipe, socket or device")
        size = about.st_size
        with path.open("rb") as file:
            start = file.read(_START)
            kind = _kind(start)
            # Bytes that look like MPEG may be of anything: only a row of frames proves it.
            if kind in ("", "mpeg"):
                layout = mpeg.scan(file, size, is_sure=kind == "mpeg")
                return _mpeg(path, file, size, layout) if layout else Container(_unknown(path, start))
            if kind == "ogg":
                return _ogg(path, file, size)
            if kind in ("wav", "aiff"):
                return _iff(path, file, size, kind, start)
            if kind in sizes.KINDS:
                sound = sizes.find(file, kind, size)
                if sound is not None and sound.is_cut:
                    raise BadAudio(path, _CUT)
                return Container(kind, [patched(size, sound.patches)] if sound and sound.patches else [[]])
            # The outermost sizes alone: they cost a few seeks and show whether a download stopped early.
            if (kind == "mp4" and _atoms_end(file, size) > size) or (kind == "matroska" and _segment_end(start) > size):
                raise BadAudio(path, _CUT)
    except OSError as error:
        raise BadAudio(path, f"unreadable: {error.strerror or error}") from error
    return Container(kind)


def _kind(start: bytes) -> str:
    if start[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and start[8:12] == b"WAVE":
        return "wav"
    if start[:4] == b"FORM" and start[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if start[4:8] in _ATOMS:
        return "mp4"
    if start[:2] in (b"\xff\xf0", b"\xff\xf1", b"\xff\xf8", b"\xff\xf9"):  # ADTS: layer 0, which MPEG audio has not
        return "aac"
    if start[:3] == b"ID3":
        # ID3v2 sizes have seven bits a byte, so that no size looks like the start of a frame (ID3v2.4, 6.2).
        tag = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(start[6:10], (21, 14, 7, 0)))
        # Tags also stand before FLAC and AAC; where the tag is longer than what was read, MPEG is by far the likeliest.
        behind = _kind(start[tag:]) if tag + 12 < len(start) else ""
        return behind or "mpeg"
    return _MAGIC.get(start[:4], "mpeg" if mpeg.parse(start) else "")


def _unknown(path: SoundPath, start: bytes) -> str:
    if not start:
        raise BadAudio(path, "zero length: an empty file")
    # One bad character is allowed, since the cut at 512 bytes may fall within one.
    if b"\0" not in start[:512] and start[:512].decode("utf-8", errors="replace").count("\ufffd") <= 1:
        raise BadAudio(path, "unreadable: a text file, not sound")
    return ""


def _mpeg(path: SoundPath, file: IO[bytes], size: int, layout: mpeg.Layout) -> Container:
    if layout.is_truncated or not layout.frames:
        raise BadAudio(path, _CUT)
    if layout.is_mixed:
        raise BadAudio(path, MIXED)
    file.seek(layout.start)
    return Container("mpeg", [mpeg.honest(layout, size, file.read(_START))], layout.samples, layout)


def _ogg(path: SoundPath, file: IO[bytes], size: int) -> Container:
    found, is_whole = ogg.pages(file, size)
    if not found or not is_whole:
        raise BadAudio(path, _CUT)
    parts: list[list[Part]] = []
    links = ogg.links(found)
    for pages in links:
        last = pages[-1]
        patches = {}
        if ogg.needs_end(last):  # a recorder that was switched off; libsndfile takes it for damage
            file.seek(last.offset)
            patches[last.offset] = ogg.ended(last, file.read(last.size))
        # A whole file is opened by its name, which costs nothing; parts go through an overlay.
        whole = len(links) == 1 and not patches
        parts.append([] if whole else patched(size, patches, pages[0].offset, last.offset + last.size))
    # Old kinds of Ogg name their codec in the first page: a message can then say what is missing.
    file.seek(found[0].offset)
    head = file.read(64)
    names = [name for mark, name in _OGG_ENCODINGS.items() if mark in head]
    return Container("ogg", parts, encoding=f"Ogg of {names[0]}" if names else "")


@dataclass(frozen=True)
class _Chunk:
    """A chunk of an IFF file: its name, where its contents begin, and how long it says they are."""

    name: bytes
    start: int
    length: int


def _iff(path: SoundPath, file: IO[bytes], size: int, kind: str, start: bytes) -> Container:
    """WAV and AIFF: where their sound is, and how long it is by their own account."""
    order: Order = "little" if start[:4] in (b"RIFF", b"RF64", b"BW64") else "big"
    chunks = _chunks(path, file, order, b"data" if kind == "wav" else b"SSND")
    by_name = {chunk.name: chunk for chunk in chunks}
    sound = by_name.get(b"data" if kind == "wav" else b"SSND")
    if sound is None:
        return Container(kind)
    # A 32-bit size at its limit says "unknown" in files from a pipe, and "see ds64" in RF64.
    length = sound.length
    is_open = sound.length >= _STREAMED
    if is_open and (long := by_name.get(b"ds64")):  # of RF64: 64-bit sizes of the whole and of the sound
        file.seek(long.start + 8)
        length = int.from_bytes(file.read(8), "little")
        is_open = length >= 1 << 62
    patches = {}
    # Length 0 is ambiguous: an empty recording, or a writer that was killed before it came back to the header.
    if is_open or (length == 0 and not _ends_well(file, order, sound.start, size)):
        patches = _closed(file, kind, sound, by_name, size)
    elif sound.start + length > size:
        raise BadAudio(path, _CUT)
    parts = patched(size, patches) if patches else []
    return Container(kind, [parts], _fact(file, by_name), encoding=_encoding(file, by_name))


def _chunks(path: SoundPath, file: IO[bytes], order: Order, last: bytes) -> list[_Chunk]:
    """The chunks up to the one called `last`."""
    found: list[_Chunk] = []
    position = 12
    for _ in range(_MOST_CHUNKS):
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return found
        found.append(_Chunk(head[:4], position + 8, int.from_bytes(head[4:], order)))
        if head[:4] == last:
            return found
        # Chunks begin on even bytes (RIFF, AIFF alike).
        position += 8 + found[-1].length + found[-1].length % 2
    raise BadAudio(path, f"damaged: more than {_MOST_CHUNKS:,} chunks before its sound")


def _ends_well(file: IO[bytes], order: Order, position: int, size: int) -> bool:
    """Whether chunks alone follow up to the end of the file: then a sound of no length is meant so."""
    for _ in range(_MOST_CHUNKS):
        if position >= size:
            return True
        file.seek(position)
        head = file.read(8)
        # What follows a sound are chunks with readable names; samples hardly ever look like that.
        if len(head) < 8 or not head[:4].isascii() or not head[:4].decode().isprintable():
            return False
        position += 8 + int.from_bytes(head[4:], order)
        if position > size:
            return False
        position += position % 2
    return False


def _closed(file: IO[bytes], kind: str, sound: _Chunk, by_name: dict[bytes, _Chunk], size: int) -> dict[int, bytes]:
    """The sizes that a streamed file left open, so that it is read to its end: offset -> bytes."""
    # Everything behind the header is sound, since nobody came back to say otherwise.
    length = size - sound.start
    if long := by_name.get(b"ds64"):
        return {long.start: (size - 8).to_bytes(8, "little") + length.to_bytes(8, "little")}
    if kind == "wav":
        return {4: b"\xff" * 4, sound.start - 4: b"\xff" * 4}  # libsndfile takes this for: up to the end
    patches = {4: (size - 8).to_bytes(4, "big"), sound.start - 4: length.to_bytes(4, "big")}
    if common := by_name.get(b"COMM"):  # it counts frames, too
        file.seek(common.start)
        head = file.read(8)
        width = int.from_bytes(head[:2], "big") * ((int.from_bytes(head[6:8], "big") + 7) // 8)
        patches[common.start + 2] = ((length - 8) // max(1, width)).to_bytes(4, "big")
    return patches


def _encoding(file: IO[bytes], by_name: dict[bytes, _Chunk]) -> str:
    """What a wav's samples are, by the number of its encoding; "" for what every program reads."""
    layout = by_name.get(b"fmt ")
    if layout is None:
        return ""
    file.seek(layout.start)
    tag = int.from_bytes(file.read(2), "little")
    # Encodings that every reader has: PCM, float, A-law, mu-law, and the extensible form.
    if tag in (1, 3, 6, 7, 0xFFFE):
        return ""
    return f"WAV of {_WAV_ENCODINGS.get(tag, f'encoding 0x{tag:04X}')}"


def _atoms_end(file: IO[bytes], size: int) -> int:
    """Where the last of an MP4's outermost atoms ends by its own account."""
    position = 0
    for _ in range(_MOST_CHUNKS):
        if position + 8 > size:
            break
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        # Size 1: the true size is a 64-bit number behind the name (ISO/IEC 14496-12, 4.2).
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: up to the end; others are no atoms
            return size
        position += length
    return position


def _segment_end(start: bytes) -> int:
    """Where the segment of a WebM or Matroska file ends by its own account; 0 where it does not say."""
    # The segment's id; behind it stands a number of variable width (RFC 8794, 4).
    at = start.find(b"\x18\x53\x80\x67")
    if at < 0 or at + 5 > len(start) or start[at + 4] == 0:
        return 0
    # The leading zeros of the first byte give the width, and its ones are part of no number; all ones: not known.
    width = 9 - start[at + 4].bit_length()
    length = int.from_bytes(start[at + 4 : at + 4 + width], "big") & (1 << 7 * width) - 1
    is_open = length == (1 << 7 * width) - 1
    return 0 if is_open else at + 4 + width + length


def _fact(file: IO[bytes], by_name: dict[bytes, _Chunk]) -> int | None:
    """Samples of a compressed wav by its fact chunk: its last block is filled up with what is no sound."""
    layout = by_name.get(b"fmt ")
    fact = by_name.get(b"fact")
    if layout is None or fact is None or fact.length < 4:
        return None
    file.seek(layout.start)
    if int.from_bytes(file.read(2), "little") in (1, 3, 6, 7, 0xFFFE):  # of PCM and its kin the size says it
        return None
    file.seek(fact.start)
    return int.from_bytes(file.read(4), "little") or None
