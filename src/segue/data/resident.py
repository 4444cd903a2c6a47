"""Rows of a cache kept as whole tensors in the memory of one device: a batch is one gather a tensor."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from segue.data.cache import Batch, LatentCache, longest, real_frames
from segue.data.crops import CropBatch, Crops
from segue.types import UserError

AT_ONCE = 1024  # rows that are read and moved together
MOST_SHARE = 0.25  # of a GPU's free memory that a cache may take unasked: model and activations need the rest
CHOICES = ("auto", "yes", "no")


class ResidentRows:
    """Some rows of a cache on a device, in the numbers that are stored.

    Attributes:
        bytes: of its tensors, teacher features included.
    """

    def __init__(self, cache: LatentCache, rows: np.ndarray, device: torch.device) -> None:
        """
        Args:
            rows: in the cache's order.

        Raises:
            UserError: a shard cannot be read, or the device has no room.
        """
        self._cache = cache
        self._rows = rows
        self._device = device
        self._captions = captions_of_all(cache, rows)
        self._row_at = np.full(len(cache), -1)
        self._row_at[rows] = np.arange(len(rows))
        self._caption_at = np.full(int(self._captions[-1]) + 1, -1)
        self._caption_at[self._captions] = np.arange(len(self._captions))
        self.bytes = resident_bytes(cache, rows)
        self._latents = self._moved(rows, cache.stored_latents)
        self._tokens = self._moved(self._captions, lambda part: cache.stored_tokens(part, cache.token_masks(part)))
        self._teacher: Tensor | None = None  # moved when it is first asked for: a run without alignment never does

    def batch(self, rows: np.ndarray, choice: np.ndarray, with_teacher: bool) -> Batch:
        """These rows; see LatentCache.batch."""
        cache = self._cache
        at = self._moved_index(self._row_at[rows])
        teacher = None
        if (features := self._features(at, with_teacher)) is not None:
            teacher = features, self._to_device(real_frames(cache.teacher_frames_of(rows), features.shape[1]))
        # Lengths are known here: asking the device for them would wait for it.
        mask = real_frames(cache.frames_of(rows), cache.frames)
        return Batch(
            self._latents.index_select(0, at),
            None if bool(mask.all()) else self._to_device(mask),
            *self._text(rows, choice),
            teacher,
            rows.tolist(),
            cache.conditions_of(rows),
        )

    def cropped(self, crops: Crops, at: CropBatch, choice: np.ndarray, with_teacher: bool) -> Batch:
        """Crops of these rows; see Crops.batch."""
        index = self._moved_index(self._row_at[crops.rows_of(at).ravel()])
        teacher = None
        if (stored := self._features(index, with_teacher)) is not None:
            features, real = crops.teacher(at, stored)
            teacher = features, self._to_device(real_frames(real, features.shape[1]))
        return Batch(
            crops.latents(at, self._latents.index_select(0, index)),
            None if at.mask is None else self._to_device(at.mask),
            *self._text(at.rows, choice),
            teacher,
            at.rows.tolist(),
            crops.conditions(at),
        )

    def _features(self, at: Tensor, with_teacher: bool) -> Tensor | None:
        if not with_teacher or self._cache.meta["teacher"] is None:
            return None
        if self._teacher is None:
            self._teacher = self._moved(self._rows, self._cache.stored_teacher)
        return self._teacher.index_select(0, at)

    def _text(self, rows: np.ndarray, choice: np.ndarray) -> tuple[Tensor, Tensor]:
        captions = self._cache.captions_of(rows, choice)
        mask = self._cache.token_masks(captions)
        mask = mask[:, : longest(mask)]
        columns = self._tokens.narrow(1, 0, mask.shape[1])
        tokens = columns.index_select(0, self._moved_index(self._caption_at[captions]))
        return tokens, self._to_device(torch.from_numpy(mask))

    def _moved(self, numbers: np.ndarray, read: Callable[[np.ndarray], Tensor]) -> Tensor:
        """What `read` finds of all these rows or captions, on the device."""
        try:
            first = read(numbers[:1])
            whole = torch.empty(len(numbers), *first.shape[1:], dtype=first.dtype, device=self._device)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{self._cache.path}: {self.bytes / 1e9:.1f} GB do not fit on {self._device}; "
                "hint: --cache-on-device no"
            ) from error
        for start in range(0, len(numbers), AT_ONCE):
            part = read(numbers[start : start + AT_ONCE])
            whole[start : start + len(part)].copy_(part)
        return whole

    def _moved_index(self, at: np.ndarray) -> Tensor:
        return self._to_device(torch.from_numpy(at))

    def _to_device(self, values: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return values.to(self._device)
        return values.pin_memory().to(self._device, non_blocking=True)


def captions_of_all(cache: LatentCache, rows: np.ndarray) -> np.ndarray:
    """Numbers of the captions that these rows can come with, in order."""
    most = max(len(cache.row(int(i))["captions"]) for i in rows)
    return np.unique(np.concatenate([cache.captions_of(rows, np.full(len(rows), n)) for n in range(most)]))


def resident_bytes(cache: LatentCache, rows: np.ndarray) -> int:
    """Bytes that these rows take on a device, with the teacher's features if the cache has them."""
    row = cache.stored_latents(rows[:1]).nbytes
    if cache.meta["teacher"] is not None:
        row += cache.stored_teacher(rows[:1]).nbytes
    caption = cache.text_tokens * cache.text_dim * cache.dtype.itemsize
    return len(rows) * row + len(captions_of_all(cache, rows)) * caption


def resident_rows(cache: LatentCache, rows: np.ndarray, device: torch.device, choice: str) -> ResidentRows | None:
    """The rows on the device, or None where they stay in their files.

    Args:
        choice: "yes", "no", or "auto": where they take at most MOST_SHARE of a GPU's free memory. On a CPU the system
            keeps files in memory by itself, and processes share them.

    Raises:
        UserError: another choice, a packed cache that is wanted on the device, or no room there.
    """
    if choice not in CHOICES:
        raise UserError(f"--cache-on-device {choice}: use one of {', '.join(CHOICES)}")
    if choice == "yes" and not cache.addressable:
        raise UserError(
            f"{cache.path}: a packed cache is streamed; hint: leave --cache-on-device away, or train on the cache that "
            "it was packed from"
        )
    if choice == "no" or not cache.addressable:
        return None
    if choice == "auto":
        if device.type != "cuda":
            return None
        free = torch.cuda.mem_get_info(device)[0]
        if resident_bytes(cache, rows) > MOST_SHARE * free:
            return None
    return ResidentRows(cache, rows, device)
