"""What each position of a run trains on: rows of a cache, captions and places of crops, from seed and position alone.

positions -> global batches -> a bucket of sounds of about one length, where there are several -> rows
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import numpy as np

from segue.data.cache import LatentCache

BLOCK = 256  # batches whose buckets are drawn together
MOST_PADDING = 0.1  # of a bucket's tokens


@dataclass(frozen=True)
class Epoch:
    """One walk through the rows of a split; also what `Order.at` returns of some positions of one or two walks.

    Attributes:
        rows: [N] of the cache.
        choice: [N] which of its captions each comes with, counted modulo their number.
        place: [N] numbers in [0, 1): where in its sound the crop of each is taken (data/crops.py).
    """

    rows: np.ndarray
    choice: np.ndarray
    place: np.ndarray


def draw_epoch(cache: LatentCache, rows: np.ndarray, seed: int, epoch: int, bucket: int | None = None) -> Epoch:
    """The walk of one epoch: every row once, in an order and with captions and places that (seed, epoch) fix.

    Args:
        rows: of the split, in the cache's order.
        bucket: number of the bucket that these rows are.
    """
    # Streams of their own: whatever else is drawn for an epoch leaves the order as it is.
    streams = [[seed, epoch], [seed, epoch, 1], [seed, epoch, 2]]
    if bucket is not None:
        streams = [[seed, epoch, n, bucket + 1] for n in range(3)]
    order, choice, place = (np.random.default_rng(stream) for stream in streams)
    return Epoch(
        cache.shuffled(rows, order),
        choice.integers(1 << 31, size=len(rows), dtype=np.int32),
        place.random(len(rows)),
    )


class Order:
    """The endless walk through one split: position p belongs to epoch p // N. Nothing is dropped at an epoch's end."""

    def __init__(self, cache: LatentCache, rows: np.ndarray, seed: int, bucket: int | None = None) -> None:
        """
        Args:
            rows: of the split, in the cache's order; at least one.
            bucket: number of the bucket that these rows are.
        """
        self._cache = cache
        self._rows = rows
        self._seed = seed
        self._bucket = bucket
        self._epochs: dict[int, Epoch] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, first: int, count: int) -> Epoch:
        """What `count` positions from `first` on train on."""
        parts = []
        while count > 0:
            epoch, offset = divmod(first, len(self._rows))
            walk = self._epoch(epoch)
            # A batch may straddle the end of an epoch, and even hold several of a small set.
            stop = min(offset + count, len(self._rows))
            parts.append(Epoch(walk.rows[offset:stop], walk.choice[offset:stop], walk.place[offset:stop]))
            first, count = first + stop - offset, count - (stop - offset)
        return _joined(parts)

    def _epoch(self, epoch: int) -> Epoch:
        drawn = self._epochs.get(epoch)
        if drawn is None:
            drawn = draw_epoch(self._cache, self._rows, self._seed, epoch, self._bucket)
            # Two are enough at an epoch's end. A new table each time: another thread may look one up meanwhile.
            self._epochs = {e: walk for e, walk in self._epochs.items() if e == epoch - 1} | {epoch: drawn}
        return drawn


def _joined(parts: list[Epoch]) -> Epoch:
    if len(parts) == 1:
        return parts[0]
    return Epoch(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "choice", "place")))


@dataclass(frozen=True)
class Bucket:
    """Rows of sounds of about one length.

    Attributes:
        frames: of their crops.
        rows: of the cache.
    """

    frames: int
    rows: np.ndarray


def buckets_of(rows: np.ndarray, frames: np.ndarray, patch_frames: int, least: int) -> list[Bucket]:
    """Rows by their length, so that padding is at most a tenth of each bucket's tokens.

    From the longest on, a bucket takes in shorter ones while its padding allows, and beyond that until it has `least`
    rows, so that no batch must hold one row several times.

    Args:
        frames: [N] real frames of each row's crop.
        patch_frames: latent frames of a token.
        least: rows of a bucket, if there are as many.
    """
    by_length = np.argsort(-frames, kind="stable")
    tokens = -(-frames[by_length] // patch_frames)
    buckets: list[Bucket] = []
    begin = 0
    while begin < len(rows):
        # Share of padding, if the bucket ended behind each of the rows that are left.
        longest = int(tokens[begin])
        size = np.arange(1, len(rows) - begin + 1)
        padding = 1 - np.cumsum(tokens[begin:]) / (longest * size)
        end = begin + max(int((padding <= MOST_PADDING).sum()), min(least, len(rows) - begin))
        # What would be too few for a bucket of its own stays in this one.
        end = len(rows) if len(rows) - end < least else end
        buckets.append(Bucket(longest * patch_frames, np.sort(rows[by_length[begin:end]])))
        begin = end
    return buckets


class BucketedOrder:
    """An endless walk in global batches, each from one bucket; each bucket is walked through as a split is."""

    def __init__(self, cache: LatentCache, buckets: list[Bucket], seed: int, global_batch: int) -> None:
        self._orders = [Order(cache, bucket.rows, seed, number) for number, bucket in enumerate(buckets)]
        self._frames = [bucket.frames for bucket in buckets]
        self._seed = seed
        self._batch = global_batch
        rows = np.array([len(bucket.rows) for bucket in buckets])
        self._shares = rows / rows.sum()
        self._before = [np.zeros(len(buckets), np.int64)]  # batches of each bucket before each block
        self._lock = Lock()  # the thread that reads ahead, and who asks for the names of clips

    def __len__(self) -> int:
        return sum(map(len, self._orders))

    def at(self, first: int, count: int) -> Epoch:
        """What `count` positions from `first` on train on."""
        parts = []
        while count > 0:
            batch, offset = divmod(first, self._batch)
            bucket, number = self._bucket(batch)
            size = min(count, self._batch - offset)
            parts.append(self._orders[bucket].at(number * self._batch + offset, size))
            first, count = first + size, count - size
        return _joined(parts)

    def frames_at(self, position: int) -> int:
        """Frames of the crops of the batch that a position belongs to."""
        return self._frames[self._bucket(position // self._batch)[0]]

    def _bucket(self, batch: int) -> tuple[int, int]:
        """The bucket of a global batch, and how many batches of it were before."""
        block, offset = divmod(batch, BLOCK)
        with self._lock:
            while len(self._before) <= block:
                drawn = self._drawn(len(self._before) - 1)
                self._before.append(self._before[-1] + np.bincount(drawn, minlength=len(self._frames)))
        drawn = self._drawn(block)
        bucket = int(drawn[offset])
        return bucket, int(self._before[block][bucket] + (drawn[:offset] == bucket).sum())

    def _drawn(self, block: int) -> np.ndarray:
        # A bucket is drawn as often as its share of the rows; how often it was is counted, not assumed.
        generator = np.random.default_rng([self._seed, block, 3, 1])
        return generator.choice(len(self._frames), BLOCK, p=self._shares)
