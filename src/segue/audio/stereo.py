"""Channels: as many as a codec has, and what a model is given of a stereo pair, so that sounds keep their places."""

from __future__ import annotations

import math

import numpy as np

MODES = ("mid-side", "left-right")
_CORRELATED = 0.1  # channels that agree less have no common axis


def to_mono(samples: np.ndarray) -> np.ndarray:
    """[n, channels] -> [n], the mean of the channels."""
    return samples.mean(axis=1)


def fitted(samples: np.ndarray, channels: int) -> np.ndarray:
    """[n, any] -> [n, channels]: mono is the mean of all channels, and a mono sound is on both sides of a stereo one.

    Raises:
        ValueError: more than two channels, which stereo has no places for.
    """
    if channels == 1:
        return to_mono(samples)[:, None]
    if samples.shape[1] > channels:
        raise ValueError(samples.shape[1])
    return np.broadcast_to(samples, (len(samples), channels))


def axes(covariance: np.ndarray, mode: str) -> np.ndarray:
    """[channels, channels] orthogonal matrix from the channels to the model's input; its transpose is the way back.

    "left-right": the channels, the right one turned over where it is mostly the left one's opposite.
    "mid-side": the axes along which the pair varies most and least over the file (our definition): mid and side for a
    mix about the middle, other axes where the mix is off centre.

    Either way a single source at any place reaches the model as one signal at two loudnesses, or on one axis alone,
    and comes out in its place exactly.
    """
    if len(covariance) == 1:
        return np.eye(1)
    left, right, cross = covariance[0, 0], covariance[1, 1], covariance[0, 1]
    # Without a floor, a silent channel would agree with anything.
    agree = abs(cross) > _CORRELATED * math.sqrt(max(left * right, 1e-30))
    if mode == "left-right":
        # Turned over, a pair in opposite phase reaches the model as one signal.
        return np.diag([1.0, -1.0 if agree and cross < 0 else 1.0])
    # The rotation that makes the pair's covariance diagonal: its principal axes.
    angle_rad = 0.5 * math.atan2(2.0 * cross, left - right) if agree else 0.0
    cosine = math.cos(angle_rad)
    sine = math.sin(angle_rad)
    return np.array([[cosine, sine], [-sine, cosine]])
