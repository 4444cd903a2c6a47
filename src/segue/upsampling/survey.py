"""One pass over a file before any work: what it holds, how loud it is, which way its stereo leans."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segue.data.audio import CLIPPED_PEAK, SILENT_PEAK, Header, read_blocks
from segue.upsampling.bandwidth import Bandwidth, detect, frame_samples

BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_FRAMES = 2000  # spectra taken of a file, evenly spread
_BLOCK_SEC = 0.1
_ACTIVE_SHARE = 1e-4  # of the loud blocks' power: 40 dB below them is pause
_CORRELATED = 0.1  # channels that agree less are left as they are


@dataclass(frozen=True)
class Survey:
    """What a file holds.

    Attributes:
        peak: largest magnitude on any channel.
        clipped: samples at full scale.
        offset: [channels] mean (DC).
        rms: root mean square over all channels, offset removed.
        angle_rad: of the stereo image's main axis: 0 is left, pi/4 the middle, pi/2 right; 0 for mono.
        axis_rms: [channels] root mean square along the axes (main, then across), over all that is not pause.
        silent_peak: what does not exceed this is silence: one step of the samples, at least one of 16 bits.
        bandwidth: where its band ends.
    """

    peak: float
    clipped: int
    offset: np.ndarray
    rms: float
    angle_rad: float
    axis_rms: np.ndarray
    silent_peak: float
    bandwidth: Bandwidth


def survey(path: Path, header: Header) -> Survey:
    """Read a mono or stereo file once, in pieces.

    Raises:
        BadAudio: damaged, truncated or non-finite.
    """
    rate_hz = header.sample_rate_hz
    n_fft = frame_samples(rate_hz)
    step = max(n_fft // 2, header.frames // _FRAMES)
    piece = max(1, round(rate_hz * _BLOCK_SEC))
    peak, clipped, sums, moments, counts, spectra, following = 0.0, 0, [], [], [], [], 0
    # Blocks of whole pieces; a frame that would cross a block's end begins the next one.
    for block in read_blocks(path, header, piece * 80):
        magnitude = np.abs(block)
        peak = max(peak, float(magnitude.max()))
        clipped += int((magnitude >= CLIPPED_PEAK).sum())
        for start in range(0, len(block), piece):
            part = block[start : start + piece].astype(np.float64)
            sums.append(part.sum(axis=0))
            moments.append(part.T @ part)
            counts.append(len(part))
        while following + n_fft <= len(block):
            spectra.append(_power(block[following : following + n_fft], n_fft))
            following += step
        following = max(0, following - len(block))
    if not spectra:  # shorter than a frame
        spectra.append(_power(block, n_fft))
    sums, moments, counts = np.array(sums), np.array(moments), np.array(counts)
    offset = sums.sum(axis=0) / counts.sum()
    outer = sums[:, :, None] * offset
    centred = moments - outer - outer.swapaxes(1, 2) + counts[:, None, None] * np.outer(offset, offset)
    bits = BITS.get(header.subtype)
    angle_rad, axis_rms = _axes(centred, counts)
    return Survey(
        peak=peak,
        clipped=clipped,
        offset=offset,
        rms=math.sqrt(max(0.0, centred.sum(axis=0).trace()) / counts.sum() / header.channels),
        angle_rad=angle_rad,
        axis_rms=axis_rms,
        silent_peak=max(SILENT_PEAK, 2.0 ** (1 - bits) if bits else 0.0),
        bandwidth=detect(np.stack(spectra, axis=1), rate_hz, bits),
    )


def _power(frame: np.ndarray, n_fft: int) -> np.ndarray:
    """[n, channels] -> [bins] of the louder channel, a full-scale sine reading 1."""
    frame = np.pad(frame - frame.mean(axis=0), [(0, n_fft - len(frame)), (0, 0)])
    window = np.hanning(n_fft + 1)[:-1]
    spectrum = np.fft.rfft(frame * window[:, None], axis=0) * (2.0 / window.sum())
    return (np.abs(spectrum) ** 2).max(axis=1).astype(np.float32)


def _axes(moments: np.ndarray, counts: np.ndarray) -> tuple[float, np.ndarray]:
    """Angle of the main axis and the root mean square along both, over what is not pause.

    A source that stands anywhere between the speakers lies on one axis alone, so nothing is made up across it. For a
    mix about the middle these axes are mid and side; for two channels that have nothing in common, left and right.
    """
    powers = moments.trace(axis1=1, axis2=2) / counts
    active = powers >= _ACTIVE_SHARE * np.quantile(powers, 0.95)
    shared = moments[active].sum(axis=0) / counts[active].sum()
    if len(shared) == 1:
        return 0.0, np.sqrt(np.maximum(shared[0], 0.0))
    left, right, cross = shared[0, 0], shared[1, 1], shared[0, 1]
    agree = abs(cross) > _CORRELATED * math.sqrt(max(left * right, 1e-30))
    angle_rad = 0.5 * math.atan2(2.0 * cross, left - right) if agree else 0.0
    axes = rotation(angle_rad)
    return angle_rad, np.sqrt(np.maximum(np.diag(axes @ shared @ axes.T), 0.0))


def rotation(angle_rad: float) -> np.ndarray:
    """[2, 2] from (left, right) to (along the main axis, across it); its transpose is the way back."""
    cosine, sine = math.cos(angle_rad), math.sin(angle_rad)
    return np.array([[cosine, sine], [-sine, cosine]])
