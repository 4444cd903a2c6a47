"""A compact convolutional variational autoencoder over STFT magnitudes and phase advances.

Latents hold no absolute phase. The network sees, and predicts, the log magnitude of each STFT bin and how far its phase
advances from frame to frame (the instantaneous frequency, as in GANSynth, Engel et al. 1902.08710); the decoder adds
the advances up and lets a few fast Griffin-Lim iterations (Perraudin et al. 2013) make the spectrum consistent.
Absolute phase would turn in the latents with every frame; without it they are smooth in time, which a diffusion model
learns faster, and steady tones need no adversary. Everything runs on STFT frames (ConvNeXt blocks, Liu et al.
2201.03545, in one dimension), so that a CPU can train it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from segue.codecs.base import Codec
from segue.codecs.blocks import FrameConfig, FrameNetwork, blocks
from segue.codecs.mid_side import MidSideAutoencoder, MidSideConfig
from segue.files import replacing
from segue.types import UserError, first_line

WEIGHTS = "codec.safetensors"
DECODER = ("from_latent", "decoder_slow", "up", "decoder_fast", "to_spectrum", "linear_out")


@dataclass(frozen=True)
class AutoencoderConfig(FrameConfig):
    """Shapes of the mono autoencoder: about 31 latent frames a second."""

    hop_hz = 1000

    sample_rate_hz: int = 16000
    hop_samples: int = 512
    channels: int = 32
    encoder_width: int = 192
    decoder_width: int = 256


@dataclass(frozen=True)
class Analysis:
    """What the network sees of a waveform, and what it predicts; each [B, frames, bins].

    Attributes:
        log_magnitude: natural log of magnitude + floor.
        advance: complex; its angle is the phase advance since the frame before, less that of the bin's centre; its
            modulus is 1 in an analysis (0 where there is no phase), and the certainty in a prediction.
        weight: geometric mean of this frame's magnitude and the one before; None in a prediction.
    """

    log_magnitude: Tensor
    advance: Tensor
    weight: Tensor | None = None


class Autoencoder(FrameNetwork):
    """The network. Latents here are raw; AutoencoderCodec standardises them."""

    sides = 1
    centre_advance: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config.hop_samples, config.refinements)
        self.config = c = config
        wide = c.encoder_width
        deep = c.decoder_width
        self.enter = nn.Linear(3 * self.bins, wide)
        self.encoder_fast = blocks(c.encoder_blocks[0], wide, c.expansion, c.kernel)
        self.down = nn.Linear(2 * wide, deep)
        self.encoder_slow = blocks(c.encoder_blocks[1], deep, c.expansion, c.kernel)
        self.to_posterior = nn.Sequential(nn.LayerNorm(deep), nn.Linear(deep, 2 * c.channels))
        self.from_latent = nn.Linear(c.channels, deep)
        self.decoder_slow = blocks(c.decoder_blocks[0], deep, c.expansion, c.kernel)
        self.up = nn.Linear(deep, 2 * deep)
        self.decoder_fast = blocks(c.decoder_blocks[1], deep, c.expansion, c.kernel)
        spectrum = nn.Linear(deep, 3 * self.bins)
        self.to_spectrum = nn.Sequential(nn.LayerNorm(deep), spectrum)
        # Start near silence: untrained levels around full scale would swamp the first steps.
        nn.init.constant_(spectrum.bias[: self.bins], -1.0)
        self.register_buffer("latent_mean", torch.zeros(c.channels))
        self.register_buffer("latent_std", torch.ones(c.channels))
        # A hop of a quarter window advances the centre of bin k by k quarter turns.
        turns = torch.arange(self.bins) % 4
        self.register_buffer(
            "centre_advance", torch.polar(torch.ones(self.bins), turns * torch.pi / 2), persistent=False
        )

    def analyse(self, wave: Tensor) -> Analysis:
        """[B, T] -> two frames per latent frame; T is padded with silence to whole latent frames."""
        # Whole latent frames, so that the decoder gives as many back.
        length = ceil(wave.shape[-1] / self.config.hop_samples) * self.config.hop_samples
        spectrum = self.stft(F.pad(wave, (0, length - wave.shape[-1])))
        # The first frame has none before it: its advance is that of silence, without a phase.
        before = F.pad(spectrum, (0, 0, 1, 0))[:, :-1]
        # Less what the bin's centre turns in a hop anyway: what is left is small and smooth.
        turned = spectrum * before.conj() * self.centre_advance.conj()
        size = turned.abs()
        # A floor below any magnitude that counts, where there is no angle.
        advance = turned / size.clamp_min(1e-20)
        return Analysis((spectrum.abs() + self.config.floor).log(), advance, size.sqrt())

    def encode(self, analysis: Analysis) -> tuple[Tensor, Tensor]:
        """Posterior mean and log-variance, each [B, C, L]."""
        assert analysis.weight is not None, "a prediction is not encoded again"
        # Advances of silence are noise; weighed by loudness, they fade out of the input.
        advance = analysis.advance * analysis.weight**0.3
        features = torch.cat([(analysis.log_magnitude + 7) / 3.5, advance.real, advance.imag], dim=-1)
        x = self.encoder_fast(self.enter(features))
        x = self.down(x.reshape(x.shape[0], x.shape[1] // 2, -1))
        posterior = self.to_posterior(self.encoder_slow(x)).transpose(1, 2)
        mean, log_variance = posterior.chunk(2, dim=1)
        # Bounded, since exp of it is a deviation that noise is multiplied with.
        return mean, log_variance.clamp(-12, 4)

    def predict(self, latents: Tensor) -> Analysis:
        """[B, C, L] raw latents -> the analysis that they stand for."""
        x = self.decoder_slow(self.from_latent(latents.transpose(1, 2)))
        x = self.up(x).reshape(x.shape[0], 2 * x.shape[1], -1)
        level, real, imag = self.to_spectrum(self.decoder_fast(x)).chunk(3, dim=-1)
        return Analysis(3.5 * level - 7, torch.complex(real, imag))

    def synthesise(self, prediction: Analysis, samples: int) -> Tensor:
        """An analysis -> [B, samples]: phases by adding up advances, then fast Griffin-Lim iterations."""
        # Clamped where untrained latents could overflow; the floor that the analysis added is taken off.
        magnitude = (prediction.log_magnitude.clamp(max=3).exp() - self.config.floor).clamp_min(0)
        start = self.centre_phase(magnitude.shape[1], self.bins, magnitude.device)
        return self.sound(magnitude, prediction.advance.angle().cumsum(1) + start)[:, :samples]


FORMATS: dict[str, tuple[Any, Any]] = {
    "segue-autoencoder-1": (AutoencoderConfig, Autoencoder),
    "segue-mid-side-1": (MidSideConfig, MidSideAutoencoder),
}


class AutoencoderCodec(Codec):
    """A trained autoencoder behind the codec interface: posterior means, standardised by the stored statistics.

    Encoding is deterministic.
    """

    statistics = "channel"

    def __init__(self, network: FrameNetwork) -> None:
        self.network = network.eval().requires_grad_(False)
        self.config = network.config
        self.audio_channels = network.sides
        self.name = "autoencoder" if network.sides == 1 else "stereo-autoencoder"
        self.sample_rate_hz = self.config.sample_rate_hz
        self.channels = self.config.channels
        self.hop_samples = self.config.hop_samples

    @torch.inference_mode()
    def encode(self, wave: Tensor) -> Tensor:
        """[B, A, T] -> [B, C, L], mean near 0 and standard deviation near 1 on the sounds that it was trained on.

        See `Codec.encode` for what it raises.
        """
        self.check_wave(wave)
        wave = wave.to(self.network.latent_mean.device, torch.float32)
        mean, _ = self.network.encode(self.network.analyse(wave[:, 0] if self.audio_channels == 1 else wave))
        return (mean - self.network.latent_mean[:, None]) / self.network.latent_std[:, None]

    def decode(self, latents: Tensor, samples: int) -> Tensor:
        """[B, C, L] -> [B, A, samples]. Weights are frozen; a gradient passes to the latents where they ask for one."""
        latents = latents.to(self.network.latent_mean.device, torch.float32)
        # Statistics first taken off, now put back: the network knows raw latents only.
        raw = latents * self.network.latent_std[:, None] + self.network.latent_mean[:, None]
        wave = self.network.synthesise(self.network.predict(raw), samples)
        return wave[:, None] if self.audio_channels == 1 else wave

    def fingerprint(self) -> dict:
        """Configuration and hash of what makes latents, so that a cache outlives a refined decoder."""
        # What the decoder alone has does not change latents, and so no cache.
        config = {k: v for k, v in asdict(self.config).items() if k not in ("decoder_blocks", "refinements")}
        sides = {} if self.audio_channels == 1 else {"audio_channels": self.audio_channels}
        return {"codec": self.name, **sides, **config, "latents_sha256": self.weights_sha256(latents_only=True)}

    def weights_sha256(self, *, latents_only: bool = False) -> str:
        """Hash over the weights' values: of all of them, or of the encoder and the latents' statistics."""
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            if not (latents_only and name.startswith(DECODER)):
                digest.update(name.encode() + value.cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> AutoencoderCodec:
        """Move the network; returns itself."""
        self.network.to(device)
        return self


def save_codec(network: FrameNetwork, folder: Path, *, half: bool = False) -> Path:
    """Write one safetensors file with the configuration in its metadata; float16 when `half`. Atomic.

    Returns:
        The file's path, which `load_autoencoder` takes, as it takes the folder.
    """
    tensors = {k: (v.half() if half else v.float()).cpu().contiguous() for k, v in network.state_dict().items()}
    path = folder / WEIGHTS
    written = next(name for name, (_, kind) in FORMATS.items() if isinstance(network, kind))
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": written, "config": json.dumps(asdict(network.config))})
    return path


def load_autoencoder(path: Path) -> AutoencoderCodec:
    """Read a codec folder, or its safetensors file.

    Raises:
        UserError: no such file, not a codec of this version, or tensors that do not fit its own configuration.
    """
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no trained codec there; hint: segue codec train SOURCE --out {path.parent}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {k: file.get_tensor(k).float() for k in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); hint: copy it again or retrain") from error
    if metadata.get("format") not in FORMATS:
        wanted = " or ".join(map(repr, FORMATS))
        raise UserError(
            f"{path}: holds {metadata.get('format', 'no codec')!r}, not {wanted}; hint: retrain with this version"
        )
    config_type, network_type = FORMATS[metadata["format"]]
    try:
        config = config_type.from_json(json.loads(metadata["config"]))
        # A made-up configuration could ask for so many blocks that building them alone takes for ever.
        if not sum(config.encoder_blocks) + sum(config.decoder_blocks) <= len(tensors):
            raise ValueError(f"more blocks than its {len(tensors)} tensors")
        with torch.device("meta"):  # shapes before memory: a configuration may claim more than there is
            misfit = _misfit(tensors, network_type(config).state_dict())
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        line = first_line(error)
        raise UserError(f"{path}: unreadable configuration ({line}); hint: copy it again or retrain") from error
    if misfit:
        raise UserError(f"{path}: weights and configuration do not fit ({misfit}); hint: copy it again or retrain")
    network = network_type(config)
    network.load_state_dict(tensors)
    return AutoencoderCodec(network)


def _misfit(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """The first tensor that is missing, unknown or of another shape, in words; empty where all fit."""
    # Sorted, so that the same file always gives the same message.
    for name in sorted(found.keys() | wanted.keys()):
        shapes = [list(tensors[name].shape) if name in tensors else None for tensors in (found, wanted)]
        if shapes[0] != shapes[1]:
            return f"{name} is {shapes[0] or 'missing'}, not {shapes[1] or 'known'}"
    return ""
