"""What an output is written as: container, sample encoding and tags, the input's own wherever that is sensible."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from segue.data.audio import Header
from segue.files import replacing
from segue.types import UserError
from segue.upsampling.survey import BITS

SUFFIXES = {"wav": ".wav", "flac": ".flac"}
SUBTYPES = (*BITS, "FLOAT", "DOUBLE")
_TAGS = ("title", "copyright", "software", "artist", "comment", "date", "album", "license", "tracknumber", "genre")
_FLAC_OF = {"PCM_U8": "PCM_S8", "PCM_32": "PCM_24", "FLOAT": "PCM_24", "DOUBLE": "PCM_24"}
_BYTES_OF = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "DOUBLE": 8}
_WAV_BYTES = 4_200_000_000  # beyond it, a 32-bit length cannot say how long the file is


@dataclass(frozen=True)
class Form:
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
    """Lossless files keep theirs where it is wav or flac; others become wav, and lossy ones flac."""
    return "flac" if header.format in ("FLAC", "OGG", "MP3", "MPEG") else "wav"


def form_of(header: Header, container: str, subtype: str | None, rate_hz: int) -> Form:
    """The form of an output; without a `subtype` that of the input, or 16 bits where its samples are lossy."""
    if subtype is None:
        subtype = header.subtype if header.subtype in SUBTYPES else "PCM_16"
    allowed = soundfile.available_subtypes(container.upper())
    if subtype not in allowed:
        subtype = _FLAC_OF.get(subtype, "PCM_16") if container == "flac" else "PCM_U8"
    return Form(container, subtype, rate_hz, header.channels)


def write_sound(path: Path, blocks: Iterable[np.ndarray], form: Form, samples: int, tags: dict[str, str]) -> None:
    """Write a stream of [n, channels]; the file appears whole or not at all.

    Raises:
        UserError: the disk is full, or the place cannot be written.
    """
    size = samples * form.channels * _BYTES_OF.get(form.subtype, 4)
    kind = "RF64" if form.container == "wav" and size > _WAV_BYTES else form.container.upper()
    settings = {"samplerate": form.rate_hz, "channels": form.channels, "subtype": form.subtype, "format": kind}
    with replacing(path) as temporary:
        try:
            file = soundfile.SoundFile(temporary, "w", **settings)
        except soundfile.LibsndfileError as error:
            raise _cannot_write(path, error) from error
        with file:
            for tag, text in tags.items():
                setattr(file, tag, text)
            for block in blocks:
                try:
                    file.write(block)
                except soundfile.LibsndfileError as error:
                    raise _cannot_write(path, error) from error
        # libsndfile says nothing of a header or a last block that it could not write.
        if soundfile.info(temporary).frames != samples:
            raise UserError(f"{path}: could not be written whole; mend: see that the disk has room")


def copy(source: Path, path: Path) -> None:
    """Copy a file; the copy appears whole or not at all.

    Raises:
        UserError: the disk is full, or the place cannot be written.
    """
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)


def read_tags(path: Path) -> dict[str, str]:
    """What a file says of itself beside its sound; only what libsndfile knows."""
    with soundfile.SoundFile(path) as file:
        return {tag: text for tag in _TAGS if (text := getattr(file, tag))}


def _cannot_write(path: Path, error: Exception) -> UserError:
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        free = None
    why = "the disk is full" if free is not None and free < 1 << 22 else f"cannot be written ({error})"
    return UserError(f"{path}: {why}; mend: free space, or name a folder that you may write to, and run it again")
