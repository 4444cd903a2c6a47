"""What belongs to one visitor of the page: a folder of files, and requests to stop what was started."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from threading import Event, Lock


class Stopped(Exception):
    """The visitor pressed Stop; what was made until then is kept."""


class Session:
    """One visitor.

    Attributes:
        folder: of this visitor alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stops: dict[str, Event] = {}

    def begin(self, work: str) -> Event:
        """Begin some work; the event is set when it shall stop."""
        self._stops[work] = Event()
        return self._stops[work]

    def stop(self, work: str) -> None:
        """Ask work to stop, if there is some."""
        if work in self._stops:
            self._stops[work].set()

    def new_folder(self) -> Path:
        """A new folder inside this visitor's."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def close(self) -> None:
        """Stop everything and delete the files."""
        for event in list(self._stops.values()):
            event.set()
        shutil.rmtree(self.folder, ignore_errors=True)


class Sessions:
    """The visitors of a page, by the name that their browser tab has."""

    def __init__(self, base: Path) -> None:
        """
        Args:
            base: folder that holds theirs.
        """
        self._base = base
        self._all: dict[str, Session] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._all)

    def of(self, name: str | None) -> Session:
        """The session of a visitor, begun where there is none."""
        with self._lock:
            key = name or ""
            if key not in self._all:
                # A random name: nobody guesses another one's.
                self._all[key] = Session(Path(tempfile.mkdtemp(dir=self._base)))
            return self._all[key]

    def drop(self, name: str | None) -> None:
        """A visitor has left."""
        with self._lock:
            session = self._all.pop(name or "", None)
        if session is not None:
            session.close()

    def close(self) -> None:
        """End all sessions."""
        for name in list(self._all):
            self.drop(name)
