"""Crops of any length from the rows of a cache: which rows hold one, and how it is put together from them.

A cache whose rows are timed keeps each sound as rows that follow each other without a seam. A crop reads the few rows
that it lies in, so that one cache serves every length of crop, and a long sound costs no more memory than a short one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segue.data.cache import Batch, LatentCache, Rows, real_frames
from segue.types import TIMES, UserError


@dataclass(frozen=True)
class CropBatch:
    """Where the crops of a batch stand.

    Attributes:
        rows: [B] rows of the cache that the crops were drawn for.
        start_frames: [B] first frame of each crop in its sound.
        frames: length of the crops.
        real: [B] how many frames of each are sound.
    """

    rows: np.ndarray
    start_frames: np.ndarray
    frames: int
    real: np.ndarray

    @property
    def mask(self) -> Tensor | None:
        """[B, frames] bool: which frames are sound; None where all are."""
        return None if bool((self.real >= self.frames).all()) else real_frames(self.real, self.frames)


class Crops:
    """The sounds of a cache, as stretches of its rows.

    Attributes:
        needed: whether a sound has several rows; where none has, crops of a row's length are the rows themselves.
    """

    def __init__(self, cache: LatentCache) -> None:
        """
        Raises:
            UserError: a cache whose rows do not know where in their sound they start, or a packed one.
        """
        if not cache.addressable:
            raise UserError(
                f"{cache.path}: a packed cache has whole rows alone; hint: train on the cache that it was packed from"
            )
        rows = [cache.row(i) for i in range(len(cache))]
        if not all(TIMES[0] in row.get("conditions", {}) for row in rows):
            raise UserError(
                f"{cache.path}: its rows do not know where in their sound they start; hint: segue encode again, into "
                "another folder"
            )
        begins = np.array([row["conditions"][TIMES[0]] == 0 for row in rows])
        begins[0] = True
        sound = np.cumsum(begins) - 1
        frames = cache.frames_of(np.arange(len(cache)))
        first = np.flatnonzero(begins)
        self._first = first[sound]
        self._count = np.bincount(sound)[sound]
        self._total = np.bincount(sound, weights=frames).astype(np.int64)[sound]
        several = frames[(self._count > 1) & (self._first == np.arange(len(cache)))]
        # Of rows behind which others follow: all are equally long.
        self._step = int(several.max()) if len(several) else cache.frames
        self._cache = cache
        self._frame_rate_hz = cache.meta["sample_rate_hz"] / cache.meta["hop_samples"]
        self.needed = len(several) > 0

    def frames_of(self, rows: np.ndarray) -> np.ndarray:
        """[B] frames of the sounds that these rows belong to."""
        return self._total[rows]

    def at(self, rows: np.ndarray, place: np.ndarray, frames: int) -> CropBatch:
        """A crop for each row: evenly anywhere in its sound, and over an epoch about as often in each part of it.

        Args:
            place: [B] numbers in [0, 1) that say where.
            frames: of each crop; shorter sounds are taken whole.
        """
        total = self._total[rows]
        free = np.maximum(total - frames, 0)
        # The n-th of a sound's rows draws from the n-th part of all starts.
        share = (rows - self._first[rows] + place) / self._count[rows]
        start = np.minimum((share * (free + 1)).astype(np.int64), free)
        return CropBatch(rows, start, frames, np.minimum(total - start, frames))

    def batch(self, crops: CropBatch, choice: Rows, with_teacher: bool = False, pin: bool = False) -> Batch:
        """The crops as they are stored; see `LatentCache.batch`."""
        cache = self._cache
        rows = self.rows_of(crops).ravel()
        latents = self.latents(crops, cache.stored_latents(rows))
        teacher = None
        if with_teacher and cache.meta["teacher"] is not None:
            features, real = self.teacher(crops, cache.stored_teacher(rows))
            teacher = features, real_frames(real, features.shape[1])
        text = cache.stored_text(crops.rows, choice)
        found = Batch(latents, crops.mask, *text, teacher, crops.rows.tolist(), self.conditions(crops))
        return found.map(lambda x: x.pin_memory()) if pin else found

    # --- what the crops hold, from what rows hold ---------------------------------------------------------------------

    def rows_of(self, crops: CropBatch) -> np.ndarray:
        """[B, n] the rows that each crop lies in; behind its last one, that one again."""
        count = (crops.frames + self._step - 2) // self._step + 1
        first = crops.start_frames // self._step
        at = np.minimum(first[:, None] + np.arange(count), self._count[crops.rows][:, None] - 1)
        return self._first[crops.rows][:, None] + at

    def latents(self, crops: CropBatch, stored: Tensor) -> Tensor:
        """[B, C, frames] of [B * n, C, L], the stored latents of `rows_of`; padding is whatever stands there."""
        of_rows = stored[..., : self._step].unflatten(0, (len(crops.rows), -1)).transpose(1, 2).flatten(2)
        at = (crops.start_frames % self._step)[:, None] + np.arange(crops.frames)
        return _taken(of_rows, at, 2)

    def teacher(self, crops: CropBatch, stored: Tensor) -> tuple[Tensor, np.ndarray]:
        """[B, S, F] of [B * n, S', F], the stored features of `rows_of`, and how many of each crop's are real.

        Each frame is that of the row which is nearest to its time.
        """
        rate_hz = self._cache.meta["teacher_frame_rate_hz"]
        frames = int(np.ceil(crops.frames / self._frame_rate_hz * rate_hz - 1e-6))
        row_sec = self._step / self._frame_rate_hz
        begin = crops.start_frames % self._step / self._frame_rate_hz
        time = begin[:, None] + (np.arange(frames) + 0.5) / rate_hz
        row = np.minimum((time / row_sec).astype(np.int64), len(stored) // len(crops.rows) - 1)
        within = np.clip(((time - row * row_sec) * rate_hz).astype(np.int64), 0, stored.shape[1] - 1)
        of_rows = stored.unflatten(0, (len(crops.rows), -1)).flatten(1, 2)
        real = np.ceil(crops.real / self._frame_rate_hz * rate_hz).astype(np.int64)
        return _taken(of_rows, row * stored.shape[1] + within, 1), np.minimum(real, frames)

    def conditions(self, crops: CropBatch) -> list[dict] | None:
        """What is known of each crop: as of its row, but where it starts."""
        known = self._cache.conditions_of(crops.rows)
        starts = crops.start_frames / self._frame_rate_hz
        return known and [row | {TIMES[0]: float(start)} for row, start in zip(known, starts)]


def _taken(values: Tensor, at: np.ndarray, axis: int) -> Tensor:
    """Entries `at` [B, N] of an axis of values [B, ...]."""
    shape = [len(at) if n == 0 else at.shape[1] if n == axis else 1 for n in range(values.ndim)]
    if values.device.type == "cpu":  # torch would start threads of its own for the thread that reads ahead
        return torch.from_numpy(np.take_along_axis(values.numpy(), at.reshape(shape), axis))
    index = torch.from_numpy(at).pin_memory().to(values.device, non_blocking=True).reshape(shape)
    return values.gather(axis, index.expand([n if k in (0, axis) else values.shape[k] for k, n in enumerate(shape)]))
