"""Text-to-audio: data is the latent of a clip, condition is its caption."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

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
        self,
        latents: Tensor,
        mask: Tensor,
        tokens: Tensor,
        tokens_mask: Tensor,
        statistics: tuple[Tensor, Tensor],
        positions: Sequence[int] | None = None,
    ) -> tuple[Tensor, Condition, Tensor | None]:
        """See Task.prepare.

        What costs time and changes nothing is left out here: a mask that masks nothing (attention without one takes
        the faster kernel), and text columns that are padding in the whole batch.
        """
        x_0 = standardise(latents, *statistics, mask)
        longest = max(1, int(tokens_mask.sum(1).max()))
        return x_0, Condition(tokens[:, :longest], tokens_mask[:, :longest]), None if bool(mask.all()) else mask
