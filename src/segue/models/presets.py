"""Sizes of the backbone by name; models/step_memory.py counts the memory that each needs.

`segue recipes --presets` prints this table with counted parameters.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from segue.models.backbone import BackboneConfig, backbone_of
from segue.models.dit import DiTConfig
from segue.types import UserError

PRESETS: dict[str, DiTConfig] = {
    "dit-tiny": DiTConfig(width=48, depth=3, heads=4, adaln_rank=4),  # for tests and first tries
    # Shallow: at twelve CPU minutes it learned more than dit-3m did in the same time (docs/log.md).
    "dit-1m": DiTConfig(width=128, depth=4, heads=4),
    "dit-3m": DiTConfig(width=160, depth=8, heads=5),
    "dit-10m": DiTConfig(width=256, depth=10, heads=8, adaln_rank=32),
    "dit-35m": DiTConfig(width=448, depth=12, heads=7, adaln_rank=32),
    "dit-120m": DiTConfig(width=768, depth=14, heads=12, adaln_rank=64),
    "dit-350m": DiTConfig(width=1152, depth=18, heads=18, adaln_rank=96),
    "dit-1b": DiTConfig(width=1664, depth=25, heads=26, adaln_rank=128),
}


def preset(name: str, *, channels: int, text_dim: int, **changes) -> DiTConfig:
    """The named size for a codec of `channels` and a text encoder of `text_dim` features.

    Raises:
        UserError: no preset of that name.
    """
    if name not in PRESETS:
        raise UserError(f"no model preset '{name}'; choose one of {', '.join(PRESETS)}")
    return replace(PRESETS[name], channels=channels, text_dim=text_dim, **changes)


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def parameters_of(config: BackboneConfig) -> int:
    """Trainable parameters of a config, counted on a model that holds no memory."""
    with torch.device("meta"):
        return count_parameters(backbone_of(config))
