"""From one sampling rate to another (soxr HQ, linear phase): whole waves, and streams of blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import soxr


def resample(wave: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """A whole wave [n] or [n, channels] at another rate, float32."""
    made = wave if from_hz == to_hz else soxr.resample(wave, from_hz, to_hz)
    return made.astype(np.float32, copy=False)


def resampled(
    blocks: Iterable[np.ndarray], from_hz: int, to_hz: int, channels: int, total: int
) -> Iterator[np.ndarray]:
    """A stream of [n, channels] at another rate, exactly `total` samples long."""
    if from_hz == to_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_hz, to_hz, channels, dtype="float32", quality="HQ")
    left = total
    for block in _with_end(blocks, channels):
        # An empty block is the sign for the end: the filter then gives what it still holds.
        made = stream.resample_chunk(block, last=not len(block))[:left]
        left -= len(made)
        if len(made):
            yield made
    if left:
        yield np.zeros((left, channels), dtype=np.float32)


def _with_end(blocks: Iterable[np.ndarray], channels: int) -> Iterator[np.ndarray]:
    yield from blocks
    yield np.zeros((0, channels), dtype=np.float32)
