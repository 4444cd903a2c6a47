"""Rows of a cache to be: read, placed in their window, varied, and encoded by codec and teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from segue.audio.read import read_segment
from segue.audio.sound import BadAudio, Header
from segue.audio.stereo import to_mono
from segue.data.cache import DTYPES
from segue.data.cache_layout import CONTEXT_FRAMES, Parts, Segment
from segue.types import UserError

Waves = list[np.ndarray]  # of one row: [A, T] for the codec, and, where there is a teacher, [T] for that


class Unread(UserError):
    """A file that was fine when it was inspected, and is not when it is encoded.

    Attributes:
        path, reason: which, and what is wrong with it now.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path}: {reason}; it could be read at first; hint: replace it, or --skip-bad to leave it out"
        )
        self.path = path
        self.reason = reason


def stretch_of(segment: Segment, parts: Parts) -> tuple[Header, float, float, tuple[int, ...], int]:
    """What is read of its file, as `read_stretch` takes it: the row's stretch, and its context."""
    header = cast(Header, segment.inspection.header)  # there, since the file can be used
    before, after = segment.context_sec or (0.0, 0.0)
    start_sec, length_sec = segment.start_sec - before, before + segment.length_sec + after
    return header, start_sec, length_sec, parts.rates_hz, parts.codec.audio_channels


def read_here(segment: Segment, parts: Parts) -> Waves:
    """`placed`, read in this thread."""
    return placed(segment, parts, lambda: read_segment(segment.clip.path, *stretch_of(segment, parts)))


def placed(segment: Segment, parts: Parts, read: Callable[[], list[np.ndarray]]) -> Waves:
    """A row's waveform for the codec, [A, T], and, where there is a teacher, for that: [T], the mean of the sides.

    A row with context has CONTEXT_FRAMES more on each side, for the codec alone.

    Raises:
        Unread: it cannot be read.
    """
    try:
        pieces = read()
    except BadAudio as error:
        raise Unread(segment.clip.path, error.reason) from error
    for_codec = _varied(pieces[0], segment, parts, parts.codec.sample_rate_hz, with_context=True)
    for_teacher = [
        to_mono(_varied(piece, segment, parts, rate_hz, with_context=False).T)
        for piece, rate_hz in zip(pieces[1:], parts.rates_hz[1:])
    ]
    return [for_codec, *for_teacher]


def _varied(piece: np.ndarray, segment: Segment, parts: Parts, rate_hz: int, with_context: bool) -> np.ndarray:
    """A piece [A, n] as its row has it: delayed, softened, filled up with zeros."""
    whole = round(parts.seconds * rate_hz)
    before = round(segment.variant.delay_sec * rate_hz)
    if segment.variant.gain_db:
        piece = piece * np.float32(10.0 ** (segment.variant.gain_db / 20.0))
    if segment.context_sec is not None:
        around = round(segment.context_sec[0] * rate_hz)
        if with_context:
            margin = CONTEXT_FRAMES * parts.codec.hop_samples
            whole, before = whole + 2 * margin, margin - around
        else:
            piece = piece[:, around : around + round(segment.length_sec * rate_hz)]
    # Two roundings may add a sample.
    return np.pad(piece, ((0, 0), (before, max(0, whole - before - piece.shape[1]))))[:, :whole]


@torch.inference_mode()
def encode_rows(parts: Parts, segments: Sequence[Segment], waves: Sequence[Waves]) -> dict[str, Tensor]:
    """Latents [B, C, L] and teacher features [B, S, F] of rows, as they are stored."""
    latents = torch.empty(len(segments), parts.codec.channels, parts.frames)
    # Rows with context are longer: each kind is a batch of its own.
    for margin in (0, CONTEXT_FRAMES):
        at = [n for n, segment in enumerate(segments) if (segment.context_sec is not None) == (margin > 0)]
        if at:
            batch = torch.from_numpy(np.stack([waves[n][0] for n in at])).to(parts.device)
            latents[at] = parts.codec.encode(batch).float().cpu()[..., margin : margin + parts.frames]
    frames = torch.tensor([segment.frames for segment in segments])
    # Frames beyond the sound are zero, whatever the codec makes of the padding.
    latents = latents * (torch.arange(latents.shape[-1]) < frames[:, None])[:, None]
    tensors = {"latents": _stored(latents, parts, segments, "codec")}
    if parts.teacher is not None:
        features = parts.teacher.encode(torch.from_numpy(np.stack([row[1] for row in waves]))).float().cpu()
        tensors["teacher"] = _stored(features, parts, segments, "teacher")
    return tensors


def _stored(values: Tensor, parts: Parts, segments: Sequence[Segment], what: str) -> Tensor:
    stored = values.to(DTYPES[parts.dtype])
    # Checked as stored: float16 may overflow where float32 was finite.
    fine = stored.flatten(1).isfinite().all(dim=1)
    if not bool(fine.all()):
        # The first bad row names the file; the cause decides which hint helps.
        path = segments[int((~fine).nonzero()[0])].clip.path
        hint = "--dtype float32" if bool(values.isfinite().all()) else f"try another {what}"
        raise UserError(f"{path}: the {what} gives values that {parts.dtype} cannot hold; hint: {hint}")
    return stored.contiguous()
