"""Codecs of transformers and diffusers: DAC, EnCodec, the Oobleck and SAME autoencoders, by hub name or local folder.

Latents are continuous: of DAC and EnCodec the encoder's output before it is quantised, of Oobleck the posterior's mean.
The decoders of DAC and EnCodec were trained on quantised latents; here they get them unquantised.
Waveforms are padded with silence to whole frames, so that T samples give ceil(T / hop) of them. Sides stay sides: a
stereo codec takes and gives two channels, a mono one has one.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.codecs.base import Codec
from segue.files import sha256_of
from segue.hub import model_folder
from segue.types import UserError, first_line, import_extra

KINDS = ("dac", "encodec", "oobleck", "same")
_WEIGHTS = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model-*-of-*.safetensors",
)
_OF_DIFFUSERS = {"AutoencoderOobleck": "oobleck", "AutoencoderSAME": "same"}
# Quieter chunks are not raised to full level: 80 dB below full scale.
_LEAST_LEVEL = 1e-4
# Of the level of both sides that of their mean is taken for at least; a sound on one side alone comes to 0.7.
_LEAST_SHARE = 0.25


class PretrainedCodec(Codec):
    """A frozen codec of another library, computed in float32. Its network is an nn.Module, typed by nobody."""

    statistics = "channel"

    def __init__(self, source: str, network: Any, sample_rate_hz: int, audio_channels: int, sha256: str) -> None:
        self.source = source
        self.network = network.float().eval().requires_grad_(False)
        self.sample_rate_hz = int(sample_rate_hz)
        self.audio_channels = int(audio_channels)
        self._sha256 = sha256

    @torch.inference_mode()
    def encode(self, wave: Tensor) -> Tensor:
        """[B, A, T] -> [B, C, L], L = ceil(T / hop_samples); see `Codec.encode` for what it raises."""
        self.check_wave(wave)
        wave = wave.to(self._device, torch.float32)
        wave = F.pad(wave, (0, -wave.shape[-1] % self.hop_samples))
        return self._encode(wave).float()

    @torch.inference_mode()
    def decode(self, latents: Tensor, samples: int) -> Tensor:
        """[B, C, L] -> [B, A, samples]. A decoder may give some samples less than L hops: then silence ends it."""
        wave = self._decode(latents.to(self._device, torch.float32))[..., :samples]
        # Some decoders give a little less than whole hops.
        return F.pad(wave, (0, samples - wave.shape[-1]))

    def fingerprint(self) -> dict:
        """Kind, shapes, and a hash of weights and configuration."""
        return {
            "codec": self.name,
            "sample_rate_hz": self.sample_rate_hz,
            "hop_samples": self.hop_samples,
            "channels": self.channels,
            "weights_sha256": self._sha256,
        }

    def describe(self) -> str:
        """One line: rate, latents, sides and normalisation."""
        sides = "stereo" if self.audio_channels == 2 else "mono"
        return (
            f"{self.source} ({self.name}): {self.sample_rate_hz:,} Hz, {sides}, {self.channels} channels at "
            f"{self.frame_rate_hz:g} frames/s, {self._latents}"
        )

    def to(self, device: torch.device | str) -> PretrainedCodec:
        """Move the network; returns itself."""
        self.network.to(device)
        return self

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    _latents: str

    def _encode(self, wave: Tensor) -> Tensor:
        raise NotImplementedError

    def _decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError


class DacCodec(PretrainedCodec):
    """The Descript audio codec (Kumar et al. 2306.06546) without its quantiser."""

    name = "dac"
    _latents = "before quantisation, level as it is"

    def __init__(self, source: str, network: Any, sha256: str) -> None:
        config = network.config
        super().__init__(source, network, config.sampling_rate, 1, sha256)
        self.channels = config.hidden_size
        self.hop_samples = prod(config.downsampling_ratios)

    def _encode(self, wave: Tensor) -> Tensor:
        return self.network.encoder(wave)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.network.decoder(latents)


class EncodecCodec(PretrainedCodec):
    """EnCodec (Défossez et al. 2210.13438) without its quantiser.

    The 48 kHz model normalises chunks of one second. Their level goes into one more channel, its natural log, constant
    over the chunk's frames: without it the loudness could not be given back. Chunks do not overlap here (the library
    lets them by 1 %, which is no whole number of frames), and the first begins at frame 0.
    """

    name = "encodec"

    def __init__(self, source: str, network: Any, sha256: str) -> None:
        self.config = config = network.config
        super().__init__(source, network, config.sampling_rate, config.audio_channels, sha256)
        self.channels = config.hidden_size + config.normalize
        self.hop_samples = prod(config.upsampling_ratios)
        # Whole frames to a chunk: latents of chunks can then be joined.
        self.chunk_frames = None if config.chunk_length is None else config.chunk_length // self.hop_samples
        chunk = "" if self.chunk_frames is None else f" in chunks of {self.chunk_frames} frames"
        level = "normalised, its log level in the last channel" if config.normalize else "level as it is"
        self._latents = f"before quantisation{chunk}, {level}"

    def _encode(self, wave: Tensor) -> Tensor:
        chunk_samples = (self.chunk_frames or wave.shape[-1]) * self.hop_samples
        return torch.cat([self._encode_chunk(chunk) for chunk in wave.split(chunk_samples, dim=-1)], dim=-1)

    def _encode_chunk(self, wave: Tensor) -> Tensor:
        if not self.config.normalize:
            return self.network.encoder(wave)
        # That of the sides' mean, as the library takes it; sides that cancel there must not be raised without end.
        level = wave.mean(dim=1, keepdim=True).square().mean(dim=-1, keepdim=True).sqrt()
        least = wave.square().mean(dim=(1, 2), keepdim=True).sqrt() * _LEAST_SHARE
        level = level.maximum(least).clamp_min(_LEAST_LEVEL)
        latents = self.network.encoder(wave / level)
        return torch.cat([latents, level.log().expand(-1, 1, latents.shape[-1])], dim=1)

    def _decode(self, latents: Tensor) -> Tensor:
        chunks = latents.split(self.chunk_frames or latents.shape[-1], dim=-1)
        return torch.cat([self._decode_chunk(chunk) for chunk in chunks], dim=-1)

    def _decode_chunk(self, latents: Tensor) -> Tensor:
        if not self.config.normalize:
            return self.network.decoder(latents)
        # Averaged over the chunk, since a generated level need not be constant.
        level = latents[:, -1:].mean(dim=-1, keepdim=True).exp()
        return self.network.decoder(latents[:, :-1]) * level


class OobleckCodec(PretrainedCodec):
    """The variational autoencoder of Stable Audio (Evans et al. 2404.10301): its posterior's mean."""

    name = "oobleck"
    _latents = "mean of the posterior, level as it is"

    def __init__(self, source: str, network: Any, sha256: str) -> None:
        config = network.config
        super().__init__(source, network, config.sampling_rate, config.audio_channels, sha256)
        self.channels = config.decoder_input_channels
        self.hop_samples = prod(config.downsampling_ratios)

    def _encode(self, wave: Tensor) -> Tensor:
        return self.network.encode(wave).latent_dist.mean

    def _decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents).sample


