"""The share of a run's time that is spent on loading batches."""

from __future__ import annotations

import time


class LoaderShare:
    """Measures how much of the steps' time goes into reading, standardising, drawing and moving batches."""

    def __init__(self) -> None:
        self._loading_sec = 0.0
        self._total_sec = 0.0
        self._began = 0.0

    def start(self) -> None:
        """A step begins."""
        self._began = time.monotonic()

    def loaded(self) -> None:
        """The batch of the step is ready."""
        self._loading_sec += time.monotonic() - self._began

    def stepped(self) -> None:
        """The step is complete."""
        self._total_sec += time.monotonic() - self._began

    def take(self) -> float:
        """The share in [0, 1] since the last call."""
        share = self._loading_sec / max(1e-9, self._total_sec)
        self._loading_sec = 0.0
        self._total_sec = 0.0
        return share
