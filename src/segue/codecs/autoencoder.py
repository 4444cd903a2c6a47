"""A compact convolutional variational autoencoder: waveform -> STFT frames -> latents -> STFT frames -> waveform.

Nothing in it runs at the waveform's rate: ConvNeXt blocks (Liu et al. 2201.03545, in one dimension) work on STFT
frames, and the decoder ends in an inverse STFT as Vocos does (Siuzdak 2306.00814), so that a CPU can train it. Unlike
Vocos, whose input has no phase, the encoder sees the complex spectrum: without an adversary, a steady tone is decodable
only when its phase travels through the latents.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from segue.codecs.base import Codec
from segue.types import UserError

FORMAT = "segue-autoencoder-1"
WEIGHTS = "codec.safetensors"


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shapes of the autoencoder.

    Attributes:
        sample_rate_hz: rate of the waveforms.
        hop_samples: waveform samples per latent frame; the STFT inside hops by half of it, its window is 1.5 times it.
        channels: C, latent channels.
        encoder_width, decoder_width: features of the blocks.
        encoder_blocks: blocks at STFT rate, then at latent rate. decoder_blocks: at latent rate, then at STFT rate.
        expansion: hidden features of a block over its width.
        kernel: taps of a block's depthwise convolution.
        compression: exponent put on the magnitudes that the encoder sees.
    """

    sample_rate_hz: int = 16000
    hop_samples: int = 512
    channels: int = 32
    encoder_width: int = 192
    decoder_width: int = 256
    encoder_blocks: tuple[int, int] = (2, 2)
    decoder_blocks: tuple[int, int] = (2, 4)
    expansion: int = 2
    kernel: int = 7
    compression: float = 0.3

    @classmethod
    def for_rate(cls, sample_rate_hz: int, **changes) -> AutoencoderConfig:
        """The default at another rate: the hop is scaled to keep about 31 latent frames a second (a multiple of 32)."""
        return cls(sample_rate_hz=sample_rate_hz, hop_samples=32 * max(1, round(sample_rate_hz / 1000)), **changes)

    @classmethod
    def from_json(cls, data: dict) -> AutoencoderConfig:
        """From a JSON object, where tuples are lists."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


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


def _blocks(count: int, width: int, config: AutoencoderConfig) -> nn.Sequential:
    return nn.Sequential(*(Block(width, config.expansion, config.kernel, 1 / max(count, 2)) for _ in range(count)))


class Autoencoder(nn.Module):
    """The network: `encode` gives the posterior's mean and log-variance, `decode` a waveform. Latents here are raw.

    Buffers `latent_mean` and `latent_std` [C] hold the statistics by which AutoencoderCodec standardises.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = c = config
        self.stft_hop = c.hop_samples // 2
        self.window_samples = 3 * self.stft_hop
        bins = self.window_samples // 2 + 1
        wide, deep = c.encoder_width, c.decoder_width
        self.enter = nn.Linear(3 * bins, wide)
        self.encoder_fast = _blocks(c.encoder_blocks[0], wide, c)
        self.down = nn.Linear(2 * wide, deep)
        self.encoder_slow = _blocks(c.encoder_blocks[1], deep, c)
        self.to_posterior = nn.Sequential(nn.LayerNorm(deep), nn.Linear(deep, 2 * c.channels))
        self.from_latent = nn.Linear(c.channels, deep)
        self.decoder_slow = _blocks(c.decoder_blocks[0], deep, c)
        self.up = nn.Linear(deep, 2 * deep)
        self.decoder_fast = _blocks(c.decoder_blocks[1], deep, c)
        self.to_spectrum = nn.Sequential(nn.LayerNorm(deep), nn.Linear(deep, 3 * bins))
        self.register_buffer("latent_mean", torch.zeros(c.channels))
        self.register_buffer("latent_std", torch.ones(c.channels))
        window = torch.hann_window(self.window_samples)
        self.register_buffer("window", window, persistent=False)

    def encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T] -> mean [B, C, L] and log-variance [B, C, L], L = ceil(T / hop_samples)."""
        length = ceil(wave.shape[-1] / self.config.hop_samples) * self.config.hop_samples
        x = self.enter(self._features(F.pad(wave, (0, length - wave.shape[-1]))))
        x = self.encoder_fast(x)
        x = self.down(x.reshape(x.shape[0], x.shape[1] // 2, -1))
        posterior = self.to_posterior(self.encoder_slow(x)).transpose(1, 2)
        mean, log_variance = posterior.chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 4)

    def decode(self, latents: Tensor, samples: int) -> Tensor:
        """[B, C, L] raw latents -> [B, samples]."""
        x = self.decoder_slow(self.from_latent(latents.transpose(1, 2)))
        x = self.up(x).reshape(x.shape[0], 2 * x.shape[1], -1)
        log_scale, real, imag = self.to_spectrum(self.decoder_fast(x)).chunk(3, dim=-1)
        # A gain beside a linear complex part: magnitudes span 100 dB, and phase stays smooth in the features.
        gain = log_scale.clamp(max=8).exp()
        return self._overlap_add(torch.complex(gain * real, gain * imag))[:, :samples]

    def _features(self, wave: Tensor) -> Tensor:
        """[B, T] -> [B, 2L, 3 bins]: log magnitude, and the complex spectrum with compressed magnitude."""
        side = (self.window_samples - self.stft_hop) // 2
        spectrum = torch.stft(
            F.pad(wave, (side, side)),
            self.window_samples,
            self.stft_hop,
            window=self.window,
            center=False,
            return_complex=True,
        ).transpose(1, 2)
        magnitude = spectrum.abs()
        compressed = spectrum * magnitude.clamp_min(1e-8) ** (self.config.compression - 1)
        log_magnitude = (magnitude + 1e-3).log() / 3 + 1
        return torch.cat([log_magnitude, compressed.real, compressed.imag], dim=-1)

    def _overlap_add(self, spectrum: Tensor) -> Tensor:
        """[B, frames, bins] -> [B, frames * stft_hop]: least-squares inverse of the analysis above."""
        frames = torch.fft.irfft(spectrum, self.window_samples, dim=-1) * self.window
        count, hop, side = frames.shape[1], self.stft_hop, (self.window_samples - self.stft_hop) // 2
        squares = (self.window**2).expand(1, count, -1)
        wave, envelope = (_fold(x, hop) for x in (frames, squares))
        return (wave / envelope.clamp_min(1e-3))[:, side : side + count * hop]


def _fold(frames: Tensor, hop: int) -> Tensor:
    """Add [B, frames, 3 hop] at every hop -> [B, (frames + 2) hop]."""
    parts = frames.unflatten(-1, (3, hop))
    return sum(F.pad(parts[:, :, k], (0, 0, k, 2 - k)) for k in range(3)).flatten(1)


class AutoencoderCodec(Codec):
    """A trained autoencoder behind the codec interface: posterior means, standardised by the stored statistics.

    Encoding is deterministic.
    """

    name = "autoencoder"
    statistics = "channel"

    def __init__(self, network: Autoencoder) -> None:
        self.network = network.eval().requires_grad_(False)
        self.config = network.config
        self.sample_rate_hz = self.config.sample_rate_hz
        self.channels = self.config.channels
        self.hop_samples = self.config.hop_samples

    @torch.inference_mode()
    def encode(self, wave: Tensor) -> Tensor:
        """[B, T] -> [B, C, L], mean near 0 and standard deviation near 1 on the sounds that it was trained on."""
        mean, _ = self.network.encode(wave.to(self.network.latent_mean.device, torch.float32))
        return (mean - self.network.latent_mean[:, None]) / self.network.latent_std[:, None]

    @torch.inference_mode()
    def decode(self, latents: Tensor, samples: int) -> Tensor:
        """[B, C, L] -> [B, samples]."""
        latents = latents.to(self.network.latent_mean.device, torch.float32)
        return self.network.decode(
            latents * self.network.latent_std[:, None] + self.network.latent_mean[:, None], samples
        )

    def fingerprint(self) -> dict:
        """Configuration and a hash over the weights' values."""
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + value.cpu().float().contiguous().numpy().tobytes())
        return {"codec": self.name, **asdict(self.config), "weights_sha256": digest.hexdigest()}

    def to(self, device) -> AutoencoderCodec:
        """Move the network; returns itself."""
        self.network.to(device)
        return self


def save_codec(network: Autoencoder, folder: Path, *, half: bool = False) -> Path:
    """Write one safetensors file with the configuration in its metadata; float16 when `half`. Atomic.

    Returns:
        The file's path, which `load_autoencoder` takes, as it takes the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: (v.half() if half else v.float()).cpu().contiguous() for k, v in network.state_dict().items()}
    path = folder / WEIGHTS
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary, metadata={"format": FORMAT, "config": json.dumps(asdict(network.config))})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load_autoencoder(path: Path) -> AutoencoderCodec:
    """Read a codec folder, or its safetensors file.

    Raises:
        UserError: no such file, not a codec of this version, or tensors that do not fit its own configuration.
    """
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no trained codec there; mend: segue codec train SOURCE --out {path.parent}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {k: file.get_tensor(k).float() for k in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); mend: copy it again or retrain") from error
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path}: holds {metadata.get('format', 'no codec')!r}, not {FORMAT!r}; mend: retrain with this version"
        )
    try:
        network = Autoencoder(AutoencoderConfig.from_json(json.loads(metadata["config"])))
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise UserError(
            f"{path}: weights and configuration do not fit ({line}); mend: copy it again or retrain"
        ) from error
    return AutoencoderCodec(network)
