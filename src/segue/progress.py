"""The progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")
_LINE_EVERY_SEC = 15.0
_FIRST_LINE_SEC = 4.0  # the first line comes early, for the rate


class Meter:
    """Progress of long work in examples (or another unit), with its rate, the time left, and the latest words of it."""

    def __init__(
        self,
        title: str,
        total: float,
        done: float = 0,
        quiet: bool = False,
        unit: str = "examples",
        first_line_sec: float = 0.0,
        rate_as: str = "{:.0f}/s",
    ) -> None:
        """
        Args:
            done: units that were behind us before.
            quiet: show nothing.
            first_line_sec: when the first plain line comes.
            rate_as: how the rate is written.
        """
        self.title = title
        self.total = total
        self.start_at = done
        self.quiet = quiet
        self.unit = unit
        self.rate_as = rate_as
        self._started = time.monotonic()
        self._next_line = self._started + first_line_sec
        self._bar: Progress | None = None
        if sys.stderr.isatty() and not quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            left = (TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[words]}"))
            # rich would send what is printed to its own console, past a file that standard output goes to.
            self._bar = Progress(*columns, *left, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty())
            self._task = self._bar.add_task(title, total=total, completed=int(done), words="")
            self._bar.start()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def rate(self, done: float) -> float:
        """Units per second since the meter was made."""
        return (done - self.start_at) / max(1e-9, time.monotonic() - self._started)

    def update(self, done: float, words: str = "") -> None:
        """Show that `done` units are behind us."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, words=f"{self.rate_as.format(self.rate(done))} {words}")
        elif not self.quiet and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_EVERY_SEC
            rate = self.rate(done)
            left = f", {max(0.0, self.total - done) / rate:.0f} s left" if rate > 0 and done > self.start_at else ""
            print(
                f"{self.title}: {done:,.0f}/{self.total:,.0f} {self.unit}, {self.rate_as.format(rate)}{left} {words}",
                file=sys.stderr,
                flush=True,
            )

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        elif not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


def track(
    items: Iterable[Item], total: int, what: str, unit: str, *, size: Callable[[Item], int] = lambda item: 1
) -> Iterator[Item]:
    """Yield `items`, showing how many `unit`s of `total` are done, the rate and the time left.

    Args:
        size: units that one item stands for.
    """
    with Meter(what, total, unit=unit, first_line_sec=_FIRST_LINE_SEC) as meter:
        done = 0
        for item in items:
            yield item
            done += size(item)
            meter.update(done)
