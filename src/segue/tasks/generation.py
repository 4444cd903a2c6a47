"""Text-to-audio: data is the latent of a clip, condition is its caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from segue.codecs.latent_space import LatentSpace
from segue.data.cache import Batch
from segue.tasks.base import Task
from segue.types import Condition


class Generation(Task):
    """Captions in, sound out."""

    name = "generation"

    def __init__(
        self,
        space: LatentSpace,
        lengths: Callable[[Sequence[int]], Sequence[float]] | None = None,
        padding: Tensor | None = None,
    ) -> None:
        """
        Args:
            lengths: seconds of rows of the cache, for models that are conditioned on the length; None for others.
            padding: [C, L] standardised latents that stand behind the end of a sound; None: zeros.
        """
        super().__init__(space)
        self._lengths = lengths
        self._padding = padding

    def prepare(self, batch: Batch, positions: Sequence[int] | None = None) -> tuple[Tensor, Condition, Tensor | None]:
        """See Task.prepare.

        What costs time and changes nothing is left out here: a mask that masks nothing (attention without one takes
        the faster kernel), and text columns that are padding in the whole batch.
        """
        x_0 = self.space.standardise(batch.latents, batch.mask)
        if self._padding is not None:
            x_0 = x_0.where(batch.mask[:, None], self._padding)
        # At least one column: attention needs something to look at.
        longest = max(1, int(batch.tokens_mask.sum(1).max()))
        captions = Condition(batch.tokens[:, :longest], batch.tokens_mask[:, :longest])
        if self._lengths is not None:
            captions = replace(captions, seconds=torch.tensor(self._lengths(batch.indices), dtype=torch.float32))
        return x_0, captions, None if bool(batch.mask.all()) else batch.mask
