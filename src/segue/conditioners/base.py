"""The conditioner interface: captions -> token embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from segue.types import UserError


class TextConditioner(ABC):
    """A frozen text encoder.

    Attributes:
        name: the name or local path it was made from.
        dim: E, features of a token embedding.
        max_tokens: K at most; longer captions are cut.
        most_tokens: what max_tokens may be at most; the same, where it cannot be changed.
    """

    name: str
    dim: int
    max_tokens: int

    @property
    def most_tokens(self) -> int:
        return self.max_tokens

    @abstractmethod
    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B captions -> tokens [B, K, E] float32 and mask [B, K] bool (True = real token), K <= max_tokens.

        Padding positions of `tokens` are zero, so that nothing depends on the length of a batch's longest caption.
        """

    def to(self, device: torch.device | str) -> TextConditioner:
        """Move what has weights; returns itself."""
        return self

    @abstractmethod
    def fingerprint(self) -> dict:
        """JSON-able settings and a weight hash; keys the cache."""

    def for_seconds(self, seconds: float) -> TextConditioner:
        """The same encoder for sounds of this length, where it writes the length into the text."""
        return self

    def count_tokens(self, captions: Sequence[str]) -> tuple[list[int], list[int]] | None:
        """Of each caption: the tokens that it has before any is cut, and how many of them stand for something unknown.

        None where the encoder does not tell.
        """
        return None

    def with_max_tokens(self, max_tokens: int) -> TextConditioner:
        """The same encoder that cuts elsewhere.

        Raises:
            UserError: it cannot.
        """
        if max_tokens == self.max_tokens:
            return self
        raise UserError(f"--text {self.name}: cuts captions at {self.max_tokens} tokens; --max-tokens cannot change it")
