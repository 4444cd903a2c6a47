"""One pass over a file before any work: what it holds, how loud it is, how its channels agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segue.audio.bandwidth import Bandwidth, detect, frame_samples
from segue.audio.profile import Profile, profile
from segue.audio.read import read_blocks
from segue.audio.sound import CLIPPED_PEAK, SILENT_PEAK, Header

BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_FRAMES = 2000  # spectra taken of a file, evenly spread
_BLOCK_SEC = 0.1
_ACTIVE_SHARE = 1e-4  # of the loud blocks' power: 40 dB below them is pause


@dataclass(frozen=True)
class Analysis:
    """What a file holds.

    Attributes:
        frames: samples of each channel, counted.
        peak: largest magnitude on any channel.
        clipped: samples at full scale.
        offset: [channels] mean (DC).
        rms: root mean square over all channels, offset removed.
        covariance: [channels, channels] of the channels, offset removed, over all that is not pause.
        silent_peak: what does not exceed this is silence: one step of the samples, at least one of 16 bits.
        bandwidth: where its band ends.
        profile: how loud it is in each band.
    """

    frames: int
    peak: float
    clipped: int
    offset: np.ndarray
    rms: float
    covariance: np.ndarray
    silent_peak: float
    bandwidth: Bandwidth
    profile: Profile


def analyse(path: Path, header: Header) -> Analysis:
    """Read a mono or stereo file once, in pieces.

    Args:
        header: as `read_claim` gives it; its length serves to spread the spectra, and need not be right.

    Raises:
        BadAudio: damaged, truncated, non-finite, or beyond any level.
    """
    rate_hz = header.sample_rate_hz
    n_fft = frame_samples(rate_hz)
    # Half a frame between spectra is enough; of long files fewer are taken, so that memory stays bounded.
    step = max(n_fft // 2, header.frames // _FRAMES)
    piece = max(1, round(rate_hz * _BLOCK_SEC))
    # What is gathered: levels, sums and products of pieces, and spectra spread over the whole file.
    peak = 0.0
    clipped = 0
    following = 0
    spectra: list[np.ndarray] = []
    sums_of: list[np.ndarray] = []
    moments_of: list[np.ndarray] = []
    counts_of: list[int] = []
    # Blocks of whole pieces; a frame that would cross a block's end begins the next one.
    for block in read_blocks(path, piece * 80):
        magnitude = np.abs(block)
        peak = max(peak, float(magnitude.max()))
        clipped += int((magnitude >= CLIPPED_PEAK).sum())
        for start in range(0, len(block), piece):
            # Sums of squares over a long file lose their last digits in float32.
            part = block[start : start + piece].astype(np.float64)
            sums_of.append(part.sum(axis=0))
            moments_of.append(part.T @ part)
            counts_of.append(len(part))
        # `following` counts from this block's start; a frame's place may lie beyond its end.
        while following + n_fft <= len(block):
            spectra.append(_power(block[following : following + n_fft], n_fft))
            following += step
        following = max(0, following - len(block))
        # Halving the density keeps the spectra spread evenly over what has been read so far.
        if len(spectra) > 2 * _FRAMES:  # longer than was claimed
            spectra = spectra[::2]
            step *= 2
    if not spectra:  # shorter than a frame
        spectra.append(_power(block, n_fft))
    # Products about the mean of the whole file, which is known only now: E[xy] is corrected, not read again.
    sums = np.array(sums_of)
    moments = np.array(moments_of)
    counts = np.array(counts_of)
    offset = sums.sum(axis=0) / counts.sum()
    outer = sums[:, :, None] * offset
    centred = moments - outer - outer.swapaxes(1, 2) + counts[:, None, None] * np.outer(offset, offset)
    bits = BITS.get(header.subtype)
    power = np.stack(spectra, axis=1)
    return Analysis(
        frames=int(counts.sum()),
        peak=peak,
        clipped=clipped,
        offset=offset,
        rms=math.sqrt(max(0.0, centred.sum(axis=0).trace()) / counts.sum() / header.channels),
        covariance=_covariance(centred, counts),
        silent_peak=max(SILENT_PEAK, 2.0 ** (1 - bits) if bits else 0.0),
        bandwidth=detect(power, rate_hz, bits),
        profile=profile(power, rate_hz),
    )


def _power(frame: np.ndarray, n_fft: int) -> np.ndarray:
    """[n, channels] -> [bins] of the louder channel, a full-scale sine reading 1."""
    # The mean is taken off first: a DC offset would spill over the lowest bins through the window's lobes.
    frame = np.pad(frame - frame.mean(axis=0), [(0, n_fft - len(frame)), (0, 0)])
    # The periodic form of the window, as an FFT wants it; 2 / sum(window) makes a full-scale sine read 1.
    window = np.hanning(n_fft + 1)[:-1]
    spectrum = np.fft.rfft(frame * window[:, None], axis=0) * (2.0 / window.sum())
    return (np.abs(spectrum) ** 2).max(axis=1).astype(np.float32)


def _covariance(moments: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of all pieces that are not pause: within 40 dB of the loud ones."""
    powers = moments.trace(axis1=1, axis2=2) / counts
    # The loud blocks are a quantile, not the maximum: one click must not turn all the rest into pause.
    active = powers >= _ACTIVE_SHARE * np.quantile(powers, 0.95)
    return moments[active].sum(axis=0) / counts[active].sum()
