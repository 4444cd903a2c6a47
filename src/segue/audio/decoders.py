"""How a sound file is opened: by libsndfile, by PyAV, or by the program ffmpeg, whichever counts its samples rightly.

libsndfile reads what is not compressed, FLAC and Ogg. It takes the length of an MP3 from its headers, if need be by a
guess, and loses its place where it is sought in; so PyAV or ffmpeg decode MP3 where one is installed, and otherwise
libsndfile is shown a file whose header is honest (mpeg.py), and never seeks. M4A, AAC, WebM and the like need one of
the two. A demuxer is always named, so that no file is taken for a list of other files.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from os import fsencode
from pathlib import Path
from types import ModuleType
from typing import IO

import numpy as np
import soundfile

from segue.audio.containers import MIXED, NAMES, Container, look
from segue.audio.overlay import overlaid
from segue.audio.sound import BLOCK_SAMPLES, BadAudio, Header, SoundPath, refuse_header

HINT = "hint: pip install 'segue-audio[decoders]', or install ffmpeg"
_DEMUXERS = {
    "mpeg": "mp3", "mp4": "mov", "aac": "aac", "matroska": "matroska", "asf": "asf", "caf": "caf", "wav": "wav",
    "ogg": "ogg", "aiff": "aiff", "wavpack": "wv", "ape": "ape",
}  # fmt: skip
_FORMATS = {"mpeg": "MP3", "aac": "ADTS"}
_MOST_BAD_SHARE = 0.01  # of packets that cannot be decoded: some files begin or end with half a frame
_MOST_LOST_SHARE, _MOST_LOST_SEC = 0.02, 0.2  # of a WebM's sound by its own account
_PADDING = 4096  # samples that an encoder may have put behind the end of an MP4's sound
_SIZED = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")  # encodings whose size says how long the sound is


class Source:
    """An open sound file.

    Attributes:
        header: `frames` as the file says it; 0 where it does not.
        is_exact: whether a file with fewer samples than that was cut.
        can_seek: whether `blocks` may begin anywhere at no cost.
    """

    header: Header
    is_exact: bool
    can_seek: bool

    def blocks(self, block_frames: int, first: int = 0) -> Iterator[np.ndarray]:
        """Float32 [n, channels] from sample `first` on, up to the end; once only.

        Raises:
            BadAudio: damaged.
        """
        raise NotImplementedError


@contextmanager
def opened(path: SoundPath) -> Iterator[Source]:
    """Open a sound file of any kind.

    Raises:
        BadAudio: not a sound file, cut short, of a kind that is not read, or of a rate or channel count that no
            recording has.
    """
    container = look(path)
    with ExitStack() as stack:
        source = _source(path, container, stack)
        refuse_header(path, source.header)
        yield source


def block_frames_of(channels: int) -> int:
    """Frames of a block that all readers keep to: a header's channel count cannot make it large."""
    return max(1, BLOCK_SAMPLES // channels)


def _source(path: SoundPath, container: Container, stack: ExitStack) -> Source:
    # libsndfile guesses an MP3's length and loses its place in seeking, so the decoders come first where there are any.
    if container.kind == "mpeg" and _can_decode():
        return _decoded(path, container, stack)
    if container.kind in ("mp4", "aac", "matroska", "asf", "wavpack", "ape"):
        return _decoded(path, container, stack)
    try:
        return _sndfile(path, container, stack)
    except _NotOpened as error:
        # A container that libsndfile knows with an encoding that it does not: worth a second try.
        if container.kind in ("wav", "caf", "ogg", "aiff") and _can_decode():  # with a codec that libsndfile lacks
            return _decoded(path, container, stack)
        if container.encoding:
            raise BadAudio(path, f"{container.encoding}, which is not read without PyAV or ffmpeg; {HINT}") from error
        hint = f"; {HINT}" if container.kind == "caf" else ""
        raise BadAudio(path, f"unreadable: {error}{hint}") from error


@cache
def pyav() -> ModuleType | None:
    """PyAV, where it is installed."""
    try:
        import av
    except ImportError:
        return None
    return av


def _can_decode() -> bool:
    return pyav() is not None or shutil.which("ffmpeg") is not None


def _decoded(path: SoundPath, container: Container, stack: ExitStack) -> Source:
    if av := pyav():
        return _PyAV(av, path, container, stack)
    if program := shutil.which("ffmpeg"):
        return _Ffmpeg(program, path, container, stack)
    name = NAMES.get(container.kind, container.kind)
    raise BadAudio(path, f"{name}, which is not read without PyAV or ffmpeg; {HINT}")


# --- libsndfile -----------------------------------------------------------------------------------------------------


class _NotOpened(Exception):
    """libsndfile's message about a file that it does not open."""


def _sndfile(path: SoundPath, container: Container, stack: ExitStack) -> Source:
    files = []
    for parts in container.parts:
        try:
            source: bytes | IO[bytes]
            if parts:
                # Cut, streamed or joined files are shown as they should have been written.
                source = stack.enter_context(overlaid(path.open("rb"), parts))
            elif isinstance(path, Path):
                source = fsencode(path)  # a name need not be text
            else:  # members of a tar (data/tars.py)
                source = stack.enter_context(path.open("rb"))
            files.append(stack.enter_context(soundfile.SoundFile(source)))
        except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
            raise _NotOpened(_words(error)) from error
    return _Sndfile(path, files, container)


class _Sndfile(Source):
    """Of one file, or of several that were put end to end."""

    def __init__(self, path: SoundPath, files: list[soundfile.SoundFile], container: Container) -> None:
        first = files[0]
        if any((f.samplerate, f.channels) != (first.samplerate, first.channels) for f in files):
            raise BadAudio(path, MIXED)
        frames = sum(f.frames for f in files)
        self._limit = container.frames or frames
        if first.format == "FLAC" and frames > 1 << 40:  # libsndfile's way of saying that the file does not tell
            frames = self._limit = 0
        self._path = path
        self._files = files
        self.header = Header(first.samplerate, first.channels, min(frames, self._limit), first.format, first.subtype)
        # Only where the size gives the length is a shorter file certainly a cut one.
        self.is_exact = first.format == "FLAC" or first.subtype.startswith(_SIZED)
        self.can_seek = self.is_exact and len(files) == 1 and frames > 0

    def blocks(self, block_frames: int, first: int = 0) -> Iterator[np.ndarray]:
        left = self._limit - first if self._limit else None
        skip = first
        for file in self._files:
            try:
                if self.can_seek and skip:
                    file.seek(skip)
                    skip = 0
                # After its own seek, since soundfile's later ones would move a decoder that has kept its place.
                _never_seek(file)
                while left is None or left > 0:
                    block = file.read(block_frames, dtype="float32", always_2d=True)
                    if not len(block):
                        break
                    dropped = min(skip, len(block))
                    skip -= dropped
                    block = block[dropped : None if left is None else dropped + left]
                    left = None if left is None else left - len(block)
                    if len(block):
                        yield block
            except (soundfile.SoundFileError, ValueError) as error:
                raise BadAudio(self._path, f"truncated or damaged: {_words(error)}") from error


def _never_seek(file: soundfile.SoundFile) -> None:
    """soundfile seeks after each read to where it is: libsndfile cannot in some files, and does it wrongly in MP3."""
    # A private field of soundfile: where a version lacks it, its seeks come back, and no more than that.
    info = getattr(file, "_info", None)
    if info is not None:
        info.seekable = 0


def _words(error: Exception) -> str:
    text = getattr(error, "error_string", "") or str(error) or "libsndfile cannot read it"
    return text.removeprefix("Error : ").rstrip(".").lower()


# --- PyAV -----------------------------------------------------------------------------------------------------------


class _PyAV(Source):
    """By the libraries of ffmpeg, in this process."""

    is_exact = can_seek = False

    def __init__(self, av: ModuleType, path: SoundPath, container: Container, stack: ExitStack) -> None:
        self._path = path
        self._errors = (av.FFmpegError, ValueError)
        # An MPEG file is shown as its frames alone, without the rubbish and the tags between them.
        parts = container.layout.parts if container.layout else [(0, path.stat().st_size)]
        file = stack.enter_context(overlaid(path.open("rb"), parts))
        try:
            self._input = stack.enter_context(av.open(file, "r", format=_DEMUXERS[container.kind]))
        except self._errors as error:
            raise BadAudio(path, f"unreadable: {_av_words(error)}") from error
        if not self._input.streams.audio:
            raise BadAudio(path, "unreadable: it holds no sound")
        self._stream = self._input.streams.audio[0]
        self._frames = self._decoded()
        # The decoder knows what comes out, the container only what it was told.
        head = next(self._frames, None)
        if head is None:
            raise BadAudio(path, "zero length: no samples")
        rate_hz, self._head = head
        claimed = container.frames
        if claimed is None:
            base = self._stream.time_base
            claimed = round(self._stream.duration * base * rate_hz) if self._stream.duration and base else 0
        self._is_mp4 = container.kind == "mp4"
        # Of sound alone; beside a film the sound may be shorter than the whole.
        is_sound = container.kind == "matroska" and len(self._input.streams) == 1
        self._promised_sec = (self._input.duration or 0) / av.time_base if is_sound else 0.0
        codec = self._stream.codec_context.name.upper()
        kind = _FORMATS.get(container.kind, container.kind.upper())
        subtype = "MPEG_LAYER_III" if kind == "MP3" else codec
        self.header = Header(rate_hz, self._head.shape[1], max(0, claimed), kind, subtype)

    def _decoded(self) -> Iterator[tuple[int, np.ndarray]]:
        """(rate, float32 [n, channels]) of every frame that can be decoded."""
        bad = good = 0
        try:
            # A packet at a time: one that cannot be decoded is left out, instead of ending the file.
            for packet in self._input.demux(self._stream):
                try:
                    frames = packet.decode()
                except self._errors:
                    bad += 1
                    continue
                good += 1
                yield from ((frame.sample_rate, _samples(frame)) for frame in frames)
        except self._errors as error:
            raise BadAudio(self._path, f"truncated or damaged: {_av_words(error)}") from error
        # One bad packet is nothing: many files begin or end within a frame.
        if bad > max(1, _MOST_BAD_SHARE * (good + bad)):
            raise BadAudio(self._path, f"damaged: {bad:,} of its {good + bad:,} pieces cannot be decoded")

    def blocks(self, block_frames: int, first: int = 0) -> Iterator[np.ndarray]:
        pieces = self._all()
        # The frames of an MP4 end with the encoder's filling, and its header says how long the sound is without it.
        if self._is_mp4 and self.header.frames:
            pieces = _without_padding(pieces, self.header.frames)
        yield from _blocks_of(pieces, block_frames, first)

    def _all(self) -> Iterator[np.ndarray]:
        yield self._head
        count = len(self._head)
        for rate_hz, samples in self._frames:
            count += len(samples)
            # A stream may change its layout halfway; samples of different rates must not be joined.
            if (rate_hz, samples.shape[1]) != (self.header.sample_rate_hz, self.header.channels):
                raise BadAudio(self._path, MIXED)
            yield samples
        seconds = count / self.header.sample_rate_hz
        if seconds < (1 - _MOST_LOST_SHARE) * self._promised_sec - _MOST_LOST_SEC:
            raise BadAudio(self._path, f"damaged: {seconds:.2f} of {self._promised_sec:.2f} s can be decoded")


def _samples(frame) -> np.ndarray:
    """[n, channels] float32 of a decoded frame."""
    # PyAV gives planar samples as [channels, n], interleaved ones as [1, n * channels].
    data = frame.to_ndarray()
    data = data.T if frame.format.is_planar else data.reshape(-1, frame.layout.nb_channels)
    if data.dtype.kind == "f":
        return data.astype(np.float32)
    if data.dtype == np.uint8:
        return (data.astype(np.float32) - 128.0) / 128.0
    return data.astype(np.float32) / float(1 << 8 * data.dtype.itemsize - 1)


def _av_words(error: Exception) -> str:
    return (getattr(error, "strerror", "") or str(error) or type(error).__name__).splitlines()[0].lower()


# --- ffmpeg ---------------------------------------------------------------------------------------------------------


class _Ffmpeg(Source):
    """By the program ffmpeg, through a pipe."""

    is_exact = can_seek = False

    def __init__(self, program: str, path: SoundPath, container: Container, stack: ExitStack) -> None:
        self._path = path
        # ffmpeg reads names, not Python's files: a member of a tar is copied out for it.
        if not isinstance(path, Path):
            copy = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".sound"))  # noqa: SIM115
            with path.open("rb") as member:
                shutil.copyfileobj(member, copy)
            copy.flush()
            path = Path(copy.name)
        # Local files and a named demuxer only: a playlist in disguise could otherwise make ffmpeg fetch what it names.
        given: list[str | bytes] = [
            "-protocol_whitelist",
            "file,pipe",
            "-f",
            _DEMUXERS[container.kind],
            "-i",
            b"file:" + fsencode(path),
        ]
        # Messages go to a file: a full pipe that nobody reads would stop the program.
        self._errors = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        # AU says rate and channels in its head, and may be as long as it likes.
        words: list[str | bytes] = [
            program,
            "-nostdin",
            "-v",
            "error",
            *given,
            "-map",
            "0:a:0",
            "-f",
            "au",
            "-c:a",
            "pcm_f32be",
            "-",
        ]
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors)
        assert self._process.stdout is not None
        self._output = self._process.stdout
        stack.callback(self._stop)
        # The head of the AU stream: where samples begin, the rate in Hz, the number of channels.
        head = self._output.read(24)
        if len(head) < 24 or head[:4] != b".snd":
            raise BadAudio(self._path, f"unreadable: {self._complaint()}")
        data_at, _, _, rate_hz, channels = (int.from_bytes(head[i : i + 4], "big") for i in range(4, 24, 4))
        self._output.read(data_at - 24)
        kind = _FORMATS.get(container.kind, container.kind.upper())
        self.header = Header(
            rate_hz, channels, container.frames or 0, kind, "MPEG_LAYER_III" if kind == "MP3" else kind
        )

    def blocks(self, block_frames: int, first: int = 0) -> Iterator[np.ndarray]:
        yield from _blocks_of(self._all(block_frames), block_frames, first)

    def _all(self, block_frames: int) -> Iterator[np.ndarray]:
        channels = self.header.channels
        while data := self._output.read(4 * channels * block_frames):
            # The pipe may end within a sample; what is not whole is dropped.
            whole = len(data) // (4 * channels) * channels
            yield np.frombuffer(data, ">f4", whole).astype(np.float32).reshape(-1, channels)
        if self._process.wait() != 0:
            raise BadAudio(self._path, f"damaged: {self._complaint()}")

    def _complaint(self) -> str:
        self._errors.seek(0)
        # The last line says what went wrong; a damaged file can write a line for each frame.
        lines = self._errors.read(4096).decode(errors="replace").strip().splitlines()
        return lines[-1].lower()[:200] if lines else "ffmpeg cannot decode it"

    def _stop(self) -> None:
        self._process.kill()
        self._output.close()
        self._process.wait()


def _without_padding(pieces: Iterator[np.ndarray], frames: int) -> Iterator[np.ndarray]:
    """A sound without what its encoder filled its last frames with; whole where it is longer by more than that."""
    behind: list[np.ndarray] = []
    left = frames
    for piece in pieces:
        if left > 0:
            yield piece[:left]
            piece, left = piece[left:], left - len(piece[:left])
        behind.append(piece)
        # The claim was false then: better the padding than a cut sound.
        if sum(map(len, behind)) > _PADDING:
            yield from behind
            yield from pieces
            return


def _blocks_of(pieces: Iterator[np.ndarray], block_frames: int, first: int) -> Iterator[np.ndarray]:
    """Pieces of any length as blocks of `block_frames`, without the first `first` samples."""
    held: list[np.ndarray] = []
    count = 0
    for piece in pieces:
        dropped = min(first, len(piece))
        first -= dropped
        held.append(piece[dropped:])
        count += len(held[-1])
        while count >= block_frames:
            joined = np.concatenate(held)
            yield joined[:block_frames]
            held = [joined[block_frames:]]
            count = len(held[0])
    if count:
        yield np.concatenate(held)
