"""The conditioner interface: captions -> token embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor


class TextConditioner(ABC):
    """A frozen text encoder.

    Attributes:
        name: the name or local path it was made from.
        dim: E, features of a token embedding.
        max_tokens: K at most; longer captions are cut.
    """

    name: str
    dim: int
    max_tokens: int

    @abstractmethod
    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B captions -> tokens [B, K, E] float32 and mask [B, K] bool (True = real token), K <= max_tokens.

        Padding positions of `tokens` are zero, so that nothing depends on the length of a batch's longest caption.
        """

    @abstractmethod
    def fingerprint(self) -> dict:
        """JSON-able settings and a weight hash; keys the cache."""
