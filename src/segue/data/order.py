"""What each position of a run trains on: rows of a cache and their captions, from seed and position alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segue.data.cache import LatentCache


@dataclass(frozen=True)
class Epoch:
    """One walk through the rows of a split; also what `Order.at` returns of some positions of one or two walks.

    Attributes:
        rows: [N] of the cache.
        choice: [N] which of its captions each comes with, counted modulo their number.
    """

    rows: np.ndarray
    choice: np.ndarray


def draw_epoch(cache: LatentCache, rows: np.ndarray, seed: int, epoch: int) -> Epoch:
    """The walk of one epoch: every row once, in an order and with captions that (seed, epoch) fix.

    Args:
        rows: of the split, in the cache's order.
    """
    order = cache.shuffled(rows, np.random.default_rng([seed, epoch]))
    # A stream of its own: whatever else is drawn for an epoch leaves the order as it is.
    choice = np.random.default_rng([seed, epoch, 1]).integers(1 << 31, size=len(rows), dtype=np.int32)
    return Epoch(order, choice)


class Order:
    """The endless walk through one split: position p belongs to epoch p // N. Nothing is dropped at an epoch's end."""

    def __init__(self, cache: LatentCache, rows: np.ndarray, seed: int) -> None:
        """
        Args:
            rows: of the split, in the cache's order; at least one.
        """
        self._cache = cache
        self._rows = rows
        self._seed = seed
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
            parts.append(Epoch(walk.rows[offset:stop], walk.choice[offset:stop]))
            first, count = first + stop - offset, count - (stop - offset)
        return (
            parts[0]
            if len(parts) == 1
            else Epoch(np.concatenate([part.rows for part in parts]), np.concatenate([part.choice for part in parts]))
        )

    def _epoch(self, epoch: int) -> Epoch:
        drawn = self._epochs.get(epoch)
        if drawn is None:
            drawn = draw_epoch(self._cache, self._rows, self._seed, epoch)
            # Two are enough at an epoch's end. A new table each time: another thread may look one up meanwhile.
            self._epochs = {e: walk for e, walk in self._epochs.items() if e == epoch - 1} | {epoch: drawn}
        return drawn
