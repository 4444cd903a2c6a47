"""The clips of a cache as sound, decoded or recorded, and a run's checkpoints as something that makes sound."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segue.audio.read import read_wave
from segue.codecs import codec_of
from segue.codecs.base import Codec
from segue.conditioners import load_conditioner
from segue.data.cache import LatentCache
from segue.data.clip import Clip
from segue.models.files import load_model
from segue.pipeline import Pipeline
from segue.types import UserError

PHASE_ITERATIONS = 2


def quick(codec: Codec) -> Codec:
    """The codec with 2 phase iterations in place of 8: all evaluators use magnitudes (see docs/studies.md)."""
    # Only our own autoencoder iterates on phases.
    if codec.name != "autoencoder" or codec.config.refinements <= PHASE_ITERATIONS:
        return codec
    # A shallow copy shares the weights; its configuration is its own.
    network = copy.copy(codec.network)
    network.config = replace(network.config, refinements=PHASE_ITERATIONS)
    fast = type(codec)(network)
    fast.source = codec.source
    return fast


def checkpoint_loader(device: str) -> Callable[[Path], Pipeline]:
    """checkpoint folder -> Pipeline; codec and text encoder are loaded once, captions encoded once."""
    parts: dict = {}

    def load(folder: Path) -> Pipeline:
        saved = load_model(folder / "model.safetensors", "ema")
        # Loaded with the first checkpoint, whose card names them.
        if not parts:
            text = saved.card.text
            parts["codec"] = quick(codec_of(saved.card.codec_source, saved.card.codec))
            parts["text"] = load_conditioner(text["name"], text["max_tokens"])
        return Pipeline(saved, parts["codec"], parts["text"], device)

    return load


def is_recorded(cache: LatentCache, row: int) -> bool:
    """Whether a row is a clip as recorded, and no variant of one (`segue encode --variants`)."""
    return "variant" not in cache.row(row)


def decoded_rows(cache: LatentCache, rows: Sequence[int], codec: Codec) -> Tensor:
    """Rows of a cache through the codec's decoder, [B, T]: the mean of the sides, as `recorded_rows` reads them."""
    samples = round(cache.meta["seconds"] * codec.sample_rate_hz)
    parts = [rows[i : i + 32] for i in range(0, len(rows), 32)]
    return torch.cat([codec.decode(cache.latents(part)[0], samples).mean(dim=1) for part in parts])


def recorded_rows(cache: LatentCache, rows: Sequence[int], clips: Mapping[str, Clip], sample_rate_hz: int) -> Tensor:
    """The recordings of rows of a cache, [B, T], cut or padded to the cache's length.

    Args:
        clips: of the manifest that the cache was made from, by id.

    Raises:
        UserError: a row is of no clip of the manifest.
    """
    samples = round(cache.meta["seconds"] * sample_rate_hz)
    return torch.stack([_recorded(cache.row(i), clips, sample_rate_hz, samples) for i in rows])


def _recorded(row: Mapping, by_id: Mapping[str, Clip], sample_rate_hz: int, samples: int) -> Tensor:
    """The recording of a cache row, [samples], cut or padded."""
    clip = by_id.get(row["id"])
    if clip is None:
        raise UserError(
            f"data.manifest has no clip '{row['id']}', which the cache holds; hint: name the cache's manifest"
        )
    wave = read_wave(clip.path, sample_rate_hz)[round(row["start_sec"] * sample_rate_hz) :][:samples]
    return torch.from_numpy(np.pad(wave, (0, samples - len(wave))))
