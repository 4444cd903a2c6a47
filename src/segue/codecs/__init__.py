"""Codecs: waveform <-> latent. One name->factory table; a path or hub name loads a trained one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from segue.codecs.base import Codec
from segue.types import UserError

CHANNEL_WORDS = {1: "mono", 2: "stereo"}
_WEIGHTS = Path(__file__).parent.parent / "weights"
SHIPPED = _WEIGHTS / "codec"
SHIPPED_STEREO = _WEIGHTS / "stereo-44k"


def _spectral(sample_rate_hz: int | None, audio_channels: int | None) -> Codec:
    from segue.codecs.spectral import SpectralCodec

    return SpectralCodec(sample_rate_hz or 16000, audio_channels=audio_channels or 1)


def _gain_shape(sample_rate_hz: int | None, audio_channels: int | None) -> Codec:
    from segue.codecs.gain_shape import GainShapeCodec

    return GainShapeCodec(sample_rate_hz or 16000, audio_channels=audio_channels or 1)


def _shipped(sample_rate_hz: int | None, audio_channels: int | None) -> Codec:
    if not (SHIPPED / "codec.safetensors").is_file():
        raise UserError(
            "no trained codec is shipped; hint: --codec spectral, or train one: segue codec train SOURCE --out DIR"
        )
    return _trained(SHIPPED, sample_rate_hz)


def _shipped_stereo(sample_rate_hz: int | None, audio_channels: int | None) -> Codec:
    if not (SHIPPED_STEREO / "codec.safetensors").is_file():
        raise UserError(
            "no stereo codec is shipped; hint: train one: segue codec train SOURCE --out DIR --rate 44100 --channels 2"
        )
    return _trained(SHIPPED_STEREO, sample_rate_hz)


def _trained(path: Path, sample_rate_hz: int | None) -> Codec:
    from segue.codecs.autoencoder import load_autoencoder

    codec = load_autoencoder(path)
    if sample_rate_hz not in (None, codec.sample_rate_hz):
        raise UserError(
            f"{'the shipped codec' if path.parent == _WEIGHTS else path}: for {codec.sample_rate_hz} Hz, not "
            f"{sample_rate_hz}; hint: --codec stereo-44k is for 44100 Hz in stereo, --codec spectral takes any rate, "
            "or train one with segue codec train --rate"
        )
    return codec


def _pretrained(name_or_path: str, sample_rate_hz: int | None) -> Codec:
    from segue.codecs.huggingface import load_pretrained_codec

    codec = load_pretrained_codec(name_or_path)
    if sample_rate_hz not in (None, codec.sample_rate_hz):
        raise UserError(
            f"{name_or_path}: a codec for {codec.sample_rate_hz} Hz, not {sample_rate_hz}; hint: leave the rate out"
        )
    return codec


def _is_pretrained(folder: Path) -> bool:
    """Whether a folder holds a model of transformers or diffusers; our own runs have a config.json of another sort."""
    configs = [path for path in (folder / "config.json", folder / "vae" / "config.json") if path.is_file()]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in configs]
    # Other folders have a config.json, too; these two keys are those libraries' own.
    return any('"model_type"' in text or '"_class_name"' in text for text in texts)


CODECS: dict[str, Callable[[int | None, int | None], Codec]] = {
    "spectral": _spectral,
    "gain-shape": _gain_shape,
    "autoencoder": _shipped,
    "stereo-44k": _shipped_stereo,
}


def load_codec(name_or_path: str, sample_rate_hz: int | None = None, audio_channels: int | None = None) -> Codec:
    """A codec by name, a trained one by its folder, or a DAC, EnCodec or Oobleck one by hub name or folder.

    Args:
        name_or_path: "spectral" or "gain-shape" (any rate), "autoencoder" (shipped, 16 kHz mono), "stereo-44k"
            (shipped, 44.1 kHz stereo), what `segue codec train` wrote, or a hub name (OWNER/NAME) or local folder of a
            transformers or diffusers codec.
        sample_rate_hz: the rate wanted; None takes the codec's own (16 kHz for those of any rate).
        audio_channels: channels wanted, 1 or 2; None takes the codec's own (1 for those that take either).

    Raises:
        UserError: an unknown name, no such codec, or a codec of another rate or of other channels.
    """
    path = Path(name_or_path)
    if name_or_path in CODECS:
        codec = CODECS[name_or_path](sample_rate_hz, audio_channels)
    elif _is_pretrained(path):
        # A folder that exists wins over a hub name of the same spelling.
        codec = _pretrained(name_or_path, sample_rate_hz)
    elif path.exists():
        codec = _trained(path, sample_rate_hz)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name_or_path) and name_or_path[0] != ".":
        # OWNER/NAME with a revision, but no path such as ./codec.
        codec = _pretrained(name_or_path, sample_rate_hz)
    else:
        raise UserError(
            f"unknown codec {name_or_path!r}; hint: one of {', '.join(CODECS)}, the folder of a trained codec, "
            "or a hub name (OWNER/NAME)"
        )
    if audio_channels not in (None, codec.audio_channels):
        has, wanted = (CHANNEL_WORDS.get(n, f"{n} channels") for n in (codec.audio_channels, audio_channels))
        raise UserError(
            f"{name_or_path}: a {has} codec, not {wanted}; hint: leave --channels out, or take a {wanted} one "
            "(--codec spectral takes either, segue codec train makes one)"
        )
    codec.source = name_or_path
    return codec


def codec_of(source: str, fingerprint: dict) -> Codec:
    """The codec that a cache or a model was made with, from where it came and its fingerprint.

    Raises:
        UserError: as `load_codec`.
    """
    return load_codec(source, fingerprint["sample_rate_hz"], fingerprint.get("audio_channels"))


def default_codec() -> str:
    """The trained codec where its weights are shipped, else the one that needs none."""
    return "autoencoder" if (SHIPPED / "codec.safetensors").is_file() else "spectral"


__all__ = ["CHANNEL_WORDS", "CODECS", "Codec", "codec_of", "default_codec", "load_codec"]