class SameCodec(PretrainedCodec):
    """The autoencoder of Stable Audio 3 (2605.17991): latents of a transformer, normalised by itself."""

    name = "same"
    _latents = "softly normalised, level as it is"

    def __init__(self, source: str, network: Any, sha256: str) -> None:
        config = network.config
        super().__init__(source, network, config.sampling_rate, config.audio_channels, sha256)
        self.channels = config.latent_dim
        self.hop_samples = network.downsampling_ratio

    def _encode(self, wave: Tensor) -> Tensor:
        return self.network.encode(wave).latents

    def _decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents).sample


def load_pretrained_codec(name_or_path: str) -> PretrainedCodec:
    """A DAC, EnCodec, Oobleck or SAME codec by hub name (NAME@REVISION for another revision) or local folder.

    Of a whole diffusers pipeline the `vae` folder is taken. Reads safetensors only, and refuses a model that lacks
    weights. HF_HUB_OFFLINE=1 keeps to what was fetched before.

    Raises:
        UserError: a folder that lacks a part, a model that is no such codec, a name that cannot be fetched.
    """
    name = name_or_path
    folder, kind, weights = _found(name)
    from safetensors import SafetensorError

    try:
        network = _load_network(name, folder, kind)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"codec {name}: cannot load it ({first_line(error)}); save or fetch it anew") from error
    codec = {"dac": DacCodec, "encodec": EncodecCodec, "oobleck": OobleckCodec, "same": SameCodec}[kind]
    return codec(name, network, _hash(folder, weights))


