"""Batches from a latent cache, in an order that a seed fixes, from a position that is saved and restored exactly."""

from __future__ import annotations

import numpy as np

from segue.data.cache import Batch, LatentCache
from segue.types import UserError


class LatentLoader:
    """An endless walk through one split. Position p belongs to epoch p // N and takes that epoch's permutation, drawn
    from (seed, epoch); batches run across epoch ends, so nothing is dropped.

    A global batch is the next batch_size * world positions; each rank takes its consecutive slice. What a position
    holds (row and caption) depends on seed and position alone, so neither the number of ranks nor a restart changes it.
    """

    def __init__(
        self, cache: LatentCache, split: str, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        """
        Args:
            batch_size: rows of this rank's batches.

        Raises:
            UserError: the split is empty.
        """
        if batch_size < 1 or not 0 <= rank < world:
            raise ValueError(f"batch_size {batch_size}, rank {rank} of {world}")
        self.cache = cache
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.position = 0
        self._rows = np.asarray(cache.rows(split))
        if len(self._rows) == 0:
            raise UserError(
                f"{cache.path}: no row has split {split!r}; hint: give some clips this split and encode again"
            )
        self._epochs: dict[int, np.ndarray] = {}

    @property
    def epoch(self) -> int:
        """How many times the split has been walked through."""
        return self.position // len(self._rows)

    def next_batch(self, with_teacher: bool = False) -> Batch:
        """This rank's part of the next global batch.

        Args:
            with_teacher: also read the teacher's features: the largest part of a batch, and most steps need none.
        """
        # Ranks take consecutive slices of one global batch, so that it holds the same rows for any number of them.
        first = self.position + self.rank * self.batch_size
        indices = self._rows_at(range(first, first + self.batch_size))
        choice = self._choice(range(first, first + self.batch_size), indices)
        # The position counts for all ranks: every one of them saves the same state.
        self.position += self.batch_size * self.world
        batch = self.cache.batch(indices, choice, with_teacher=with_teacher)
        # A streamed cache fetches the next batch while this one is computed on.
        first = self.position + self.rank * self.batch_size
        self.cache.expect(self._rows_at(range(first, first + self.batch_size)), with_teacher)
        return batch

    def clips(self, positions: range) -> list[str]:
        """Ids of the clips at these positions, of whichever rank."""
        return [self.cache.row(i)["id"] for i in self._rows_at(positions)]

    def state_dict(self) -> dict:
        """JSON-able position, the same on every rank."""
        return {
            "position": self.position,
            "seed": self.seed,
            "split": self.split,
            "rows": len(self._rows),
            "global_batch_size": self.batch_size * self.world,
            # Only where windows decide the order: states of plain caches stay comparable with older ones.
            **({"windows": self.cache.windows} if self.cache.windows else {}),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from a saved position, also with another number of ranks of the same global batch.

        Raises:
            UserError: the state is of another split, seed, data set or global batch size.
        """
        own = self.state_dict()
        differing = [
            f"{k} {state.get(k)} there, {own.get(k)} here"
            # The position is what is restored; all else must be equal.
            for k in (own | state).keys() - {"position"}
            if state.get(k) != own.get(k)
        ]
        if differing:
            raise UserError(
                f"the loader's saved position does not fit ({'; '.join(differing)}); hint: resume with the run's own "
                "settings and cache"
            )
        self.position = state["position"]

    def _rows_at(self, positions: range) -> list[int]:
        # A batch may straddle the end of an epoch: each position looks up its own epoch's order.
        places = (divmod(position, len(self._rows)) for position in positions)
        return [int(self._order(epoch)[offset]) for epoch, offset in places]

    def _choice(self, positions: range, indices: list[int]) -> list[int]:
        """Which of its captions each row comes with."""
        counts = (len(self.cache.row(i)["captions"]) for i in indices)
        return [_caption_choice(self.seed, position, count) for position, count in zip(positions, counts)]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            self._epochs = {e: p for e, p in self._epochs.items() if e == epoch - 1}  # two are enough at an epoch's end
            self._epochs[epoch] = self.cache.shuffled(self._rows, np.random.default_rng([self.seed, epoch]))
        return self._epochs[epoch]


def _caption_choice(seed: int, position: int, captions: int) -> int:
    # Without a choice no generator is made.
    if captions == 1:
        return 0
    return int(np.random.default_rng([seed, position, captions]).integers(captions))
