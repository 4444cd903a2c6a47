"""Reading sound files: any rate and channel count to mono float32 at the rate asked for, and what can be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import gcd, lcm
from pathlib import Path

import numpy as np
import soundfile
import soxr

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")
SILENT_PEAK = 2.0**-15  # one step of 16 bits
CLIPPED_PEAK = 0.9999
TOO_SHORT_SEC = 0.01
SAMPLE_RATES_HZ = (500, 1_000_000)  # beyond them a header lies, and a few bytes would become hours of sound
MOST_CHANNELS = 64  # ambisonics of the seventh order
BLOCK_SAMPLES = 1 << 18  # of all channels together
_LOUDEST_MP3 = 4.0  # times full scale; the decoder gives memory it never wrote for some damaged files
_MOST_CHUNKS = 10_000
_CONTEXT_SEC = 0.05  # read around a segment, so that the resampler's filter sees its neighbours


class BadAudio(Exception):
    """A sound file that cannot be used.

    Attributes:
        path: the file.
        reason: one phrase, fit for a list of bad files.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


@dataclass(frozen=True)
class Header:
    """What a sound file says of itself: `frames` samples per channel, container format and sample encoding."""

    sample_rate_hz: int
    channels: int
    frames: int
    format: str
    subtype: str

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.frames / self.sample_rate_hz


@dataclass(frozen=True)
class Levels:
    """What decoding a whole file showed: mono `peak`, and the share of samples at full scale on any channel."""

    peak: float
    clipped_share: float


def read_header(path: Path) -> Header:
    """The header of a sound file.

    Raises:
        BadAudio: not a sound file, truncated, of zero length, or of a rate or channel count that no recording has.
    """
    with _opened(path) as file:
        header = Header(file.samplerate, file.channels, file.frames, file.format, file.subtype)
    lowest, highest = SAMPLE_RATES_HZ
    if not lowest <= header.sample_rate_hz <= highest:
        raise BadAudio(
            path, f"damaged: a sample rate of {header.sample_rate_hz:,} Hz ({lowest:,} to {highest:,} are read)"
        )
    if not 1 <= header.channels <= MOST_CHANNELS:
        raise BadAudio(path, f"damaged: {header.channels:,} channels (up to {MOST_CHANNELS} are read)")
    if _is_cut(path, header.format):
        raise BadAudio(path, "truncated: the file ends before its sound does")
    if header.frames == 0:
        raise BadAudio(path, "zero length: no samples")
    return header


def examine(path: Path) -> tuple[Header, Levels]:
    """Decode a whole file in pieces and judge it.

    Raises:
        BadAudio: what `read_header` raises; damaged, non-finite, too short, silent.
    """
    header = read_header(path)
    if header.seconds < TOO_SHORT_SEC:
        raise BadAudio(path, f"too short: {1000 * header.seconds:.1f} ms")
    peak = loudest_channel = 0.0
    clipped = decoded = 0
    with _opened(path) as file:
        for block in _blocks(path, file):
            if not np.isfinite(block).all():
                raise BadAudio(path, "non-finite: NaN or infinite samples")
            decoded += len(block)
            magnitude = np.abs(block)
            loudest_channel = max(loudest_channel, float(magnitude.max()))
            clipped += int((magnitude >= CLIPPED_PEAK).any(axis=1).sum())
            peak = max(peak, float(np.abs(block.mean(axis=1)).max()))
    if decoded < header.frames:
        raise BadAudio(path, f"truncated: {decoded} of {header.frames} samples")
    if header.format == "MP3" and peak > _LOUDEST_MP3:
        raise BadAudio(path, f"damaged: decodes to {peak:.3g} times full scale")
    if header.format in ("MP3", "OGG"):  # a damaged one may play from its start, and be lost when sought in
        _refuse_unseekable(path, header)
    if peak <= SILENT_PEAK:
        raise BadAudio(path, "silent" if loudest_channel <= SILENT_PEAK else "silent: its channels cancel in mono")
    return header, Levels(peak, clipped / decoded)


def _refuse_unseekable(path: Path, header: Header) -> None:
    half = header.frames // 2
    with _opened(path) as file:
        found = sum(len(block) for block in _blocks(path, file, None, half, header.frames - half))
    if found < header.frames - half:
        raise BadAudio(path, f"damaged: {found} of its last {header.frames - half} samples can be found by seeking")


def read_blocks(path: Path, header: Header, block_frames: int | None = None) -> Iterator[np.ndarray]:
    """A whole file, piece by piece, as float32 [n, channels].

    Raises:
        BadAudio: damaged, truncated or non-finite.
    """
    decoded = 0
    with _opened(path) as file:
        for block in _blocks(path, file, block_frames):
            if not np.isfinite(block).all():
                raise BadAudio(path, "non-finite: NaN or infinite samples")
            decoded += len(block)
            yield block
    if decoded < header.frames:
        raise BadAudio(path, f"truncated: {decoded} of {header.frames} samples")


def read_wave(path: Path, sample_rate_hz: int) -> np.ndarray:
    """A whole file as float32 [T], the mean of its channels, at `sample_rate_hz`.

    Raises:
        BadAudio: unreadable, truncated, zero length, non-finite or silent.
    """
    path = Path(path) if isinstance(path, str) else path
    header = read_header(path)
    wave = read_segment(path, header, 0.0, header.seconds, (sample_rate_hz,))[0]
    if np.abs(wave).max(initial=0.0) <= SILENT_PEAK:
        raise BadAudio(path, "silent")
    return wave