def pretrained_codec_hash(name_or_path: str) -> str:
    """What the fingerprint of this codec has as "weights_sha256", from its files alone.

    Raises:
        UserError: as `load_pretrained_codec`.
    """
    folder, _, weights = _found(name_or_path)
    return _hash(folder, weights)


def _hash(folder: Path, weights: list[Path]) -> str:
    # The configuration belongs to the hash: the same weights read otherwise give other latents.
    return sha256_of([folder / "config.json", *weights])


def _found(name: str) -> tuple[Path, str, list[Path]]:
    """The folder of a codec, its kind, and its weight files, fetched where they lie on the hub.

    Raises:
        UserError: no such folder or name, no codec, or no weights.
    """
    # The configuration first: a repository may hold gigabytes beside the codec.
    folder = model_folder("codec", name, ("config.json", "vae/config.json"))
    within = "vae/" if (folder / "vae" / "config.json").is_file() else ""
    folder = folder / within
    kind = _kind(name, folder)
    # Only now the weights, of the one folder that holds the codec.
    model_folder("codec", name, tuple(within + pattern for pattern in _WEIGHTS))
    weights = [path for pattern in _WEIGHTS for path in sorted(folder.glob(pattern))]
    if not weights:
        raise UserError(
            f"codec {name}: no safetensors weights there (pickled ones are not read); load the model with its "
            "library once and save_pretrained it into a folder, or name a revision that has them (NAME@refs/pr/N)"
        )
    return folder, kind, weights


def _kind(name: str, folder: Path) -> str:
    """Which codec a configuration is for.

    Raises:
        UserError: no configuration, or of something else.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = config.get("model_type") or config.get("_class_name") or "nameless"
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"codec {name}: no readable config.json there; give a folder saved with save_pretrained, or a hub name"
        ) from error
    # diffusers names classes, transformers model types.
    kind = _OF_DIFFUSERS.get(found, found)
    if kind not in KINDS:
        raise UserError(
            f"codec {name}: a {found} model is no codec known here; use a DAC, EnCodec, Oobleck or SAME model"
        )
    return kind


def _load_network(name: str, folder: Path, kind: str) -> Any:
    """The network of a local model, every weight that we use read from file.

    Raises:
        UserError: its files lack weights, or diffusers is missing.
    """
    options = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    loader: Any
    of_diffusers = {kind: name for name, kind in _OF_DIFFUSERS.items()}
    if kind in of_diffusers:
        loader = getattr(import_extra("diffusers", "hub"), of_diffusers[kind])
        network, info = loader.from_pretrained(folder, low_cpu_mem_usage=False, **options)
    else:
        import transformers

        loader = {"dac": transformers.DacModel, "encodec": transformers.EncodecModel}[kind]
        network, info = loader.from_pretrained(folder, **options)
    # The quantisers are not used, so that they may be missing.
    missing = [key for key in info["missing_keys"] if not key.startswith("quantizer.")]
    if missing:  # the libraries fill them with random numbers and go on
        raise UserError(f"codec {name}: its files lack {len(missing)} weights ({missing[0]}...); use a complete model")
    return network
