"""Writing sound: the one writer of wav and flac files, and what an output is written as.

A file appears whole or not at all; waves that are not finite are never written; what is beyond full scale is scaled by
`write_wav`, since a clipped sound would be another one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from os import fsencode
from pathlib import Path
from typing import IO

import numpy as np
import soundfile

from segue._version import __version__
from segue.audio.analyse import BITS
from segue.audio.sound import Header
from segue.files import replacing
from segue.types import UserError

SUFFIXES = {"wav": ".wav", "flac": ".flac"}
SUBTYPES = (*BITS, "FLOAT", "DOUBLE")
_LOSSLESS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF")
_FLAC_OF = {"PCM_U8": "PCM_S8", "PCM_32": "PCM_24", "FLOAT": "PCM_24", "DOUBLE": "PCM_24"}
_BYTES_OF = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "DOUBLE": 8}
_WAV_BYTES = 4_200_000_000  # beyond it, a 32-bit length cannot say how long the file is
_TAG_BYTES = 2000  # libsndfile passes over longer ones, and over all that come after them


@dataclass(frozen=True)
class OutputFormat:
    """Of an output file: `container` "wav" or "flac", sample encoding, sampling rate and channels."""

    container: str
    subtype: str
    rate_hz: int
    channels: int

    @property
    def full_scale(self) -> float | None:
        """Largest magnitude that it can hold; None where there is no limit."""
        return 1.0 + 2.0 ** (1 - BITS[self.subtype]) if self.subtype in BITS else None


def container_of(header: Header) -> str:
    """Files without loss keep theirs where it is wav or flac; others become wav, and lossy ones flac."""
    return "wav" if header.format in _LOSSLESS else "flac"


def output_format(header: Header, container: str, subtype: str | None, rate_hz: int) -> OutputFormat:
    """The format of an output; without a `subtype` that of the input, or 16 bits where its samples are lossy."""
    if subtype is None:
        subtype = header.subtype if header.subtype in SUBTYPES else "PCM_16"
    allowed = soundfile.available_subtypes(container.upper())
    if subtype not in allowed:
        subtype = _FLAC_OF.get(subtype, "PCM_16") if container == "flac" else "PCM_U8"
    return OutputFormat(container, subtype, rate_hz, header.channels)


def write_wav(
    path: Path, wave: np.ndarray, sample_rate_hz: int, title: str = "", comment: str = "", subtype: str = "PCM_16"
) -> float:
    """Write one wave [T] or [A, T] of any library, as flac or wav by the file's name; equal input, equal bytes.

    Samples of whole numbers end at full scale: a wave beyond it is scaled to it as a whole. FLOAT keeps every level.

    Args:
        title: the prompt, kept whole however long it is: what other programs do not read of it stands in the subject.
        subtype: encoding of the samples, such as PCM_24 or FLOAT.

    Returns:
        The gain that was applied; 1 where the wave is as it was.

    Raises:
        UserError: samples that are not finite, a full disk, or a place that cannot be written.
    """
    samples = np.atleast_2d(np.asarray(wave, dtype=np.float32)).T
    loudest = float(np.abs(samples).max(initial=0.0))
    _refuse_not_finite(path, loudest)
    tags = {"comment": comment, "software": f"segue {__version__}", "title": title}
    container = "flac" if path.suffix == SUFFIXES["flac"] else "wav"
    form = OutputFormat(container, subtype, sample_rate_hz, samples.shape[1])
    # One gain for the whole wave: a limiter would change the sound, a gain only its level.
    over = 1.0 if form.full_scale is None else max(1.0, loudest)
    write_sound(path, [samples / np.float32(over)], form, len(samples), tags)
    return 1.0 / over


def write_sound(
    path: Path, blocks: Iterable[np.ndarray], form: OutputFormat, samples: int, tags: dict[str, str]
) -> None:
    """Write a stream of [n, channels]; the file appears whole or not at all.

    Raises:
        UserError: samples that are not finite, a full disk, or a place that cannot be written.
    """
    # A wav of more than 4 GB needs the 64-bit form of the container.
    size = samples * form.channels * _BYTES_OF.get(form.subtype, 4)
    kind = "RF64" if form.container == "wav" and size > _WAV_BYTES else form.container.upper()
    settings = {"samplerate": form.rate_hz, "channels": form.channels, "subtype": form.subtype, "format": kind}
    with replacing(path) as temporary:
        try:
            file = soundfile.SoundFile(fsencode(temporary), "w", **settings)
        except soundfile.LibsndfileError as error:
            raise _cannot_write(path, error) from error
        with file:
            for tag, text in tags.items():
                if text:  # libsndfile takes an empty one for a fault
                    setattr(file, tag, text if kind == "FLAC" else _shortened(text))
            for block in blocks:
                _refuse_not_finite(path, float(np.abs(block).max(initial=0.0)))
                try:
                    file.write(block)
                except soundfile.LibsndfileError as error:
                    raise _cannot_write(path, error) from error
        # Only plain WAV: the subject is put behind libsndfile's back, whose RF64 has its size elsewhere.
        title = tags.get("title", "")
        if kind == "WAV" and _shortened(title) != title:
            _add_subject(temporary, title)
        if form.container == "wav" and form.full_scale is None:
            _forget_time(temporary)
        # libsndfile says nothing of a header or a last block that it could not write.
        if soundfile.info(fsencode(temporary)).frames != samples:
            raise UserError(f"{path}: could not be written whole; hint: see that the disk has room")


def copy(source: Path, path: Path) -> None:
    """Copy a file; the copy appears whole or not at all.

    Raises:
        UserError: the disk is full, or the place cannot be written.
    """
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)


def is_plain(path: Path, frames: int) -> bool:
    """Whether other programs read as much of a file as we do; one that was streamed, and says no length, is not."""
    try:
        return soundfile.info(fsencode(path)).frames == frames
    except soundfile.SoundFileError:
        return False


def _refuse_not_finite(path: Path, loudest: float) -> None:
    if not np.isfinite(loudest):
        raise UserError(
            f"{path}: not written, its samples are not finite; hint: another seed, or a checkpoint from before the "
            "training went wrong"
        )


def _shortened(text: str) -> str:
    """What of a text every reader takes: valid UTF-8 of at most so many bytes."""
    data = text.encode("utf-8", "backslashreplace")
    return data[:_TAG_BYTES].decode("utf-8", "ignore")


def _add_subject(path: Path, text: str) -> None:
    """Put a text of any length at the end of a wav, as the subject in its list of information."""
    data = text.encode("utf-8", "backslashreplace") + b"\0"
    data += b"\0" * (len(data) % 2)
    body = b"INFOISBJ" + len(data).to_bytes(4, "little") + data
    with path.open("r+b") as file:
        end = file.seek(0, 2)
        file.write(b"\0" * (end % 2) + b"LIST" + len(body).to_bytes(4, "little") + body)
        size = file.tell() - 8
        file.seek(4)
        file.write(size.to_bytes(4, "little"))


def _forget_time(path: Path) -> None:
    """Zero the time of writing that libsndfile puts into a float wav: equal sound, equal bytes."""
    with path.open("r+b") as file:
        at = 12
        # Chunk by chunk up to the samples, since a tag may hold the same letters.
        while len(head := _read_at(file, at, 8)) == 8 and head[:4] != b"data":
            if head[:4] == b"PEAK":
                file.seek(at + 12)
                file.write(bytes(4))
                return
            at += 8 + int.from_bytes(head[4:], "little")


def _read_at(file: IO[bytes], at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _cannot_write(path: Path, error: Exception) -> UserError:
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        free = None
    why = "the disk is full" if free is not None and free < 1 << 22 else f"cannot be written ({error})"
    return UserError(f"{path}: {why}; hint: free space, or name a folder that you may write to, and run it again")
