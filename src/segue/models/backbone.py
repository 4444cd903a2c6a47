"""What a run trains: our own backbone, or a public one behind an adapter. Both have the same call."""

from __future__ import annotations

from typing import TypeAlias

from segue.models.adapters import Adapter, AdapterConfig, adapter_of
from segue.models.dit import DiT, DiTConfig

Backbone: TypeAlias = DiT | Adapter
BackboneConfig: TypeAlias = DiTConfig | AdapterConfig


def backbone_of(config: BackboneConfig) -> Backbone:
    """A backbone of this shape, with initial weights.

    Raises:
        ValueError: the shape contradicts itself.
    """
    return DiT(config) if isinstance(config, DiTConfig) else adapter_of(config)
