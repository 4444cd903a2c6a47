"""From one sampling rate to another without a droop: band-limited interpolation by FFT, for streams of any length.

Resamplers that work in streams let go before the band ends (soxr HQ at 91 % of it), which throws away the top of a file
that is to get a new band there. Here everything up to half the input's rate comes through as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

_BLEND_SAMPLES = 32768  # of the input, that neighbouring windows share: exact up to 1 Hz below half of 8 kHz
_BLENDS = 4  # in a window
_BETA = 12.0  # Kaiser's: 100 dB
_SIDE_SAMPLES = 1024  # of mirror image beyond either end of a short wave


def interpolated(
    blocks: Iterable[np.ndarray], from_hz: int, to_hz: int, channels: int, total: int
) -> Iterator[np.ndarray]:
    """A stream of [n, channels] at another rate, float32, exactly `total` samples long.

    The stream is cut into windows that fade into each other, each is interpolated by its Fourier series, and their sum
    is the sound again (our definition): a product with a smooth window needs little more band than the sound itself.
    On the way up, sines come out within 1e-4 of their amplitude at any frequency below 99.6 % of half the rate. Either
    end of the sound is continued by its odd mirror image, and exact only some distance away. Windows lie at fixed
    places, so that the result does not hang on how the stream is cut into blocks.
    """
    if from_hz == to_hz:
        yield from blocks
        return
    common = math.gcd(from_hz, to_hz)
    up, down = to_hz // common, from_hz // common
    # Whole periods of the ratio, so that windows begin on samples of both rates; no longer than the sound itself.
    wanted = max(1, min(_BLEND_SAMPLES, round(total * from_hz / to_hz)))
    blend = down * 2 ** max(0, math.floor(math.log2(wanted / down)))
    size = _BLENDS * blend
    made_blend, made_size = blend // down * up, size // down * up
    made_hop = made_size - made_blend
    # Rise and fall of neighbours add up to 1.
    rise = _rise(blend)
    taper = np.concatenate([rise, np.ones(size - 2 * blend), rise[::-1]])[:, None]

    tail = np.zeros((made_blend, channels))
    behind = made_blend  # of the mirror image before the start
    left = total
    for window in _windows(_continued(blocks, blend, rise[::-1, None]), size, blend, down):
        made = _at_length(window * taper, made_size)
        made[:made_blend] += tail
        tail = made[made_hop:].copy()
        ready = made[behind:made_hop][:left]
        behind = 0
        left -= len(ready)
        if len(ready):
            yield ready.astype(np.float32)
    if left:
        yield np.zeros((left, channels), dtype=np.float32)


def interpolate(wave: np.ndarray, from_hz: int, to_hz: int, samples: int) -> np.ndarray:
    """A short wave [n, channels] at another rate, [samples, channels]: as `interpolated`, in one piece."""
    if from_hz == to_hz:
        return wave[:samples]
    common = math.gcd(from_hz, to_hz)
    up, down = to_hz // common, from_hz // common
    side = down * -(-_SIDE_SAMPLES // down)
    # A size that the FFT is fast at: the image behind the end is as long as that takes, and meets that of the start.
    size = 2 * down * 2 ** math.ceil(math.log2((len(wave) + 2 * side) / (2 * down)))
    ends = [(side, size - len(wave) - side), (0, 0)]
    made = _at_length(np.pad(wave, ends, mode="reflect", reflect_type="odd"), size // down * up)
    return made[side // down * up :][:samples]


def _rise(samples: int) -> np.ndarray:
    """From 0 to 1: the running sum of a Kaiser window in the middle of its steps; with its mirror image it is 1."""
    window = np.kaiser(samples, _BETA)
    return (np.cumsum(window) - window / 2) / window.sum()


def _continued(blocks: Iterable[np.ndarray], length: int, fall: np.ndarray) -> Iterator[np.ndarray]:
    """The stream between `length` samples of its odd mirror image at its start, and as many at its end, fading out."""
    blocks = iter(blocks)
    # As much of the start as its image needs.
    gathered: list[np.ndarray] = []
    for block in blocks:
        gathered.append(block)
        if sum(map(len, gathered)) > length:
            break
    if not gathered:
        return
    recent = np.concatenate(gathered)
    yield np.pad(recent, [(length, 0), (0, 0)], mode="reflect", reflect_type="odd")[:length]
    yield recent
    for block in blocks:
        recent = np.concatenate([recent, block])[-length - 1 :]
        yield block
    yield np.pad(recent, [(0, length), (0, 0)], mode="reflect", reflect_type="odd")[-length:] * fall


def _windows(blocks: Iterable[np.ndarray], size: int, blend: int, down: int) -> Iterator[np.ndarray]:
    """Windows of `size` samples, each sharing `blend` of them with the next, with zeros behind the stream's end."""
    held = None
    for block in blocks:
        held = block if held is None else np.concatenate([held, block])
        while len(held) >= size:
            yield held[:size]
            held = held[size - blend :]
    # The end of the sound lies `blend` before the end of its image; `down` covers the rounding of the last sample.
    while held is not None and len(held) > blend - down:
        yield np.pad(held[:size], [(0, max(0, size - len(held))), (0, 0)])
        held = held[size - blend :]


def _at_length(period: np.ndarray, samples: int) -> np.ndarray:
    """[n, channels], one period of a wave -> [samples, channels], the same period at another rate; n is even."""
    spectrum = np.fft.rfft(period, axis=0)
    if samples > len(period):
        # Half the rate stands for both of its signs, and above it they are apart.
        spectrum[-1] *= 0.5
    return np.fft.irfft(spectrum[: samples // 2 + 1], samples, axis=0) * (samples / len(period))
