"""Text-to-audio: data is the latent of a clip, condition is its caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from segue.codecs.latent_space import LatentSpace
from segue.data.cache import Batch
from segue.models.fields import LabelField, NumberField, field_tensors
from segue.process.noise import BatchDraws
from segue.tasks.base import Task
from segue.tasks.known_parts import with_known_parts
from segue.types import TIMES, Condition

UNKNOWN_SHARE = 0.2  # of what the manifest says of training clips: a model must also do where nothing is said


class Generation(Task):
    """Captions in, sound out."""

    name = "generation"

    def __init__(
        self,
        space: LatentSpace,
        lengths: Callable[[Sequence[int]], Sequence[float]] | None = None,
        padding: Tensor | None = None,
        numbers: Sequence[NumberField] = (),
        labels: Sequence[LabelField] = (),
        learns_silence: bool = False,
        known_share: float = 0.0,
    ) -> None:
        """
        Args:
            lengths: seconds of rows of the cache, for models that are conditioned on the length; None for others.
            padding: [C, L] standardised latents that stand behind the end of a sound; None: zeros.
            numbers, labels: fields that the model is conditioned on beside the caption.
            learns_silence: whether the padding counts in loss and attention as what the model shall generate there.
            known_share: of the training examples, of which a stretch is known; of held-out ones nothing ever is.
        """
        super().__init__(space)
        self._lengths = lengths
        self._padding = padding
        self._numbers, self._labels = tuple(numbers), tuple(labels)
        self._learns_silence = learns_silence
        self._known_share = known_share

    def prepare(self, batch: Batch, draws: BatchDraws | None = None) -> tuple[Tensor, Condition, Tensor | None]:
        """See Task.prepare."""
        batch = batch.to(self.space.device)
        x_0 = self.space.standardise(batch.latents, batch.mask)
        if self._padding is not None and batch.mask is not None:
            x_0 = x_0.where(batch.mask[:, None], self._padding[:, : x_0.shape[-1]].to(x_0.device))
        condition = self._with_fields(Condition(batch.tokens.float(), batch.tokens_mask), batch, draws)
        if self._lengths is not None:
            seconds = torch.tensor(self._lengths(batch.indices), dtype=torch.float32, device=x_0.device)
            condition = replace(condition, seconds=seconds)
        mask = None if self._learns_silence else batch.mask
        if self._known_share and draws is not None:
            condition = with_known_parts(condition, x_0, mask, draws, self._known_share)
        return x_0, condition, mask

    def _with_fields(self, condition: Condition, batch: Batch, draws: BatchDraws | None) -> Condition:
        """The condition with the numbers and labels of the model's fields, some of them hidden where draws are made."""
        if not self._numbers and not self._labels:
            return condition
        found = field_tensors(self._numbers, self._labels, batch.conditions or [{}] * len(batch.indices))
        parts = {name: value.to(self.space.device) for name, value in found.items()}
        if draws is not None:
            count = len(self._numbers)
            hidden = draws.uniform("fields", count + len(self._labels)) < UNKNOWN_SHARE
            # How long a sound is, is always known: it is no description, but what the padding follows from.
            is_time = torch.tensor([field.name in TIMES for field in self._numbers], device=hidden.device)
            parts["numbers_known"] = parts["numbers_known"] & (is_time | ~hidden[:, :count])
            parts["labels"] = parts["labels"].masked_fill(hidden[:, count:], 0)
        return replace(condition, **parts)
