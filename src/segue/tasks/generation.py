"""Text-to-audio: data is the latent of a clip, condition is its caption."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from segue.data.cache import Batch
from segue.tasks.base import Task
from segue.types import Condition


def standardise(latents: Tensor, mean: Tensor, std: Tensor, mask: Tensor) -> Tensor:
    """[B, C, L] codec latents to mean 0 and standard deviation 1 over the training set; padding becomes exactly 0.

    Args:
        latents: [B, C, L].
        mean, std: [C, 1] statistics of the training set.
        mask: [B, L] bool, True where a frame is real.
    """
    return ((latents - mean) / std) * mask[:, None]


def unstandardise(x_0: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The inverse of `standardise`, ready for codec.decode."""
    return x_0 * std + mean


class Generation(Task):
    """Captions in, sound out."""

    name = "generation"

    def prepare(
        self, batch: Batch, statistics: tuple[Tensor, Tensor], positions: Sequence[int] | None = None
    ) -> tuple[Tensor, Condition, Tensor | None]:
        """See Task.prepare.

        What costs time and changes nothing is left out here: a mask that masks nothing (attention without one takes
        the faster kernel), and text columns that are padding in the whole batch.
        """
        x_0 = standardise(batch.latents, *statistics, batch.mask)
        longest = max(1, int(batch.tokens_mask.sum(1).max()))
        captions = Condition(batch.tokens[:, :longest], batch.tokens_mask[:, :longest])
        return x_0, captions, None if bool(batch.mask.all()) else batch.mask
