"""How many CPU threads a training takes beside others: processes that fight for cores wait for each other all the time.

A training holds the lock of a file of its own, which the system lets go of however it ends. The others count them.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from filelock import BaseFileLock, FileLock, Timeout

from segue.devices import cores, describe_device


class Threads:
    """The CPU threads of one training, while it runs; a context manager.

    Its share of the cores, never more than it had, and put back at the end. Where OMP_NUM_THREADS is set, that decides.
    """

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        """
        Args:
            device: of the training; on a GPU nothing is changed.
            folder: of the lock files; one of this user, if it is not given.
        """
        user = os.getuid() if hasattr(os, "getuid") else 0
        self._folder = folder or Path(tempfile.gettempdir()) / f"segue-trainings-{user}"
        self._device = device
        self._chosen = device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ
        self._before = torch.get_num_threads()
        self._others = 0
        self._own: BaseFileLock | None = None

    def __enter__(self) -> Threads:
        # No temporary folder on some machines, and folders without locks: then nobody is counted.
        with suppress(OSError, NotImplementedError):
            self._folder.mkdir(exist_ok=True)
            lock = FileLock(self._folder / f"{os.getpid()}-{id(self)}", blocking=False)
            lock.acquire()
            self._own = lock
        self.adjust()
        return self

    def __exit__(self, *_) -> None:
        torch.set_num_threads(self._before)
        if self._own is not None:
            self._own.release()

    def describe(self) -> str:
        """One line: the device, on a CPU with its threads and who else trains there."""
        beside = f"; {self._others} more training here" if self._chosen and self._others else ""
        return f"device: {describe_device(str(self._device))}{beside}"

    def adjust(self) -> str | None:
        """Take this training's share of the cores as they are now; the line of `describe` where that has changed."""
        if not self._chosen:
            return None
        with suppress(OSError, NotImplementedError):
            self._others = sum(_is_held(path) for path in self._folder.iterdir()) - (self._own is not None)
        threads = min(self._before, max(1, cores() // (1 + self._others)))
        if threads == torch.get_num_threads():
            return None
        torch.set_num_threads(threads)
        return self.describe()


def _is_held(path: Path) -> bool:
    """Whether somebody holds the lock; a file that nobody holds is of a training that has ended, and is deleted."""
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        return True
    with suppress(PermissionError):  # Windows deletes no open file; there the lock does it as it is let go
        path.unlink(missing_ok=True)
    lock.release()
    return False
