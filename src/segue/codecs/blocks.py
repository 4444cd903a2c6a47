"""What our autoencoders are made of: ConvNeXt blocks on STFT frames, the STFT and its inverse, and the gate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:  # in typing from Python 3.11 on
    from typing_extensions import Self


@dataclass(frozen=True)
class FrameConfig:
    """Shapes of an autoencoder over STFT frames.

    Attributes:
        sample_rate_hz: rate of the waveforms.
        hop_samples: waveform samples per latent frame; the STFT inside hops by half of it, its window is twice it.
        channels: C, latent channels.
        encoder_width, decoder_width: features of the blocks.
        encoder_blocks: blocks at STFT rate, then at latent rate. decoder_blocks: at latent rate, then at STFT rate.
        expansion: hidden features of a block over its width.
        kernel: taps of a block's depthwise convolution.
        floor: smallest magnitude told from silence, where a full-scale sine reads 1.
        refinements: Griffin-Lim iterations of the decoder.
    """

    hop_hz: ClassVar[int]  # a hop is 32 samples for every so many Hz of the sample rate

    sample_rate_hz: int
    hop_samples: int
    channels: int
    encoder_width: int
    decoder_width: int
    encoder_blocks: tuple[int, int] = (2, 2)
    decoder_blocks: tuple[int, int] = (2, 4)
    expansion: int = 2
    kernel: int = 7
    floor: float = 1e-6
    refinements: int = 8

    @classmethod
    def for_rate(cls, sample_rate_hz: int, **changes) -> Self:
        """The default at another rate: the hop is scaled to keep the frame rate (a multiple of 32)."""
        hop_samples = 32 * max(1, round(sample_rate_hz / cls.hop_hz))
        return cls(sample_rate_hz=sample_rate_hz, hop_samples=hop_samples, **changes)

    @classmethod
    def from_json(cls, data: dict) -> Self:
        """From a JSON object, where tuples are lists."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)


class Block(nn.Module):
    """A one-dimensional ConvNeXt block on [B, L, D]: depthwise convolution, norm, two-layer MLP, scaled residual."""

    def __init__(self, width: int, expansion: int, kernel: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, expansion * width)
        self.contract = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        y = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return x + self.scale * self.contract(F.gelu(self.expand(self.norm(y))))


def blocks(count: int, width: int, expansion: int, kernel: int) -> nn.Sequential:
    """So many blocks, one after another."""
    return nn.Sequential(*(Block(width, expansion, kernel, 1 / max(count, 2)) for _ in range(count)))


