"""The run's log: one JSON object per line of log.jsonl, and the same numbers for the trackers that are named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from torch import Tensor

from segue.files import cannot_write, write_text
from segue.training.config import RunConfig
from segue.training.trackers import Tracker, about_run, settings_of, start_tracker
from segue.types import first_line


class RunLog:
    """Appends events to log.jsonl. On resume, lines of steps that will be repeated are removed first."""

    def __init__(
        self, run_dir: Path, *, examples_seen: int = 0, trackers: Iterable[str] = (), active: bool = True
    ) -> None:
        """Open the log of a run that is at `examples_seen`; where not `active` (another rank), nothing is written.

        Args:
            trackers: names of those that get the numbers, too: "tensorboard", "wandb".
        """
        self.path = run_dir / "log.jsonl"
        self._file: IO[str] | None = None
        self._trackers: list[Tracker] = []
        if not active:
            return
        _keep_until(self.path, examples_seen)
        try:
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise cannot_write(self.path, error) from error
        for name in trackers:
            try:
                self._trackers.append(start_tracker(name, run_dir, examples_seen))
            except Exception as error:
                _given_up(name, error)

    def begin(self, config: RunConfig) -> None:
        """Tell the trackers the settings of the run and where it comes from."""
        if self._trackers:
            settings, about = settings_of(config), about_run(self.path.parent)
            self._tell(lambda tracker: tracker.begin(settings, about))

    def write(self, event: str, examples_seen: int, **numbers) -> None:
        """Append a line; trackers get nested numbers as event/name/key.

        Raises:
            UserError: the line cannot be written (nor could a checkpoint on the same disk).
        """
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"event": event, "examples_seen": examples_seen, **numbers}) + "\n")
            # Line by line, so that a kill costs one line at most.
            self._file.flush()
        except OSError as error:
            raise cannot_write(self.path, error) from error
        if self._trackers and (curves := _curves(event, numbers)):
            self._tell(lambda tracker: tracker.numbers(curves, examples_seen))

    def show_sound(self, title: str, wave: Tensor, sample_rate_hz: int, picture: bytes, examples_seen: int) -> None:
        """A sound [T] and its picture (PNG) for the trackers."""
        self._tell(lambda tracker: tracker.sound(title, wave, sample_rate_hz, picture, examples_seen))

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close."""
        with suppress(OSError):  # `write` has raised this error already
            if self._file is not None:
                self._file.close()
        self._tell(lambda tracker: tracker.close())
        self._trackers = []

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        """Something for each tracker; one that fails is given up, since a run outlives its trackers."""
        for tracker in list(self._trackers):
            try:
                what(tracker)
            except Exception as error:  # a tracker's own thread fails in its own ways
                self._trackers.remove(tracker)
                _given_up(tracker.title, error)


def _curves(event: str, numbers: dict) -> dict[str, float]:
    """The numbers of an event as event/name/key."""
    return {
        "/".join(filter(None, (event, name, key))): number
        for name, value in numbers.items()
        for key, number in (value.items() if isinstance(value, dict) else [("", value)])
        # To Python a bool is an int, but it is no curve.
        if isinstance(number, (int, float)) and not isinstance(number, bool)
    }


def read_log(path: Path) -> list[dict]:
    """The complete lines of a log; a line that a kill cut short is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def _keep_until(path: Path, examples_seen: int) -> None:
    """Keep the lines before the checkpoint; a step is logged before its checkpoint, a validation after it."""
    kept = [e for e in read_log(path) if (e["examples_seen"], e["event"] != "train") <= (examples_seen, False)]
    write_text(path, "".join(json.dumps(e) + "\n" for e in kept if examples_seen))


def _given_up(tracker: str, error: Exception) -> None:
    print(f"{tracker} cannot be written ({first_line(error)}); the run goes on with log.jsonl alone", file=sys.stderr)
