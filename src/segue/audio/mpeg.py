"""The frames of an MPEG audio file (MP3), counted one by one: no header needs to be believed.

A frame's header says how long the frame is, so that a whole file is counted by hopping from header to header. Files may
begin with an ID3 tag (a cover picture), end with tags, hold rubbish between frames, or be several files put end to end.
Tables: ISO/IEC 11172-3, 2.4.2.3, and 13818-3, 2.4.2.3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from segue.audio.overlay import Part, patched

_RATES_HZ = (44100, 48000, 32000)
_KBIT = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_CHUNK = 1 << 20
_MOST_RUBBISH = 1 << 16  # bytes without a frame at the start
_MOST_BETWEEN = 1 << 22  # and between frames
_SYNC = re.compile(rb"\xff(?=[\xe2-\xff][\x10-\xef])")  # what may begin a frame
_MPG123_DELAY = 529  # samples of a decoder's delay, which mpg123 takes away
_TAGS = (b"TAG", b"ID3", b"APE")
_IN_A_ROW = 3  # headers that must follow each other before bytes are taken for frames


@dataclass(frozen=True)
class Frame:
    """What a frame's header says: version 1, 2 or 3 (for 2.5), layer, rate, channels, samples and bytes."""

    version: int
    layer: int
    rate_hz: int
    channels: int
    samples: int
    size: int

    @property
    def side_bytes(self) -> int:
        """Side information of layer III, behind which a Xing header stands."""
        return (32, 17)[self.channels == 1] if self.version == 1 else (17, 9)[self.channels == 1]


@dataclass(frozen=True)
class Layout:
    """Where the frames of a file are.

    Attributes:
        start, end: first byte of the first frame, and the byte after the last whole one.
        frames: how many there are, an information frame (Xing, Info, VBRI) not counted.
        first: header of the first of them.
        info_at: where the Xing or Info header stands; -1: there is none.
        info_size: bytes of the information frame; 0: there is none.
        claimed: frames that the information frame claims; 0: it says nothing.
        is_cut: the last frame is not whole.
        runs: (first byte, end) of each stretch of frames without rubbish, the information frame not among them.
        is_mixed: sounds of different sample rates or channel counts follow each other.
    """

    start: int
    end: int
    frames: int
    first: Frame
    info_at: int
    info_size: int
    claimed: int
    is_cut: bool
    runs: tuple[tuple[int, int], ...]
    is_mixed: bool

    @property
    def parts(self) -> list[Part]:
        """The file without what is no frame."""
        return [(self.start, self.start + self.info_size), *self.runs]

    @property
    def samples(self) -> int:
        """Of all frames, per channel: up to a few thousand more than a decoder gives, which leaves padding out."""
        return self.frames * self.first.samples

    @property
    def is_truncated(self) -> bool:
        """Whether the file ends before its sound does: its head promises more frames than there are.

        Some writers count a frame or two more; but none when the file ends within a frame.
        """
        slack = 0 if self.is_cut else max(2, self.frames // 100)
        return self.claimed > self.frames + slack


def parse(head: bytes) -> Frame | None:
    """The frame that four bytes begin, or None where they begin none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    # MPEG 2.5 is no part of the standard: the bits of version that it leaves reserved.
    version = {3: 1, 2: 2, 0: 3}.get(head[1] >> 3 & 3)
    # Reserved values and the "free" bit rate give no length, so that no next frame could be found.
    layer = 4 - (head[1] >> 1 & 3)
    bitrate = head[2] >> 4
    rate = head[2] >> 2 & 3
    if version is None or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    rate_hz = _RATES_HZ[rate] >> (version - 1)
    bit_per_sec = 1000 * _KBIT[min(version, 2), layer][bitrate - 1]
    samples = 384 if layer == 1 else 576 if layer == 3 and version > 1 else 1152
    # Layer I counts its length in slots of four bytes, the others in bytes (11172-3, 2.4.3.1).
    slot = 4 if layer == 1 else 1
    size = (samples // 8 * bit_per_sec // rate_hz // slot + (head[2] >> 1 & 1)) * slot
    return Frame(version, layer, rate_hz, 1 if head[3] >> 6 == 3 else 2, samples, size)


def frame_at(head: bytes) -> Frame:
    """The frame that four bytes begin, known to be one."""
    frame = parse(head)
    assert frame is not None
    return frame


def scan(file: IO[bytes], size: int, is_sure: bool = True) -> Layout | None:
    """Hop over all frames of a file; None where it holds none.

    Args:
        is_sure: whether it begins as such files do; of others several frames in a row are asked for.
    """
    reader = _Reader(file)
    start = _first_frame(reader, 0, is_sure)
    if start is None:
        return None
    # The first frame may hold no sound but a table about the file (Xing, Info, VBRI).
    first = frame_at(reader.at(start, 4))
    info_at, info_size, claimed = _information(reader, start, first)
    frames = 0
    is_cut = False
    at = start + info_size
    # The sound's own first frame is what the others are compared with: an information frame may differ in bit rate.
    if info_size and (behind := parse(reader.at(at, 4))):
        first = behind
    # Count frame by frame: the file's own claim may be false.
    runs = [(at, at)]
    others = 0
    while at + 4 <= size:
        frame = parse(reader.at(at, 4))
        if frame is None or frame.layer != first.layer:
            # Rubbish between frames, or what looks like a frame of another kind: look behind it.
            # The frame of another kind is stepped over by one byte, or it would be found again.
            found = _next_frame(reader, at + (frame is not None))
            if found is None:
                break
            if reader.at(at, 3) in _TAGS:  # which decoders know: of a second file put behind the first
                runs[-1] = (runs[-1][0], found)
            else:
                runs.append((found, found))
            at = found
            continue
        if at + frame.size > size:
            is_cut = True
            break
        frames += 1
        at += frame.size
        runs[-1] = (runs[-1][0], at)
        # A few frames that differ are damage; three of them are another sound.
        others += (frame.rate_hz, frame.channels) != (first.rate_hz, first.channels)
    return Layout(
        start, at, frames, first, info_at, info_size, claimed, is_cut, tuple(runs), is_mixed=others >= _IN_A_ROW
    )


def honest(layout: Layout, size: int, start: bytes) -> list[Part]:
    """The file as a decoder may read it that believes what headers claim: with the number of frames that there are.

    Args:
        start: the first frame of the file, its information frame where it has one.
    """
    count = layout.frames.to_bytes(4, "big")
    # The claim is patched in place, where there is one, so that gapless playback data beside it stay.
    if layout.claimed and layout.info_at >= 0:
        if layout.claimed == layout.frames:
            return layout.parts
        patches = {layout.info_at + 8: count}
        # The second flag: the header gives the size in bytes too, which must fit as well.
        if start[layout.info_at - layout.start + 7] & 2:
            patches[layout.info_at + 12] = (layout.end - layout.start).to_bytes(4, "big")
        return [*patched(size, patches, layout.start, layout.start + layout.info_size), *layout.runs]
    # Layers I and II have no information frame that could be given to them.
    if layout.first.layer != 3:
        return layout.parts
    # Without an information frame a decoder guesses from the file's size: give it one. mpg123 then takes a decoder's
    # delay away, which it leaves where nothing is said of it; a silent frame in front, of which it is told, makes up.
    head = bytearray(start[:4])
    head[1] |= 1  # no checksum
    head[2] = (head[2] & 0x0D) | 0x90  # 128 or 80 kbit/s: room for the header; no padding
    frame = frame_at(bytes(head))
    silent = (bytes(head) + bytes(frame.side_bytes)).ljust(frame.size, b"\0")
    delay = ((frame.samples - _MPG123_DELAY) << 12).to_bytes(3, "big")
    about = b"Xing" + (1).to_bytes(4, "big") + (layout.frames + 1).to_bytes(4, "big")
    tag = about + b"LAME3.100".ljust(21, b"\0") + delay
    body = (bytes(head) + bytes(frame.side_bytes) + tag).ljust(frame.size, b"\0")
    return [body, silent, *layout.runs]


class _Reader:
    """Bytes of a file by offset, read in large pieces."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._start = 0
        self._data = b""

    def at(self, offset: int, count: int) -> bytes:
        inside = offset - self._start
        if inside < 0 or inside + count > len(self._data):
            self._file.seek(offset)
            self._start = offset
            self._data = self._file.read(max(count, _CHUNK))
            inside = 0
        return self._data[inside : inside + count]


def _behind_tags(reader: _Reader, at: int) -> int:
    """The byte after the ID3v2 tags that stand at `at`; a second file behind a first one brings its own."""
    while (head := reader.at(at, 10))[:3] == b"ID3" and len(head) == 10:
        # Sizes of seven bits a byte; a footer of ten bytes, where its flag is set (ID3v2.4, 3.1 and 3.4).
        at += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0)))
        at += 10 if head[5] & 0x10 else 0
    return at