class FrameNetwork(nn.Module):
    """An autoencoder over STFT frames, two of them to a latent frame, with windows of four hops.

    Subclasses define `sides`, `config`, the buffers `latent_mean` and `latent_std` [C], which serve the codec around
    them, and four methods. Training uses analyse, encode and predict; synthesise needs no gradient.

    Args:
        hop_samples: waveform samples per latent frame. refinements: Griffin-Lim iterations of a synthesis.
    """

    sides: int
    config: Any
    latent_mean: Tensor
    latent_std: Tensor
    window: Tensor

    def __init__(self, hop_samples: int, refinements: int) -> None:
        super().__init__()
        self.refinements = refinements
        self.stft_hop = hop_samples // 2
        self.window_samples = 4 * self.stft_hop
        self.bins = self.window_samples // 2 + 1
        self.register_buffer("window", torch.hann_window(self.window_samples), persistent=False)

    def analyse(self, wave: Tensor) -> Any:
        """Waveforms -> what the network sees of them."""
        raise NotImplementedError

    def encode(self, analysis: Any) -> tuple[Tensor, Tensor]:
        """An analysis -> posterior mean and log-variance, each [B, C, L]."""
        raise NotImplementedError

    def predict(self, latents: Tensor) -> Any:
        """[B, C, L] raw latents -> the analysis that they stand for."""
        raise NotImplementedError

    def synthesise(self, prediction: Any, samples: int) -> Tensor:
        """An analysis -> waveforms of so many samples."""
        raise NotImplementedError

    def centre_phase(self, frames: int, bins: int, device: torch.device) -> Tensor:
        """[frames, bins]: the phase of steady partials at the bins' centres, in step at every frame's middle."""
        frame = torch.arange(frames, device=device)[:, None]
        # Half a turn from bin to bin puts a frame's energy at its centre, so that a partial's bins start in step.
        quarter_turns = ((frame + 2) * torch.arange(bins, device=device)) % 4
        return quarter_turns * (torch.pi / 2)

    def sound(self, magnitude: Tensor, phase: Tensor) -> Tensor:
        """Magnitudes and first phases [B, frames, bins] -> [B, frames * stft_hop]: fast Griffin-Lim, then the gate."""
        return self._gate(self.istft(self.consistent(magnitude, phase, self.refinements)), magnitude)

    def consistent(self, magnitude: Tensor, phase: Tensor, iterations: int) -> Tensor:
        """Magnitudes with phases that fit them better than the first ones, complex [B, frames, bins]."""
        estimate = torch.polar(magnitude, phase)
        last = torch.zeros(*estimate.shape, 2, device=magnitude.device)
        for _ in range(iterations):
            # Real and imaginary parts apart: twice as fast as complex numbers on a CPU.
            consistent = torch.view_as_real(self.stft(self.istft(estimate)))
            # The acceleration of fast Griffin-Lim (Perraudin et al. 2013), by .9 of the last step.
            pushed = torch.add(1.9 * consistent, last, alpha=-0.9)
            last = consistent
            size = (pushed[..., 0].square() + pushed[..., 1].square()).clamp_min(1e-24)
            estimate = torch.view_as_complex(pushed * (magnitude * size.rsqrt())[..., None])
        return estimate

    def _gate(self, wave: Tensor, magnitude: Tensor) -> Tensor:
        """Take out what was smeared before an attack or after an end: our definition.

        No stretch of sound [B, frames * stft_hop] may be louder than twice what the frames on it and beside it were
        predicted to hold [B, frames, bins]; gains run linearly from one frame's middle to the next.
        """
        wanted, found = (x.square().sum(-1).sqrt() for x in (magnitude, self.stft(wave).abs()))
        gain = (2 * (wanted + 1e-7) / (found + 1e-7)).clamp(max=1)
        # The lowest of three neighbouring gains, since a window spreads over them.
        gain = -F.max_pool1d(-F.pad(gain, (1, 1), value=1.0)[:, None], 3, 1)
        return wave * F.interpolate(gain, scale_factor=self.stft_hop, mode="linear")[:, 0]

    def stft(self, wave: Tensor) -> Tensor:
        """[B, frames * stft_hop] -> [B, frames, bins], each frame centred on its hop; a full-scale sine reads 1."""
        side = (self.window_samples - self.stft_hop) // 2
        frames = F.pad(wave, (side, side)).unfold(-1, self.window_samples, self.stft_hop)
        return torch.fft.rfft(frames * self.window) * (4 / self.window_samples)

    def istft(self, spectrum: Tensor) -> Tensor:
        """[B, frames, bins] -> [B, frames * stft_hop]: the least-squares inverse of `stft`."""
        frames = torch.fft.irfft(spectrum, self.window_samples) * (self.window * (self.window_samples / 4))
        count = frames.shape[1]
        hop = self.stft_hop
        side = (self.window_samples - self.stft_hop) // 2
        squares = (self.window**2).expand(1, count, -1)
        wave, envelope = (_overlap(x, hop) for x in (frames, squares))
        # Windows overlap to a sum that is not flat at the ends: divided by it, the inverse is least squares.
        return (wave / envelope.clamp_min(1e-3))[:, side : side + count * hop]


def _overlap(frames: Tensor, hop: int) -> Tensor:
    """Add [B, frames, 4 hop] at every hop -> [B, (frames + 3) hop]."""
    parts = frames.unflatten(-1, (4, hop))
    return reduce(torch.add, (F.pad(parts[:, :, k], (0, 0, k, 3 - k)) for k in range(4))).flatten(1)
