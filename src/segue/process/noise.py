"""Random draws keyed by what they are for, not by how many came before.

Every draw comes from a generator seeded by (seed, stream, position). So a resumed run needs no generator states, and
the noise of example n is the same on one rank or eight, in one piece or accumulated, whatever was probed in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def keyed_generator(seed: int, stream: str, position: int = 0) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments."""
    # Not hash(): Python salts that of a string anew in each process.
    digest = hashlib.sha256(f"{seed}/{stream}/{position}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def keyed_noise(shape: Sequence[int], seed: int, stream: str, positions: Sequence[int]) -> Tensor:
    """Standard normal noise [len(positions), *shape], one independent draw a position."""
    return torch.stack([torch.randn(*shape, generator=keyed_generator(seed, stream, p)) for p in positions])
