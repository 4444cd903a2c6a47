"""The task interface: from a cached batch to what is generated and what is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from segue.data.cache import Batch, LatentCache
from segue.types import Condition


class Task(ABC):
    """What is data and what is condition.

    Subclasses set:
        name: as TrainConfig.task and a model's card have it.
    """

    name: str

    def statistics(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """What latents are standardised by, from the cache's mean and standard deviation, [C, 1] each."""
        return mean, std

    def prime(self, model: nn.Module, cache: LatentCache, statistics: tuple[Tensor, Tensor]) -> None:  # noqa: B027
        """Set what of the model a closed form can set; deterministic. Most tasks have nothing of the kind.

        Args:
            model: fresh, on the CPU.
            cache: that it will train on.
            statistics: mean and standard deviation [C, 1].
        """

    @abstractmethod
    def prepare(
        self, batch: Batch, statistics: tuple[Tensor, Tensor], positions: Sequence[int] | None = None
    ) -> tuple[Tensor, Condition, Tensor | None]:
        """A cached batch as the training step takes it: x_0 [B, C, L], Condition, and the mask (None: all is real).

        Args:
            batch: rows of a cache.
            statistics: mean and standard deviation [C, 1].
            positions: of the examples in the run, which key what the task draws; None for held-out clips, where
                nothing is drawn.
        """
