"""Text-to-audio: data is the latent of a clip, condition is its caption."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from segue.data.cache import Batch
from segue.tasks.base import Task
from segue.types import Condition


class Generation(Task):
    """Captions in, sound out."""

    name = "generation"

    def prepare(self, batch: Batch, positions: Sequence[int] | None = None) -> tuple[Tensor, Condition, Tensor | None]:
        """See Task.prepare.

        What costs time and changes nothing is left out here: a mask that masks nothing (attention without one takes
        the faster kernel), and text columns that are padding in the whole batch.
        """
        x_0 = self.space.standardise(batch.latents, batch.mask)
        # At least one column: attention needs something to look at.
        longest = max(1, int(batch.tokens_mask.sum(1).max()))
        captions = Condition(batch.tokens[:, :longest], batch.tokens_mask[:, :longest])
        return x_0, captions, None if bool(batch.mask.all()) else batch.mask
