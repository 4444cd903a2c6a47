"""Memory of this process: what it holds, what it has held at its peak, and how a statement about it reads.

Resident memory, as the system counts it (RSS): the libraries' own pages are in it, and most of a small command's share.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import psutil

# What torch loads and keeps with its first heavy work on a CPU, whatever the model: kernels, threads, buffers of matrix
# products. Measured with torch 2.13: 40 to 90 MiB.
RUNTIME_BYTES = 64 * 2**20


def resident_bytes() -> int:
    """What this process holds now."""
    return psutil.Process().memory_info().rss


def free_bytes() -> int:
    """Memory of the machine that a process could still take, with what the system would give back for it."""
    return psutil.virtual_memory().available


def peak_bytes() -> int:
    """The most memory that this process has held.

    Linux hands getrusage's figure down: a program that a large process starts begins with that one's peak. Its own is
    in /proc, which other systems do not have.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        own = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
        if own:
            return own
    about = psutil.Process().memory_info()
    if hasattr(about, "peak_wset"):  # Windows
        return about.peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, Linux in kibibytes.
    return peak if sys.platform == "darwin" else peak * 1024


def malloc_trim() -> None:
    """Hand what was freed back to the system, where its allocator (glibc) keeps it: after large work done once."""
    with suppress(OSError, TypeError, AttributeError):  # Windows, macOS, musl
        ctypes.CDLL(None).malloc_trim(0)


def format_bytes(size: int) -> str:
    """Bytes in words: "612 MiB", "1.31 GiB"."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
