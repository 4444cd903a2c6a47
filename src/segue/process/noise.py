"""Random draws keyed by what they are for, not by how many came before.

Every draw comes from a generator seeded by (seed, stream, position). So a resumed run needs no generator states, and
a batch's draws are the same on one rank or eight, in one piece or accumulated, whatever was probed in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256  # rows of a global batch that one generator draws
FRAMES = 16  # of a file, that one generator draws


def keyed_generator(seed: int, stream: str, position: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on nothing but its arguments; those of other kinds of devices draw other numbers."""
    # Not hash(): Python salts that of a string anew in each process.
    digest = hashlib.sha256(f"{seed}/{stream}/{position}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def keyed_noise(shape: Sequence[int], seed: int, stream: str, positions: Sequence[int]) -> Tensor:
    """Standard normal noise [len(positions), *shape], one independent draw a position: of sounds, not of batches."""
    return torch.stack([torch.randn(*shape, generator=keyed_generator(seed, stream, p)) for p in positions])


def noise_of_frames(channels: int, frames: int, seed: int, stream: str, first_frame: int = 0) -> Tensor:
    """[channels, frames] standard normal, keyed by blocks of frames: a part of a file draws what all of it draws there.

    Args:
        first_frame: of the chunk, in the file.
    """
    blocks = range(first_frame // FRAMES, -(-(first_frame + frames) // FRAMES))
    drawn = keyed_noise((channels, FRAMES), seed, stream, blocks)
    start = first_frame - blocks.start * FRAMES
    return drawn.transpose(0, 1).flatten(1)[:, start : start + frames]


@dataclass(frozen=True)
class BatchDraws:
    """The random numbers of one global batch, of which each rank takes those of its own rows.

    They are drawn for the whole batch by one generator, and in a batch of more than BLOCK rows by one for each BLOCK of
    them: so the number of ranks changes nothing, and no rank draws much more than its part.

    Attributes:
        seed: of the run.
        position: examples seen before this global batch.
        rows: of this rank.
        rank, world: this process and how many there are.
        device: that draws. A CPU and a GPU draw different numbers, each the same ones every time.
    """

    seed: int
    position: int
    rows: int
    rank: int = 0
    world: int = 1
    device: torch.device | str = "cpu"

    def normal(self, stream: str, *shape: int) -> Tensor:
        """Standard normal numbers [rows, *shape] float32."""
        return self._draw(stream, shape, torch.Tensor.normal_)

    def uniform(self, stream: str, *shape: int) -> Tensor:
        """Numbers [rows, *shape] float32, evenly in [0, 1)."""
        return self._draw(stream, shape, torch.Tensor.uniform_)

    def _draw(self, stream: str, shape: tuple[int, ...], fill: Callable[..., Tensor]) -> Tensor:
        first, end = self.rank * self.rows, (self.rank + 1) * self.rows
        drawn = torch.empty(self.rows, *shape, device=self.device)
        for start in range(first - first % BLOCK, end, BLOCK):
            # A block is as long as it is in the whole batch, even where the rank needs a part of it.
            stop = min(start + BLOCK, self.rows * self.world)
            mine = slice(max(start, first), min(stop, end))
            whole = mine == slice(start, stop)
            part = drawn[mine.start - first : mine.stop - first]
            block = part if whole else torch.empty(stop - start, *shape, device=self.device)
            fill(block, generator=keyed_generator(self.seed, stream, self.position + start, self.device))
            if not whole:
                part.copy_(block[mine.start - start : mine.stop - start])
        return drawn
