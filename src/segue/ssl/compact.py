"""A compact self-supervised teacher of our own: a transformer over log-mel patches, at any sample rate.

`segue teacher train` makes one from any folder of sounds (segue.training.teacher says how it learns). Frames are 40 ms
(25 a second): patches of four log-mel columns, 10 ms apart. Positions are rotary (Su et al. 2104.09864), so that clips
of any length are encoded whole, and visible frames can be encoded without the masked ones between them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import reduce
from math import ceil, log2
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from segue.files import replacing
from segue.ssl.base import Teacher
from segue.types import UserError, first_line

FORMAT = "segue-teacher-1"
WEIGHTS = "teacher.safetensors"
SHIPPED = Path(__file__).parent.parent / "weights" / "teacher"
SHIPPED_WIDE = Path(__file__).parent.parent / "weights" / "teacher-44k"
FLOOR = 1e-7  # power, where a full-scale sine reads about 1: what lies 70 dB below it is silence


@dataclass(frozen=True)
class CompactConfig:
    """Shapes of the encoder.

    Attributes:
        sample_rate_hz: rate of the waveforms.
        hop_samples: samples from one log-mel column to the next. window_samples: of the Hann window, a power of two.
        bands: mel bands, from 0 to half the rate.
        patch_frames: columns to a frame of the teacher.
        width: F, features. depth: transformer blocks. heads: attention heads. expansion: of a block's MLP.
        layers: blocks whose outputs are averaged where no layer is asked for, counted from 1.
    """

    sample_rate_hz: int = 16000
    hop_samples: int = 160
    window_samples: int = 1024
    bands: int = 128
    patch_frames: int = 4
    width: int = 256
    depth: int = 5
    heads: int = 4
    expansion: int = 4
    layers: tuple[int, ...] = (3, 4)

    @classmethod
    def for_rate(cls, sample_rate_hz: int, **changes) -> CompactConfig:
        """The default at another rate: hops of 10 ms, windows of about 64 ms."""
        # A power of two, for the FFT.
        window = 2 ** round(log2(0.064 * sample_rate_hz))
        hop = round(sample_rate_hz / 100)
        return cls(sample_rate_hz=sample_rate_hz, hop_samples=hop, window_samples=window, **changes)

    @classmethod
    def from_json(cls, data: dict) -> CompactConfig:
        """From a JSON object, where tuples are lists."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)

    @property
    def frame_samples(self) -> int:
        """Samples to a frame of the teacher."""
        return self.hop_samples * self.patch_frames


