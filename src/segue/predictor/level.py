"""The level at which a predictor knows sounds: what `segue upsample` brings files to."""

from __future__ import annotations

from torch import Tensor

INPUT_RMS = 0.2  # of the low band: what `segue upsample` brings a file to
QUIETEST_RMS = 2e-3  # sounds below it are not raised further
RANDOM_LEVEL_DB = 9.0  # in training a crop may be so much louder or softer than its file


def level_gain(low: Tensor, samples: Tensor | None = None) -> Tensor:
    """[B, 1, 1] what brings band-limited waves [B, A, T] to the level that `segue upsample` gives files.

    Args:
        samples: [B], how many samples of each row are no padding; None: all.
    """
    power = low.square().mean(1).sum(-1) / (low.shape[-1] if samples is None else samples)
    return (INPUT_RMS / power.sqrt().clamp(min=QUIETEST_RMS))[:, None, None]
