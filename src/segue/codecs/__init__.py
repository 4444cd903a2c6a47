"""Codecs: waveform <-> latent. One name->factory table; a path loads a codec that you trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from segue.codecs.base import Codec
from segue.types import UserError

SHIPPED = Path(__file__).parent.parent / "weights" / "codec"


def _spectral(sample_rate_hz: int | None) -> Codec:
    from segue.codecs.spectral import SpectralCodec

    return SpectralCodec(sample_rate_hz or 16000)


def _shipped(sample_rate_hz: int | None) -> Codec:
    if not (SHIPPED / "codec.safetensors").is_file():
        raise UserError(
            "no trained codec is shipped; mend: --codec spectral, or train one: segue codec train SOURCE --out DIR"
        )
    return _trained(SHIPPED, sample_rate_hz)


def _trained(path: Path, sample_rate_hz: int | None) -> Codec:
    from segue.codecs.autoencoder import load_autoencoder

    codec = load_autoencoder(path)
    if sample_rate_hz not in (None, codec.sample_rate_hz):
        raise UserError(
            f"{path}: a codec for {codec.sample_rate_hz} Hz, not {sample_rate_hz}; mend: train one at that rate"
        )
    return codec


CODECS: dict[str, Callable[[int | None], Codec]] = {"spectral": _spectral, "autoencoder": _shipped}


def load_codec(name_or_path: str, sample_rate_hz: int | None = None) -> Codec:
    """A codec by name, or a trained one by its folder.

    Args:
        name_or_path: "spectral" (any rate), "autoencoder" (the shipped weights), or what `segue codec train` wrote.
        sample_rate_hz: the rate wanted; None takes the codec's own (16 kHz for "spectral").

    Raises:
        UserError: an unknown name, no such codec, or a codec of another rate.
    """
    path = Path(name_or_path)
    if name_or_path in CODECS:
        codec = CODECS[name_or_path](sample_rate_hz)
    elif path.exists():
        codec = _trained(path, sample_rate_hz)
    else:
        raise UserError(
            f"unknown codec {name_or_path!r}; mend: one of {', '.join(CODECS)}, or the folder of a trained codec"
        )
    codec.source = name_or_path
    return codec


def default_codec() -> str:
    """The trained codec where its weights are shipped, else the one that needs none."""
    return "autoencoder" if (SHIPPED / "codec.safetensors").is_file() else "spectral"


__all__ = ["CODECS", "Codec", "default_codec", "load_codec"]
