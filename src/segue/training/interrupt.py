"""Ctrl-C and SIGTERM as requests to stop, which the loop follows after the current step, within a given time."""

from __future__ import annotations

import signal
import threading
from typing import Any

from segue.types import UserError


class Interrupt:
    """While entered, the first SIGINT or SIGTERM sets `requested`; a second SIGINT stops at once.

    After SIGTERM, which schedulers follow with SIGKILL, the block has `grace_sec` to end. A step or a checkpoint that
    takes longer is given up with a UserError: the newest whole checkpoint stays, nothing is half-written.
    """

    def __init__(self, grace_sec: float = 0.0) -> None:
        """
        Args:
            grace_sec: 0 = no limit.
        """
        self.requested = False
        self.grace_sec = grace_sec
        self._before: dict[int, Any] = {}  # the handlers that were in place

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
            if self.grace_sec and hasattr(signal, "SIGALRM"):
                self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._give_up)
        return self

    def __exit__(self, *_) -> None:
        if hasattr(signal, "SIGALRM") and signal.SIGALRM in self._before:
            # An alarm that is still set must not strike what comes after.
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        # The time runs from the first request; a repeated SIGTERM does not prolong it.
        if number == signal.SIGTERM and not self.requested and self.grace_sec and hasattr(signal, "SIGALRM"):
            signal.setitimer(signal.ITIMER_REAL, self.grace_sec)
        self.requested = True

    def _give_up(self, _number: int, _frame) -> None:
        raise UserError(
            f"stopped by SIGTERM; the step at hand and its checkpoint did not end within --grace-sec "
            f"{self.grace_sec:g}, the checkpoint before is kept; go on with --resume, and give more seconds"
        )
