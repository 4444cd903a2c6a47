"""The predictor's network: frames of the low band in, levels of bands and the mix of their excitation out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FRAME_SEC = 0.008
SOURCES = 3  # of excitation: harmonic, shifted, noise
TYPICAL_LEVEL = -5.0  # decades of power of an upper band, where a sound's root mean square is 0.2
_FINE_HZ = 8000.0  # up to here bands are 250 Hz apart, above it 500 Hz


@dataclass(frozen=True)
class PredictorConfig:
    """Shape of a predictor.

    Attributes:
        sample_rate_hz: of what it makes; its own, and the only one.
        width, blocks, expansion: of the network; each block's hidden layer is `expansion` times as wide.
        kernel: frames that a block sees, odd.
    """

    sample_rate_hz: int = 16_000
    width: int = 192
    blocks: int = 4
    expansion: int = 3
    kernel: int = 7

    @property
    def hop_samples(self) -> int:
        """Samples of a frame of 8 ms, a multiple of 4 at every rate of sound in use."""
        return round(self.sample_rate_hz * FRAME_SEC / 4) * 4

    @property
    def window_samples(self) -> int:
        """Samples of a window: four frames."""
        return 4 * self.hop_samples

    @property
    def context_frames(self) -> int:
        """Frames to either side of a sample that what is made there depends on."""
        # The first layer sees as far as a block; windows, envelopes and filters reach four frames more.
        return (self.blocks + 1) * (self.kernel // 2) + 8


def band_centres_hz(sample_rate_hz: int) -> Tensor:
    """Centres of the bands from 125 Hz to half the rate."""
    top_hz = sample_rate_hz / 2
    fine = torch.arange(125.0, min(top_hz, _FINE_HZ), 250.0)
    coarse = torch.arange(_FINE_HZ + 250.0, max(top_hz, _FINE_HZ + 250.0), 500.0)
    return torch.cat([fine, coarse])


def band_weights(config: PredictorConfig) -> Tensor:
    """[bands, bins]: triangles between neighbouring centres that sum to 1 in every bin."""
    centres = band_centres_hz(config.sample_rate_hz).double()
    bins_hz = torch.linspace(0.0, config.sample_rate_hz / 2, config.window_samples // 2 + 1).double()
    # Beyond the outer centres the outermost bands go on unchanged.
    inside = bins_hz.clamp(centres[0], centres[-1])
    above = torch.searchsorted(centres, inside, right=True).clamp(1, len(centres) - 1)
    share = (inside - centres[above - 1]) / (centres[above] - centres[above - 1])
    columns = torch.arange(len(bins_hz))
    weights = torch.zeros(len(centres), len(bins_hz), dtype=torch.float64)
    weights[above - 1, columns] = 1.0 - share
    weights[above, columns] += share
    return weights.float()


class _Block(nn.Module):
    """ConvNeXt in one dimension (Liu et al. 2201.03545): a convolution a channel over time, then two dense layers."""

    def __init__(self, width: int, kernel: int, expansion: int) -> None:
        super().__init__()
        self.over_time = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.wider = nn.Linear(width, expansion * width)
        self.narrower = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.over_time(x.transpose(1, 2)).transpose(1, 2)
        return x + self.scale * self.narrower(F.gelu(self.wider(self.norm(y))))


class PredictorNetwork(nn.Module):
    """[B, L, features] -> levels, what mean power lies above them, and the mix, each by band."""

    def __init__(self, config: PredictorConfig, features: int, bands: int) -> None:
        super().__init__()
        self.bands = bands
        self.first = nn.Linear(features, config.width)
        self.over_time = nn.Conv1d(
            config.width, config.width, config.kernel, padding=config.kernel // 2, groups=config.width
        )
        self.blocks = nn.ModuleList(_Block(config.width, config.kernel, config.expansion) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.level = nn.Linear(config.width, bands)
        self.excess = nn.Linear(config.width, bands)
        self.mix = nn.Linear(config.width, SOURCES * bands)
        nn.init.constant_(self.level.bias, TYPICAL_LEVEL)

    def forward(self, features: Tensor, bf16: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Levels [B, L, bands] and excess [B, L, bands] >= 0 in decades of power; mix [B, L, SOURCES, bands], sum 1.

        Args:
            bf16: compute the blocks' products in bfloat16, as training does where that is faster.
        """
        with torch.autocast(features.device.type, torch.bfloat16, enabled=bf16):
            x = self.first(features)
            x = x + self.over_time(x.transpose(1, 2)).transpose(1, 2)
            for block in self.blocks:
                x = block(x)
        x = self.norm(x.float())
        # The excess learns from what the levels know, and does not move them.
        excess = F.softplus(self.excess(x.detach()) - 1.0)
        mix = self.mix(x).unflatten(-1, (SOURCES, self.bands)).softmax(dim=-2)
        return self.level(x), excess, mix