class LogMel(nn.Module):
    """Waveforms to log-mel patches; `mean` and `std` [bands] standardise them."""

    mean: Tensor
    std: Tensor
    window: Tensor
    filters: Tensor

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.bands))
        self.register_buffer("std", torch.ones(config.bands))
        self.register_buffer("window", torch.hann_window(config.window_samples), persistent=False)
        bands = mel_bands(config.bands, config.window_samples, config.sample_rate_hz)
        self.register_buffer("filters", bands, persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """[B, T] -> [B, columns, bands], natural log of power; columns fill ceil(T / frame_samples) whole frames."""
        c = self.config
        side = c.window_samples - c.hop_samples
        length = ceil(wave.shape[-1] / c.frame_samples) * c.frame_samples
        # Each window is centred on its hop.
        padded = F.pad(wave, (side // 2, side - side // 2 + length - wave.shape[-1]))
        spectrum = torch.fft.rfft(padded.unfold(-1, c.window_samples, c.hop_samples) * self.window)
        power = (spectrum.real.square() + spectrum.imag.square()) * (4 / c.window_samples) ** 2
        return (power @ self.filters + FLOOR).log()

    def patches(self, columns: Tensor) -> Tensor:
        """[B, columns, bands] -> standardised [B, S, patch_frames * bands]."""
        standard = (columns - self.mean) / self.std
        # Standardised before columns are joined: mean and deviation are of bands.
        return standard.unflatten(1, (-1, self.config.patch_frames)).flatten(2)


def mel_bands(bands: int, window_samples: int, sample_rate_hz: int) -> Tensor:
    """[window_samples / 2 + 1, bands] triangles of height 1 on the HTK mel scale, mel = 2595 log10(1 + f / 700).

    Slopes are at least one bin wide, so that no band stays empty.
    """
    top = 2595 * torch.log10(torch.tensor(1 + sample_rate_hz / 2 / 700, dtype=torch.float64))
    edges = 700 * (10 ** (torch.linspace(0, float(top), bands + 2, dtype=torch.float64) / 2595) - 1)
    bin_hz = sample_rate_hz / window_samples
    bins = torch.arange(window_samples // 2 + 1, dtype=torch.float64)[:, None] * bin_hz
    rise = 1 - (edges[1:-1] - bins) / (edges[1:-1] - edges[:-2]).clamp(min=bin_hz)
    fall = 1 - (bins - edges[1:-1]) / (edges[2:] - edges[1:-1]).clamp(min=bin_hz)
    return torch.minimum(rise, fall).clamp(min=0).float()


class Block(nn.Module):
    """A pre-norm transformer block with rotary positions."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.expand = nn.Linear(width, expansion * width)
        self.contract = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """[B, S, D] and the rotations of each frame -> [B, S, D]."""
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rotate(q, turns), rotate(k, turns), v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.contract(F.gelu(self.expand(self.norm_mlp(x))))


def rotations(positions: Tensor, features: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, 1, S, features / 2] for positions [B, S] in frames (2104.09864, base 1000)."""
    rates = 1000.0 ** -(torch.arange(features // 2, device=positions.device) / (features // 2))
    angles = positions[:, None, :, None] * rates
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs of features of [B, heads, S, features] by the angles of their frames."""
    cosine, sine = turns
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], dim=-1)


class CompactEncoder(nn.Module):
    """The network. `statistics` [2, depth + 1, F] are mean and deviation of the default mixture, then of each layer."""

    statistics: Tensor

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = c = config
        self.mel = LogMel(c)
        self.enter = nn.Linear(c.patch_frames * c.bands, c.width)
        blocks = [Block(c.width, c.heads, c.expansion) for _ in range(c.depth)]
        self.blocks = nn.ModuleList(blocks)
        # Residual branches start small: deep stacks then start near the identity.
        for block in blocks:
            nn.init.normal_(block.out.weight, std=0.02 / (2 * c.depth) ** 0.5)
            nn.init.normal_(block.contract.weight, std=0.02 / (2 * c.depth) ** 0.5)
        self.register_buffer("statistics", torch.stack([torch.zeros(c.depth + 1, c.width)] * 2))
        # Until they are fitted, statistics change nothing.
        self.statistics[1] = 1.0

    def forward(self, patches: Tensor, visible: Tensor | None = None, depth: int | None = None) -> list[Tensor]:
        """Patches [B, S, P] -> the outputs of the first `depth` blocks, each [B, S, F].

        With `visible` [B, V], indices of frames, only those are encoded: [B, V, F].
        """
        positions = torch.arange(patches.shape[1], device=patches.device)[None].expand(len(patches), -1)
        if visible is not None:
            # Masked frames are left out, not blanked: the others keep their own positions.
            patches = patches.gather(1, visible[..., None].expand(-1, -1, patches.shape[-1]))
            positions = visible
        turns = rotations(positions, self.config.width // self.config.heads)
        x = self.enter(patches)
        outputs = []
        for block in self.blocks[:depth]:
            x = block(x, turns)
            outputs.append(x)
        return outputs

    def features(self, wave: Tensor, layer: int | None = None) -> Tensor:
        """[B, T] -> [B, S, F] of one layer (1 to depth), or of the default mixture; not yet standardised."""
        wanted = self.config.layers if layer is None else (layer,)
        outputs = self(self.mel.patches(self.mel(wave)), depth=max(wanted))
        # Each layer counts alike, whatever the size of its features.
        return reduce(torch.add, (normalise(outputs[i - 1]) for i in wanted)) / len(wanted)


def normalise(x: Tensor) -> Tensor:
    """Each frame to zero mean and unit variance over its features."""
    return F.layer_norm(x, x.shape[-1:])


class CompactTeacher(Teacher):
    """A trained encoder behind the teacher interface; its features are standardised by the stored statistics.

    Gradients pass to the waveform where it asks for them; the weights are frozen.
    """

    def __init__(self, encoder: CompactEncoder, name: str = "compact", layer: int | None = None) -> None:
        """Raises:
        UserError: no such layer.
        """
        config = encoder.config
        if layer is not None and not 1 <= layer <= config.depth:
            raise UserError(f"--teacher-layer {layer}: {name} has layers 1 to {config.depth}; hint: name one of these")
        self.encoder = encoder.eval().requires_grad_(False)
        self.config = config
        self.name = name
        self.layer = layer
        self.sample_rate_hz = config.sample_rate_hz
        self.frame_rate_hz = config.sample_rate_hz / config.frame_samples
        self.dim = config.width

    def encode(self, wave: Tensor) -> Tensor:
        """[B, T] -> [B, S, F], S = ceil(T x frame rate / sample rate), mean near 0 and deviation near 1 by dimension.

        Raises:
            UserError: an empty waveform.
        """
        if not wave.shape[-1]:
            raise UserError("cannot encode a waveform of 0 samples; hint: leave empty clips out")
        mean, std = self.encoder.statistics[:, self.layer or 0]
        return (self.encoder.features(wave.to(mean.device, torch.float32), self.layer) - mean) / std

    def describe(self) -> str:
        """One line: layer, rates and features."""
        which = f"layer {self.layer}" if self.layer else f"mean of layers {', '.join(map(str, self.config.layers))}"
        return (
            f"{self.name} (compact): {which} of {self.config.depth}, works at {self.sample_rate_hz:,} Hz (nothing "
            f"above {self.sample_rate_hz // 2:,} Hz), {self.frame_rate_hz:g} frames/s of {self.dim} features, "
            "clips encoded whole"
        )

    def fingerprint(self) -> dict:
        """Configuration, layer and a hash over the weights' values."""
        digest = hashlib.sha256()
        for name, value in sorted(self.encoder.state_dict().items()):
            # Values in float32: the hash does not depend on how the file stores them.
            digest.update(name.encode() + value.cpu().float().contiguous().numpy().tobytes())
        return {
            "name": "compact",
            "layer": self.layer,
            "dim": self.dim,
            "frame_rate_hz": self.frame_rate_hz,
            **asdict(self.config),
            "weights": digest.hexdigest()[:16],
        }

    def to(self, device: torch.device | str) -> CompactTeacher:
        """Move the encoder; returns itself."""
        self.encoder.to(device)
        return self


def save_teacher(encoder: CompactEncoder, folder: Path, *, half: bool = False) -> Path:
    """Write one safetensors file with the configuration in its metadata; float16 when `half`. Atomic."""
    tensors = {k: (v.half() if half else v.float()).cpu().contiguous() for k, v in encoder.state_dict().items()}
    path = folder / WEIGHTS
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT, "config": json.dumps(asdict(encoder.config))})
    return path


def load_compact(path: Path, layer: int | None = None, name: str | None = None) -> CompactTeacher:
    """Read a teacher folder, or its safetensors file.

    Raises:
        UserError: no such file, not a teacher of this version, tensors that do not fit its own configuration, or no
            such layer.
    """
    name = name or str(path)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no trained teacher there; hint: segue teacher train SOURCE --out {path.parent}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {k: file.get_tensor(k).float() for k in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); hint: copy it again or retrain") from error
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path}: holds {metadata.get('format', 'no teacher')!r}, not {FORMAT!r}; hint: retrain with this version"
        )
    try:
        config = CompactConfig.from_json(json.loads(metadata["config"]))
        # Before memory is taken: a configuration may claim more than there is.
        held = sum(value.numel() for value in tensors.values())
        claimed = max(2 * config.expansion * config.depth * config.width**2, config.depth, config.bands)
        if claimed > held or config.window_samples > 1 << 16 or config.width % config.heads:
            raise ValueError(f"a configuration of {claimed:,} weights and more, {held:,} there")
        encoder = CompactEncoder(config)
        encoder.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        line = first_line(error)
        raise UserError(
            f"{path}: weights and configuration do not fit ({line}); hint: copy it again or retrain"
        ) from error
    return CompactTeacher(encoder, name, layer)


def shipped_teacher(layer: int | None = None, name: str = "compact") -> CompactTeacher:
    """A teacher inside the package: "compact" for 16 kHz, "compact-44k" for 44.1 kHz.

    Raises:
        UserError: this installation holds none, or no such layer.
    """
    folder = {"compact": SHIPPED, "compact-44k": SHIPPED_WIDE}[name]
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"--teacher {name}: this installation holds no weights for it; hint: install segue-audio anew, or train "
            "one: segue teacher train SOURCE --out DIR"
        )
    return load_compact(folder, layer, name)
