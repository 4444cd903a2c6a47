"""How much of a run's time goes into its batches; the bar itself is `segue.progress.Meter`."""

from __future__ import annotations

import time


class Share:
    """The part of the steps' time that went into the batch: reading, standardising, drawing, moving to the device."""

    def __init__(self) -> None:
        self._waited = self._worked = self._began = 0.0

    def start(self) -> None:
        """A step begins."""
        self._began = time.monotonic()

    def loaded(self) -> None:
        """Its batch is there."""
        self._waited += time.monotonic() - self._began

    def stepped(self) -> None:
        """It is done."""
        self._worked += time.monotonic() - self._began

    def take(self) -> float:
        """The share in [0, 1] since it was last asked for."""
        share = self._waited / max(1e-9, self._worked)
        self._waited = self._worked = 0.0
        return share