def _first_frame(reader: _Reader, start: int, may_end: bool) -> int | None:
    """Where some frames in a row begin, behind the tags at `start` or a little later."""
    start = _behind_tags(reader, start)
    window = reader.at(start, _MOST_RUBBISH)
    # Every sync is tried, since sound and pictures are full of bytes that look like one.
    return next((start + at for at in _syncs(window) if _row(reader, start + at, may_end)), None)


def _next_frame(reader: _Reader, start: int) -> int | None:
    """As `_first_frame`, behind rubbish that may be longer."""
    for window_at in range(start, start + _MOST_BETWEEN, _MOST_RUBBISH):
        if not reader.at(window_at, 1):
            break
        if (found := _first_frame(reader, window_at, True)) is not None:
            return found
    return None


def _syncs(window: bytes) -> Iterator[int]:
    return (match.start() for match in _SYNC.finditer(window))


def _row(reader: _Reader, at: int, may_end: bool) -> bool:
    """Whether frames of one kind follow each other from here on; or, where that may end, up to the end or a tag."""
    first = None
    for number in range(_IN_A_ROW):
        # Version, layer and rate stay the same within a sound; bit rate and padding may change with each frame.
        head = reader.at(at, 4)
        frame = parse(head)
        if frame is None:
            return may_end and number > 0 and (len(head) < 4 or head[:3] in _TAGS)
        if first is not None and (frame.version, frame.layer, frame.rate_hz) != first:
            return False
        first = frame.version, frame.layer, frame.rate_hz
        at += frame.size
    return True


def _information(reader: _Reader, start: int, frame: Frame) -> tuple[int, int, int]:
    """(where its header stands or -1, its size or 0, frames claimed) of an information frame at `start`."""
    data = reader.at(start, frame.size)
    if frame.layer != 3:
        return -1, 0, 0
    at = 4 + frame.side_bytes
    # Xing and Info stand behind the side information, VBRI always 32 bytes behind the header.
    if data[at : at + 4] in (b"Xing", b"Info"):
        claimed = int.from_bytes(data[at + 8 : at + 12], "big") if data[at + 7 : at + 8] and data[at + 7] & 1 else 0
        return start + at, frame.size, claimed
    if data[36:40] == b"VBRI":
        return -1, frame.size, int.from_bytes(data[50:54], "big")
    return -1, 0, 0
