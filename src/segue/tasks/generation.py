"""Text-to-audio: data is the latent of a clip, condition is its caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from segue.codecs.latent_space import LatentSpace
from segue.data.cache import Batch
from segue.process.noise import BatchDraws
from segue.tasks.base import Task
from segue.tasks.known_parts import with_known_parts
from segue.types import Condition


class Generation(Task):
    """Captions in, sound out."""

    name = "generation"

    def __init__(
        self,
        space: LatentSpace,
        lengths: Callable[[Sequence[int]], Sequence[float]] | None = None,
        padding: Tensor | None = None,
        known_share: float = 0.0,
    ) -> None:
        """
        Args:
            lengths: seconds of rows of the cache, for models that are conditioned on the length; None for others.
            padding: [C, L] standardised latents that stand behind the end of a sound; None: zeros.
            known_share: of the training examples, of which a stretch is known; of held-out ones nothing ever is.
        """
        super().__init__(space)
        self._lengths = lengths
        self._padding = padding
        self._known_share = known_share

    def prepare(self, batch: Batch, draws: BatchDraws | None = None) -> tuple[Tensor, Condition, Tensor | None]:
        """See Task.prepare."""
        batch = batch.to(self.space.device)
        x_0 = self.space.standardise(batch.latents, batch.mask)
        if self._padding is not None and batch.mask is not None:
            x_0 = x_0.where(batch.mask[:, None], self._padding.to(x_0.device))
        condition = Condition(batch.tokens.float(), batch.tokens_mask)
        if self._lengths is not None:
            seconds = torch.tensor(self._lengths(batch.indices), dtype=torch.float32, device=x_0.device)
            condition = replace(condition, seconds=seconds)
        if self._known_share and draws is not None:
            condition = with_known_parts(condition, x_0, batch.mask, draws, self._known_share)
        return x_0, condition, batch.mask
