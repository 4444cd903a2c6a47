"""What a person sees while a run goes on: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Meter:
    """Progress of a run in examples (or another unit), with rate, time left, and the latest words of the loop."""

    def __init__(self, title: str, total: float, done: float = 0, quiet: bool = False, unit: str = "examples") -> None:
        self.title, self.total, self.start_at = title, total, done
        self.quiet, self.unit = quiet, unit
        self._started = time.monotonic()
        self._next_line = 0.0
        self._bar: Progress | None = None
        if sys.stderr.isatty() and not quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            left = (TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[words]}"))
            # rich would send what is printed to its own console, past a file that standard output goes to.
            self._bar = Progress(*columns, *left, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty())
            self._task = self._bar.add_task(title, total=total, completed=done, words="")
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
            self._bar.update(self._task, completed=done, words=f"{self.rate(done):.0f}/s {words}")
        elif not self.quiet and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + 15.0
            rate = self.rate(done)
            left = f", {(self.total - done) / rate:.0f} s left" if rate > 0 and done > self.start_at else ""
            print(
                f"{self.title}: {done:,.0f}/{self.total:,.0f} {self.unit}, {rate:.0f}/s{left} {words}",
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
