"""Reading sound files of any kind: headers, whole files, stretches of them, and what can be wrong with them.

All waves are float32, of as many channels as are asked for: mono is the mean of the channels, stereo is left and right,
and a mono file is on both sides; more than two channels have no places in stereo, and are refused. What a header claims
is never believed beyond what can be decoded: samples are counted as they come, block by block, and checked alike
(`sound.refuse_levels`) by every reader.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import ceil, gcd, lcm
from pathlib import Path
from threading import Lock

import numpy as np

from segue.audio.decoders import Source, block_frames_of, opened
from segue.audio.resample import resample
from segue.audio.sound import (
    CLIPPED_PEAK,
    SILENT_PEAK,
    TOO_SHORT_SEC,
    BadAudio,
    Header,
    Levels,
    refuse_levels,
)
from segue.audio.stereo import fitted

_CONTEXT_SEC = 0.05  # read around a stretch, so that the resampler's filter sees its neighbours


def read_claim(path: Path) -> Header:
    """The header of a sound file as the file says it: quick, and no more than a guess for compressed kinds.

    Raises:
        BadAudio: not a sound file, truncated, or of a rate or channel count that no recording has.
    """
    with opened(path) as source:
        return source.header


def read_header(path: Path) -> Header:
    """The header of a sound file, its samples counted; files whose header does not tell are decoded for it.

    Raises:
        BadAudio: not a sound file, truncated, of zero length, or of a rate or channel count that no recording has.
    """
    with opened(path) as source:
        header = source.header
        if not source.is_exact or not header.frames:
            blocks = source.blocks(block_frames_of(header.channels))
            header = replace(header, frames=sum(len(block) for block in blocks))
    if header.frames == 0:
        raise BadAudio(path, "zero length: no samples")
    return header


def examine(path: Path, channels: int = 1) -> tuple[Header, Levels]:
    """Decode a whole file in pieces and check it.

    Args:
        channels: as which it will be read: 1 or 2.

    Raises:
        BadAudio: what `read_header` raises; damaged, non-finite, beyond any level, too short, silent; more than
            two channels, where it will be read as stereo.
    """
    # Loudness is judged in what is trained on; clipping on each channel, where it happened.
    peak = loudest_channel = 0.0
    clipped = decoded = 0
    with opened(path) as source:
        for block in _judged(path, source):
            decoded += len(block)
            magnitude = np.abs(block)
            loudest_channel = max(loudest_channel, float(magnitude.max()))
            clipped += int((magnitude >= CLIPPED_PEAK).any(axis=1).sum())
            peak = max(peak, float(np.abs(_fitted(path, block, channels)).max()))
        header = replace(source.header, frames=decoded)
    # Length and silence are known only at the end, and both count what was decoded, not what was claimed.
    _refuse_short(path, header)
    if peak <= SILENT_PEAK:
        raise BadAudio(
            path,
            "silent"
            if loudest_channel <= SILENT_PEAK
            else "silent: its channels cancel in mono, and only a stereo codec keeps them",
        )
    return header, Levels(peak, clipped / decoded)


def read_blocks(path: Path, block_frames: int | None = None) -> Iterator[np.ndarray]:
    """A whole file, piece by piece, as [n, channels].

    Raises:
        BadAudio: damaged, truncated, non-finite, or beyond any level.
    """
    with opened(path) as source:
        yield from _judged(path, source, block_frames)


def read_wave(path: Path | str, sample_rate_hz: int) -> np.ndarray:
    """A whole file as mono [T] at `sample_rate_hz`, decoded once.

    Raises:
        BadAudio: what `examine` raises, but for a file that is merely short.
    """
    mono, rate_hz = read_mono(path)
    # The length is fixed by rounding here: resamplers may give a sample more or less.
    samples = round(len(mono) / rate_hz * sample_rate_hz)
    wave = resample(mono, rate_hz, sample_rate_hz)[:samples]
    return np.pad(wave, (0, samples - len(wave)))


def read_mono(path: Path | str) -> tuple[np.ndarray, int]:
    """A whole file as mono [n] at its own rate, and that rate in Hz.

    Raises:
        BadAudio: as `read_wave`.
    """
    sound, rate_hz = read_sound(path, 1)
    return sound[0], rate_hz


def read_sound(path: Path | str, channels: int) -> tuple[np.ndarray, int]:
    """A whole file as [channels, n] at its own rate, and that rate in Hz.

    Raises:
        BadAudio: as `read_wave`; more than two channels where stereo is asked for.
    """
    path = Path(path) if isinstance(path, str) else path
    with opened(path) as source:
        sound = np.concatenate([_fitted(path, block, channels) for block in _judged(path, source)])
        rate_hz = source.header.sample_rate_hz
    if np.abs(sound).max() <= SILENT_PEAK:
        raise BadAudio(path, "silent")
    return np.ascontiguousarray(sound.T), rate_hz


def read_segment(
    path: Path,
    header: Header,
    start_sec: float,
    length_sec: float,
    sample_rates_hz: tuple[int, ...],
    channels: int = 1,
) -> list[np.ndarray]:
    """One stretch of a file; see `Stretches.read`."""
    with Stretches(path, header, sample_rates_hz, channels) as stretches:
        return stretches.read(start_sec, length_sec)


class Stretches:
    """Stretches of one file, each at several rates; read in order, they cost one pass over the file.

    Where the file can be sought in at no cost, it is; else one decoder goes forward, and begins anew for what lies
    behind it. May be used by several threads, one at a time.
    """

    def __init__(self, path: Path, header: Header, sample_rates_hz: Sequence[int], channels: int = 1) -> None:
        """
        Args:
            header: of the file, its samples counted: as `read_header` or `examine` gives it.
            channels: of what is read, 1 or 2.
        """
        self._path = path
        self._header = header
        self._rates_hz = tuple(sample_rates_hz)
        self._channels = channels
        self._lock = Lock()
        self._opened: ExitStack | None = None
        self._blocks: Iterator[np.ndarray] = iter(())
        self._held = np.zeros((0, channels), np.float32)
        self._start = 0  # sample of the file that `_held` begins with

    def __enter__(self) -> Stretches:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._close()

    def read(self, start_sec: float, length_sec: float) -> list[np.ndarray]:
        """A stretch as [channels, round(length_sec * rate)], once for each rate; zeros beyond the file's end.

        Raises:
            BadAudio: damaged, truncated, non-finite, or beyond any level.
        """
        rate_hz = self._header.sample_rate_hz
        # Start where a sample of the file falls on a sample of every rate asked for: stretches then join exactly.
        step = lcm(*(rate_hz // gcd(rate_hz, wanted) for wanted in self._rates_hz))
        first = max(0, int((start_sec - _CONTEXT_SEC) * rate_hz) // step * step)
        # Not beyond the file's end: what lies behind it is filled with zeros after resampling.
        last = min(self._header.frames, ceil((start_sec + length_sec + _CONTEXT_SEC) * rate_hz))
        with self._lock:
            sound = self._samples(first, max(first, last))
        return [_cut(sound, rate_hz, start_sec - first / rate_hz, length_sec, wanted) for wanted in self._rates_hz]

    def _samples(self, first: int, last: int) -> np.ndarray:
        """Samples [first, last) of the file, [n, channels]."""
        # Begin anew where the wanted stretch lies behind us, or far ahead in a file that can be sought in.
        end = self._start + len(self._held)
        if self._opened is None or first < self._start:
            self._open(first)
        elif first > end and self._can_seek:
            self._close()
            self._open(first)
        pieces = [self._held]
        end = self._start + len(self._held)
        # Piece by piece, since a header may claim more than memory holds: what is kept is what was there.
        while end < last and (block := next(self._blocks, None)) is not None:
            refuse_levels(self._path, block)
            piece = _fitted(self._path, block, self._channels)
            end += len(piece)
            if end <= first:
                self._start = end
                pieces = []
                continue
            pieces.append(piece)
        # Keep what the next stretch may share with this one.
        held = np.concatenate(pieces) if pieces else self._held[:0]
        dropped = min(max(0, first - self._start), len(held))
        self._held = held[dropped:]
        self._start += dropped
        if end < last:
            # The header's samples were counted once: fewer now mean that the file has changed or is damaged.
            raise BadAudio(self._path, f"truncated: {end:,} of {self._header.frames:,} samples")
        return self._held[: last - first]

    def _open(self, first: int) -> None:
        self._close()
        self._opened = ExitStack()
        source = self._opened.enter_context(opened(self._path))
        self._can_seek = source.can_seek
        self._start = first if source.can_seek else 0
        # A second at a time: many a stretch is no longer, and the next one continues from there.
        block_frames = min(block_frames_of(source.header.channels), source.header.sample_rate_hz)
        self._blocks = source.blocks(block_frames, self._start)

    def _close(self) -> None:
        if self._opened is not None:
            self._blocks = iter(())
            self._opened.close()
        self._opened = None
        self._held = self._held[:0].copy()


class Readers:
    """The files that were read last, kept open: many stretches of one file cost one pass over it. Thread-safe."""

    def __init__(self, sample_rates_hz: Sequence[int], most: int = 8, channels: int = 1) -> None:
        """
        Args:
            most: how many files are kept open.
            channels: of what is read, 1 or 2.
        """
        self._channels = channels
        self._rates_hz = tuple(sample_rates_hz)
        self._most = most
        self._open: OrderedDict[Path, Stretches] = OrderedDict()
        self._lock = Lock()

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_) -> None:
        for stretches in self._open.values():
            stretches.close()
        self._open.clear()

    def read(self, path: Path, header: Header, start_sec: float, length_sec: float) -> list[np.ndarray]:
        """As `Stretches.read`."""
        old = []
        with self._lock:
            # Taken out and put back at the end: the order of the dictionary is the order of use.
            stretches = self._open.pop(path, None) or Stretches(path, header, self._rates_hz, self._channels)
            self._open[path] = stretches
            while len(self._open) > self._most:
                old.append(self._open.popitem(last=False)[1])
        # Closed outside the lock: closing waits for whoever reads that file, and must not stop all others.
        for other in old:
            other.close()  # waits where it is being read; what comes of it later, opens it again
        return stretches.read(start_sec, length_sec)


def _judged(path: Path, source: Source, block_frames: int | None = None) -> Iterator[np.ndarray]:
    """All blocks of a file, checked as they come; at the end a cut file is reported."""
    decoded = 0
    # Only an exact header can convict a file; others claim what they like.
    claimed = source.header.frames if source.is_exact else 0
    for block in source.blocks(block_frames or block_frames_of(source.header.channels)):
        refuse_levels(path, block)
        decoded += len(block)
        yield block
    if decoded < claimed:
        raise BadAudio(path, f"truncated: {decoded:,} of {claimed:,} samples")
    if not decoded:
        raise BadAudio(path, "zero length: no samples")


def _fitted(path: Path, block: np.ndarray, channels: int) -> np.ndarray:
    """`stereo.fitted`, of a file."""
    try:
        return fitted(block, channels)
    except ValueError as error:
        raise BadAudio(
            path, f"{error} channels, where a stereo codec takes 1 or 2; hint: mix it down, as ffmpeg -ac 2 does"
        ) from None


def _refuse_short(path: Path, header: Header) -> None:
    if header.seconds < TOO_SHORT_SEC:
        raise BadAudio(path, f"too short: {header.frames} samples, {1000 * header.seconds:.1f} ms")


def _cut(sound: np.ndarray, rate_hz: int, offset_sec: float, length_sec: float, wanted_hz: int) -> np.ndarray:
    """[n, channels] -> [channels, round(length_sec * wanted_hz)]."""
    # Resampled with its neighbours and cut after that, so that the filter leaves no seam at the edges.
    made = resample(sound, rate_hz, wanted_hz)
    start = round(offset_sec * wanted_hz)
    samples = round(length_sec * wanted_hz)
    piece = made[start : start + samples]
    return np.pad(piece.T, ((0, 0), (0, samples - len(piece))))
