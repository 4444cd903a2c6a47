"""The teacher interface: waveform -> frozen self-supervised features."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Teacher(ABC):
    """A frozen self-supervised encoder.

    Attributes:
        name: the name or local path it was made from.
        sample_rate_hz: of its input; it carries nothing above half of it.
        frame_rate_hz: S frames per second.
        dim: F, features of a frame.
        layer: which hidden layer the features are, or None where it has only one kind.
    """

    name: str
    sample_rate_hz: int
    frame_rate_hz: float
    dim: int
    layer: int | None = None

    @property
    def source(self) -> dict:
        """What `load_teacher` takes to make it again."""
        return {"name": self.name, "layer": self.layer}

    @abstractmethod
    def encode(self, wave: Tensor) -> Tensor:
        """[B, T] waveform at sample_rate_hz -> [B, S, F] float32 features."""

    def to(self, device: torch.device | str) -> Teacher:
        """Move what has weights; returns itself."""
        return self

    @abstractmethod
    def fingerprint(self) -> dict:
        """JSON-able settings and a weight hash; keys the cache."""
