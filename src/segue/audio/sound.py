"""What a sound file says of itself, what decoding it shows, and when it cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

# Read by libsndfile, which comes with soundfile; and those that need PyAV or ffmpeg besides.
SNDFILE_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64"
)  # fmt: skip
DECODER_SUFFIXES = (".m4a", ".m4b", ".aac", ".webm", ".weba", ".mka", ".wma")
SUFFIXES = SNDFILE_SUFFIXES + DECODER_SUFFIXES
SILENT_PEAK = 2.0**-15  # one step of 16 bits
CLIPPED_PEAK = 0.9999
# 24 dB above full scale: more than any mix in floating point has, less than integers that were stored as floats, and
# than what a damaged float file decodes to.
LOUDEST_PEAK = 16.0
TOO_SHORT_SEC = 0.01
SAMPLE_RATES_HZ = (500, 1_000_000)  # a header beyond them is false, and a few bytes would become hours of sound
MOST_CHANNELS = 64  # ambisonics of the seventh order
BLOCK_SAMPLES = 1 << 18  # of all channels together


class StandIn(Protocol):
    """What may stand in for the Path of a sound file, such as a member of a tar: its bytes, and how many they are."""

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The bytes, seekable."""

    def stat(self) -> Any:
        """With the size as `st_size`."""


SoundPath = Path | StandIn


class BadAudio(Exception):
    """A sound file that cannot be used.

    Attributes:
        path: the file.
        reason: one phrase, fit for a list of bad files.
    """

    def __init__(self, path: SoundPath, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple:
        # By its two arguments: it may come from another process.
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class Header:
    """What a sound file is: `frames` samples per channel, container format and sample encoding."""

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


def refuse_header(path: SoundPath, header: Header) -> None:
    """
    Raises:
        BadAudio: a rate or channel count that no recording has.
    """
    lowest, highest = SAMPLE_RATES_HZ
    if not lowest <= header.sample_rate_hz <= highest:
        raise BadAudio(
            path, f"damaged: a sample rate of {header.sample_rate_hz:,} Hz ({lowest:,} to {highest:,} are read)"
        )
    if not 1 <= header.channels <= MOST_CHANNELS:
        raise BadAudio(path, f"damaged: {header.channels:,} channels (up to {MOST_CHANNELS} are read)")


def refuse_levels(path: SoundPath, block: np.ndarray) -> None:
    """Check samples [n, channels] of a file; every reader does, so that all commands leave out the same files.

    Raises:
        BadAudio: samples that are not finite, or beyond what any recording has.
    """
    # The largest magnitude shows NaN and infinity too: one pass for both.
    loudest = float(np.abs(block).max(initial=0.0))
    if not np.isfinite(loudest):
        raise BadAudio(path, "non-finite: NaN or infinite samples")
    if loudest > LOUDEST_PEAK:
        # The scale is guessed from the level: 16, 24 or 32 bits that nobody divided.
        scale = next((scale for scale in (2**15, 2**23, 2**31) if loudest <= scale), None)
        hint = f"; hint: integers stored as floats? divide them by {scale}" if scale else ""
        raise BadAudio(
            path, f"levels: samples of {loudest:.3g} times full scale (up to {LOUDEST_PEAK:g} are read){hint}"
        )
