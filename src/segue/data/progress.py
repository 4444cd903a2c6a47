"""Progress of long work: a bar on a terminal, an occasional plain line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")


def track(items: Iterable[Item], total: int, what: str, unit: str, *, size=lambda item: 1) -> Iterator[Item]:
    """Yield `items`, showing on stderr how many `unit`s of `total` are done, the rate and the time left.

    Args:
        size: units that one item stands for.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _lines(items, total, what, unit, size)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} " + unit + "/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task, start, done = progress.add_task(what, total=total, rate=0.0), time.monotonic(), 0
        for item in items:
            yield item
            done += size(item)
            progress.update(task, completed=done, rate=done / max(time.monotonic() - start, 1e-6))


def _lines(items: Iterable[Item], total: int, what: str, unit: str, size, every_sec: float = 15.0) -> Iterator[Item]:
    start, done = time.monotonic(), 0
    said = start - every_sec + 4.0  # the first line comes early, for the rate
    for item in items:
        yield item
        done += size(item)
        now = time.monotonic()
        if now - said >= every_sec:
            said, rate = now, done / (now - start)
            left_sec = (total - done) / max(rate, 1e-6)
            print(
                f"{what}: {done}/{total} {unit}, {rate:.0f} {unit}/s, {left_sec:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