def read_segment(
    path: Path, header: Header, start_sec: float, length_sec: float, sample_rates_hz: tuple[int, ...]
) -> list[np.ndarray]:
    """One stretch of a file as mono float32 [round(length_sec * rate)], once for each rate; zeros beyond its end.

    Raises:
        BadAudio: damaged, truncated or non-finite.
    """
    rate_hz = header.sample_rate_hz
    # Start where a sample of the file falls on a sample of every rate asked for: segments then join exactly.
    step = lcm(*(rate_hz // gcd(rate_hz, wanted) for wanted in sample_rates_hz))
    first = max(0, int((start_sec - _CONTEXT_SEC) * rate_hz) // step * step)
    last = min(header.frames, int(np.ceil((start_sec + length_sec + _CONTEXT_SEC) * rate_hz)))
    # Piece by piece, since a header may claim more than memory holds: what is kept is what was there.
    pieces, decoded = [np.zeros(0, np.float32)], 0
    with _opened(path) as file:
        for block in _blocks(path, file, None, first, last - first):
            pieces.append(block.mean(axis=1))
            decoded += len(block)
    if decoded < last - first:
        raise BadAudio(path, f"truncated: {first + decoded} of {header.frames} samples")
    mono = np.concatenate(pieces)
    if not np.isfinite(mono).all():
        raise BadAudio(path, "non-finite: NaN or infinite samples")
    return [_cut(mono, rate_hz, start_sec - first / rate_hz, length_sec, rate) for rate in sample_rates_hz]


def _cut(mono: np.ndarray, rate_hz: int, offset_sec: float, length_sec: float, wanted_hz: int) -> np.ndarray:
    resampled = mono if rate_hz == wanted_hz else soxr.resample(mono, rate_hz, wanted_hz)
    start, samples = round(offset_sec * wanted_hz), round(length_sec * wanted_hz)
    piece = resampled[start : start + samples]
    return np.pad(piece, (0, samples - len(piece))).astype(np.float32, copy=False)


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    with ExitStack() as opened:
        try:
            # libsndfile opens files by itself; members of a tar (data/tars.py) are handed to it.
            source = path if isinstance(path, (str, Path)) else opened.enter_context(path.open("rb"))
            file = opened.enter_context(soundfile.SoundFile(source))
        except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
            raise BadAudio(path, _why_not_sound(path, error)) from error
        yield file


def _blocks(
    path: Path, file: soundfile.SoundFile, block_frames: int | None = None, first: int = 0, frames: int = -1
) -> Iterator[np.ndarray]:
    block_frames = block_frames or max(1, BLOCK_SAMPLES // file.channels)
    try:
        if first:
            file.seek(first)
        yield from file.blocks(block_frames, frames=frames, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, ValueError) as error:
        raise BadAudio(path, f"truncated or damaged: {_words(error)}") from error


def _why_not_sound(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as unreadable:
        return f"unreadable: {unreadable.strerror}"
    if not start:
        return "zero length: an empty file"
    is_text = b"\0" not in start and start.decode("utf-8", errors="replace").count("\ufffd") <= 1
    return "unreadable: a text file, not sound" if is_text else f"unreadable: {_words(error)}"


def _words(error: Exception) -> str:
    text = getattr(error, "error_string", "") or str(error)
    return text.removeprefix("Error : ").rstrip(".").lower()


def _is_cut(path: Path, container: str) -> bool:
    """Whether the file is shorter than it says. libsndfile shortens wav, aiff, ogg and mp3 without a word."""
    if container == "FLAC":  # its header counts the samples, so decoding tells
        return False
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4096)
        file.seek(max(0, size - 66_000))  # an Ogg page holds at most 65,307 bytes
        end = file.read()
    if container in ("WAV", "WAVEX") and start[:4] == b"RIFF":
        return _chunk_end(path, "little", b"data") > size
    if container == "AIFF":
        return _chunk_end(path, "big", b"SSND") > size
    if container == "OGG":
        page = end.rfind(b"OggS")
        return page < 0 or page + 5 >= len(end) or not end[page + 5] & 4  # the last page carries the end-of-stream bit
    if container == "MP3":
        return _mp3_end(start) > size
    return False


def _chunk_end(path: Path, order: str, wanted: bytes) -> int:
    """Where an IFF chunk ends by its own account; 0 where there is none, or where a streamed file left it open."""
    with path.open("rb") as file:
        position = 12
        for _ in range(_MOST_CHUNKS):
            file.seek(position)
            head = file.read(8)
            if len(head) < 8:
                return 0
            length = int.from_bytes(head[4:], order)
            if head[:4] == wanted:
                return 0 if length >= 0x7FFFF000 else position + 8 + length
            position += 8 + length + length % 2
    raise BadAudio(path, f"damaged: more than {_MOST_CHUNKS:,} chunks before its sound")


def _mp3_end(start: bytes) -> int:
    """Where an MP3 ends by its Xing or Info header; 0 where it has none."""
    at = max(start.find(b"Xing"), start.find(b"Info"))
    if at < 0 or at + 16 > len(start) or not start[at + 7] & 2:
        return 0
    field = at + 8 + (4 if start[at + 7] & 1 else 0)
    tag = 10 + int.from_bytes(start[6:10], "big") if start[:3] == b"ID3" else 0  # of 7-bit bytes, equal below 128
    tolerance = 1024  # encoders differ in what they count
    return tag + int.from_bytes(start[field : field + 4], "big") - tolerance
