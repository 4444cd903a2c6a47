"""The task interface: from a cached batch to what is generated and what is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from segue.codecs.latent_space import LatentSpace
from segue.data.cache import Batch, LatentCache
from segue.process.noise import BatchDraws
from segue.types import Condition


class Task(ABC):
    """What is data and what is condition.

    Subclasses set:
        name: as TrainConfig.task and a model's card have it.

    Attributes:
        space: the standardised latents that it works in.
    """

    name: str

    def __init__(self, space: LatentSpace) -> None:
        self.space = space

    def initialise(  # noqa: B027
        self, model: nn.Module, cache: LatentCache, saved: Mapping[str, Tensor] | None = None
    ) -> None:
        """Set what of the model a closed form can set; deterministic. Most tasks have nothing of the kind.

        Args:
            model: fresh, on the CPU.
            cache: that it will train on.
            saved: the model's tensors in a run that goes on; the task takes its own part of them, and the model, which
                will get all of them, stays as it is.
        """

    @abstractmethod
    def prepare(self, batch: Batch, draws: BatchDraws | None = None) -> tuple[Tensor, Condition, Tensor | None]:
        """A cached batch as the training step takes it: x_0 [B, C, L], Condition, and the mask (None: all is real).

        All of them are float32 or bool, on the space's device.

        Args:
            batch: rows of a cache.
            draws: what the task draws at random comes from here; None for held-out clips, where nothing is drawn.
        """
