"""The memory of a run: what it will take at its peak, counted before the first step, and what it took."""

from __future__ import annotations

import os
import sys

import torch

from segue.data.cache import LatentCache
from segue.models.presets import MemoryNeed

# What torch loads and keeps with the first forward and backward pass on a CPU, whatever the model. Measured with torch
# 2.13: 18 to 77 MiB between dit-3m and dit-10m.
RUNTIME_BYTES = 64 * 2**20


def stated_bytes(need: MemoryNeed, cache: LatentCache, device: torch.device) -> int:
    """The peak of a run that is about to begin in this process, as `peak_bytes` will measure it."""
    if device.type == "cuda":
        return need.total
    shards = sum(shard["bytes"] for shard in (*cache.meta["shards"], *cache.meta["text_shards"]))
    return resident_bytes() + RUNTIME_BYTES + need.total + shards


def resident_bytes() -> int:
    """What this process holds now; its peak so far where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_bytes(torch.device("cpu"))


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held: of the accelerator, or resident where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
