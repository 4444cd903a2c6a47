"""Batches from a latent cache, in an order that a seed fixes, from a position that is saved and restored exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from segue.data.cache import Batch, LatentCache
from segue.data.crops import Crops
from segue.data.order import Bucket, BucketedOrder, Order, buckets_of
from segue.data.prefetch import Prefetcher
from segue.data.resident import resident_rows
from segue.types import UserError

AHEAD = 2  # batches that are read ahead
DRAWS = 2  # version of what is drawn beside the order of rows (process/noise.py): 1 had a generator for every example


class _Part(NamedTuple):
    """What one rank asks for: its first position, and whether with teacher features."""

    first: int
    with_teacher: bool


class LatentLoader:
    """An endless walk through one split (data/order.py); batches run across epoch ends, so nothing is dropped.

    A global batch is the next batch_size * world positions; each rank takes its consecutive slice. What a position
    holds (row and caption) depends on seed and position alone, so neither the number of ranks nor a restart changes it.
    A thread reads the next batches ahead; its state is that of the batches that were handed out. Close it at the end,
    or use it as a context manager.
    """

    def __init__(
        self,
        cache: LatentCache,
        split: str,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        on_device: str = "no",
        crops: Crops | None = None,
        crop_frames: int = 0,
        bucket_patch: int = 0,
    ) -> None:
        """
        Args:
            batch_size: rows of this rank's batches.
            device: that batches are handed out on.
            on_device: whether the rows live on it, "yes", "no" or "auto" (data/resident.py).
            crops: what crops of the cache's sounds are taken by; None: its rows as they are.
            crop_frames: of each crop.
            bucket_patch: latent frames of a token, where batches are of sounds of about one length, and as long as
                these; 0: all batches are of crop_frames.

        Raises:
            UserError: the split is empty, or the rows cannot live on the device.
        """
        if batch_size < 1 or not 0 <= rank < world:
            raise ValueError(f"batch_size {batch_size}, rank {rank} of {world}")
        self.cache = cache
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.device = torch.device(device)
        self.position = 0
        self.padding: float | None = None  # share of tokens, where there are buckets
        rows = np.asarray(cache.rows(split))
        if len(rows) == 0:
            raise UserError(
                f"{cache.path}: no row has split {split!r}; hint: give some clips this split and encode again"
            )
        self._crops = crops
        self._crop_frames = crop_frames
        self._order: Order | BucketedOrder = Order(cache, rows, seed)
        if crops is not None and bucket_patch:
            frames = np.minimum(crops.frames_of(rows), crop_frames)
            buckets = buckets_of(rows, frames, bucket_patch, batch_size * world)
            self._order = BucketedOrder(cache, buckets, seed, batch_size * world)
            self.padding = padding_of(buckets, crops, bucket_patch)
        self._resident = resident_rows(cache, rows, self.device, on_device)
        self._ahead = Prefetcher(self._read, self.device)
        self._resumed_draws = DRAWS

    def __enter__(self) -> LatentLoader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the thread that reads ahead."""
        self._ahead.close()

    @property
    def epoch(self) -> int:
        """How many times the split has been walked through."""
        return self.position // len(self._order)

    def next_batch(self, with_teacher: bool | Callable[[int], bool] = False) -> Batch:
        """This rank's part of the next global batch, on the loader's device.

        Args:
            with_teacher: with the teacher's features: the largest part of a batch, and many steps need none. Where that
                changes from step to step, whether the batch so many steps later needs them, as far as can be foreseen:
                a batch that is read ahead in vain costs as much as one in use.

        Raises:
            UserError: a file of the cache cannot be read.
        """
        # Ranks take consecutive slices of one global batch, so that it holds the same rows for any number of them.
        step = self.batch_size * self.world
        first = self.position + self.rank * self.batch_size
        needs = with_teacher if callable(with_teacher) else lambda later: with_teacher
        if self._resident is not None:
            drawn = self._order.at(first, self.batch_size)
            if self._crops is None:
                batch = self._resident.batch(drawn.rows, drawn.choice, needs(0))
            else:
                at = self._crops.at(drawn.rows, drawn.place, self._frames_at(first))
                batch = self._resident.cropped(self._crops, at, drawn.choice, needs(0))
        else:
            part, *following = (_Part(first + later * step, needs(later)) for later in range(1 + AHEAD))
            batch = self._ahead.take(part, following).to(self.device)
        # The position counts for all ranks: every one of them saves the same state.
        self.position += step
        return batch

    def _read(self, part: _Part) -> Batch:
        drawn = self._order.at(part.first, self.batch_size)
        pin = self.device.type == "cuda"
        if self._crops is None:
            return self.cache.batch(drawn.rows, drawn.choice, part.with_teacher, pin=pin)
        at = self._crops.at(drawn.rows, drawn.place, self._frames_at(part.first))
        return self._crops.batch(at, drawn.choice, part.with_teacher, pin)

    def _frames_at(self, position: int) -> int:
        """Frames of the crops of the batch that a position belongs to."""
        return self._order.frames_at(position) if isinstance(self._order, BucketedOrder) else self._crop_frames

    def clips(self, positions: range) -> list[str]:
        """Ids of the clips at these positions, of whichever rank."""
        return [self.cache.row(int(i))["id"] for i in self._order.at(positions.start, len(positions)).rows]

    def describe(self) -> str:
        """One line for people: where the rows live; after a restart, whether draws differ from those before it."""
        if self._resident is not None:
            where = f"on {self.device}, {self._resident.bytes / 1e6:,.0f} MB"
        else:
            where = f"read from {self.cache.path}, {AHEAD} batches ahead"
        line = f"data: {len(self._order):,} rows, {where}"
        if self.padding is not None:
            line += f", in batches of about one length: {self.padding:.1%} of tokens are padding"
        if self._resumed_draws < DRAWS:
            line += (
                "; the run goes on from an earlier version of segue: its order of rows stays, noise, dropped captions "
                "and choices of captions are new draws from here on"
            )
        return line

    def state_dict(self) -> dict:
        """JSON-able position, the same on every rank."""
        return {
            "position": self.position,
            "seed": self.seed,
            "split": self.split,
            "rows": len(self._order),
            "global_batch_size": self.batch_size * self.world,
            "draws": DRAWS,
            # Only where windows decide the order: states of plain caches stay comparable with older ones.
            **({"windows": self.cache.windows} if self.cache.windows else {}),
            **({"crop_frames": self._crop_frames, "bucketed": self.padding is not None} if self._crops else {}),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from a saved position, also with another number of ranks of the same global batch.

        Raises:
            UserError: the state is of another split, seed, data set or global batch size.
        """
        own = self.state_dict()
        differing = [
            f"{k} {state.get(k)} there, {own.get(k)} here"
            # The position is what is restored, and older runs go on with today's draws; all else must be equal.
            for k in (own | state).keys() - {"position", "draws"}
            if state.get(k) != own.get(k)
        ]
        if differing:
            raise UserError(
                f"the loader's saved position does not fit ({'; '.join(differing)}); hint: resume with the run's own "
                "settings and cache"
            )
        self.position = state["position"]
        self._resumed_draws = state.get("draws", 1)


def padding_of(buckets: list[Bucket], crops: Crops, patch_frames: int) -> float:
    """Share of the tokens of whole buckets that are padding."""
    tokens = sum(len(bucket.rows) * bucket.frames // patch_frames for bucket in buckets)
    real = sum(
        int((-(-np.minimum(crops.frames_of(bucket.rows), bucket.frames) // patch_frames)).sum()) for bucket in buckets
    )
    return 1 - real / tokens
