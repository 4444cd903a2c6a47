"""Text-to-audio: data is the latent of a clip, condition is its caption."""

from __future__ import annotations

from torch import Tensor

from segue.data.cache import Batch
from segue.process.noise import BatchDraws
from segue.tasks.base import Task
from segue.types import Condition


class Generation(Task):
    """Captions in, sound out."""

    name = "generation"

    def prepare(self, batch: Batch, draws: BatchDraws | None = None) -> tuple[Tensor, Condition, Tensor | None]:
        """See Task.prepare."""
        batch = batch.to(self.space.device)
        x_0 = self.space.standardise(batch.latents, batch.mask)
        return x_0, Condition(batch.tokens.float(), batch.tokens_mask), batch.mask
