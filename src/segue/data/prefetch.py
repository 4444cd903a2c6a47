"""Batches made by a thread while others are computed on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Generic, TypeVar

import torch

Request = TypeVar("Request")
Made = TypeVar("Made")


class Prefetcher(Generic[Request, Made]):
    """One thread that makes what is asked for, and after it what will be asked for next.

    An error of the thread is raised where its result is taken: in the loop, at the step that needs it.
    """

    def __init__(self, make: Callable[[Request], Made], device: torch.device | str = "cpu") -> None:
        """
        Args:
            make: called in the thread.
            device: a GPU whose pinned memory it fills becomes the thread's own.
        """
        self._make = make
        self._waiting: deque[tuple[Request, Future[Made]]] = deque()
        # A thread's GPU is the first one until it is told.
        choose = partial(torch.cuda.set_device, device) if torch.device(device).type == "cuda" else None
        self._pool = ThreadPoolExecutor(1, "segue-batches", choose)

    def take(self, request: Request, following: Sequence[Request]) -> Made:
        """What was asked for; the following requests are begun."""
        wanted = [request, *following]
        # Asked for something else than foreseen: what was begun is of no use.
        if [begun for begun, _ in self._waiting] != wanted[: len(self._waiting)]:
            self._drop()
        for new in wanted[len(self._waiting) :]:
            self._waiting.append((new, self._pool.submit(self._make, new)))
        return self._waiting.popleft()[1].result()

    def close(self) -> None:
        """End the thread, behind what it is making just now."""
        self._drop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _drop(self) -> None:
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()
