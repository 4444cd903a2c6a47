"""Sound files decoded in processes of their own: one that crashes takes a file with it, and nothing else.

A file always goes to the same process, which keeps it open for its next stretch. Results come in the order that they
were asked for, whatever the number of processes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from hashlib import sha256
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from segue.audio.read import Readers
from segue.audio.sound import BadAudio, Header, SoundPath
from segue.data.tars import TarMember
from segue.devices import when_parent_ends

OPEN_FILES = 4  # of a process
THREADS = 2  # that decode where there are no processes
AHEAD = 64  # files asked for before the first result is taken, for each process


class Task:
    """A call that was asked for.

    Attributes:
        path: the file.
        call: the function and its arguments.
        future: its result.
    """

    def __init__(self, path: SoundPath, call: tuple, future: Future) -> None:
        self.path = path
        self.call = call
        self.future = future


class FileWorkers:
    """Processes that work on files; a context manager. With 0 of them, threads of this process do."""

    def __init__(self, processes: int, threads: int = THREADS) -> None:
        self._processes = [_process() for _ in range(processes)]
        # Cells of a table hold an open file, and stay in this process.
        self._here = ThreadPoolExecutor(max(1, threads))
        self._asked: list[list[Task]] = [[] for _ in range(processes)]

    def __enter__(self) -> FileWorkers:
        return self

    def __exit__(self, *_) -> None:
        # Without waiting: Ctrl-C should not finish what is queued.
        for pool in (*self._processes, self._here):
            pool.shutdown(wait=False, cancel_futures=True)

    def ask(self, path: SoundPath, function: Callable, *arguments) -> Task:
        """Call function(path, *arguments); it and what it returns travel between processes."""
        call = (function, path, *arguments)
        if not self._processes or not isinstance(path, (Path, TarMember)):
            return Task(path, call, self._here.submit(*call))
        number = self._number(path)
        task = Task(path, call, self._processes[number].submit(*call))
        self._asked[number].append(task)
        return task

    def result(self, task: Task) -> Any:
        """What the call returned or raised.

        Raises:
            BadAudio: the process ended while it worked on this file.
        """
        while True:
            try:
                return task.future.result()
            except BrokenProcessPool:
                self._replace(self._number(task.path))
            finally:
                if task.future.done() and not _is_lost(task) and self._processes:
                    asked = self._asked[self._number(task.path)]
                    if task in asked:
                        asked.remove(task)

    def map(self, function: Callable, paths: Iterable[SoundPath], instead: Callable[[BadAudio], Any]) -> Iterator[Any]:
        """function(path) of each, in order.

        Args:
            instead: what comes of a file that raises BadAudio, or on which a process crashed.
        """
        waiting = iter(paths)
        ahead = AHEAD * max(1, len(self._processes))
        asked = [self.ask(path, function) for path in islice(waiting, ahead)]
        while asked:
            try:
                yield self.result(asked.pop(0))
            except BadAudio as error:
                yield instead(error)
            asked += [self.ask(path, function) for path in islice(waiting, 1)]

    def _number(self, path: SoundPath) -> int:
        # Of a tar the archive decides: its members lie side by side.
        name = path.archive if isinstance(path, TarMember) else str(path)
        return int.from_bytes(sha256(os.fsencode(name)).digest()[:8], "big") % len(self._processes)

    def _replace(self, number: int) -> None:
        """Another process in the place of one that has ended: the file that it worked on fails, the others are asked
        for again."""
        self._processes[number].shutdown(wait=False)
        self._processes[number] = _process()
        # A process works in the order of asking: the first call without a result is the one that ended it.
        first, *others = [task for task in self._asked[number] if _is_lost(task)]
        first.future = Future()
        first.future.set_exception(BadAudio(first.path, "the decoder crashed on it"))
        for task in others:
            task.future = self._processes[number].submit(*task.call)


def _is_lost(task: Task) -> bool:
    return task.future.done() and not task.future.cancelled() and isinstance(task.future.exception(), BrokenProcessPool)


def _process() -> ProcessPoolExecutor:
    # Not forked: a process that computes with threads cannot be copied safely.
    return ProcessPoolExecutor(1, get_context("spawn"), _begin, (os.getpid(),))


def _begin(parent: int) -> None:
    """The start of a process: it leaves Ctrl-C to its parent, and ends when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getppid() != parent:  # gone before this process had begun
        os._exit(1)
    when_parent_ends(lambda: os._exit(1), every_sec=1.0)


@cache
def _readers(rates_hz: tuple[int, ...], channels: int) -> Readers:
    return Readers(rates_hz, OPEN_FILES, channels)


def read_stretch(
    path: Path, header: Header, start_sec: float, length_sec: float, rates_hz: Sequence[int], channels: int
) -> list[np.ndarray]:
    """A stretch of a file at each rate, [channels, samples] float32; the file stays open for its next stretch.

    Raises:
        BadAudio: it cannot be read.
    """
    return _readers(tuple(rates_hz), channels).read(path, header, start_sec, length_sec)
