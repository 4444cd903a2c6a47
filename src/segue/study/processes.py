"""Processes that train, each in a folder of its own: started, watched, stopped; none outlives its parent."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from segue.types import UserError

OUTPUT = "output.log"


def start_worker(worker: Sequence[str], folder: Path, environment: dict) -> subprocess.Popen:
    """Run `worker` on a folder, its output in the folder's output.log."""
    with (folder / OUTPUT).open("a") as output:
        # A session of its own: Ctrl-C reaches this process alone, which then asks its workers to save.
        return subprocess.Popen(
            [*worker, str(folder)], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
            start_new_session=True,
        )  # fmt: skip


def stop_workers(processes: list[subprocess.Popen], patience_sec: float = 120.0) -> None:
    """Ask workers to save and stop; kill those that do not."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + patience_sec
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def last_words(folder: Path, code: int) -> str:
    """Why a worker failed: the last line that it printed."""
    text = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace")
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip() for line in text.splitlines()]
    line = next((line for line in reversed(lines) if line), "no output")
    return line if code >= 0 else f"killed by signal {-code}; its last line: {line}"


def examples_logged(folder: Path) -> int:
    """Examples that a running process has logged; only the end of its log is read."""
    path = folder / "log.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        found = re.findall(rb'"examples_seen": (\d+)', file.read())
    return int(found[-1]) if found else 0


@contextmanager
def locked(path: Path, wait: bool = False):
    """Hold a file's lock; the system lets go of it when this process ends, however it ends.

    Raises:
        UserError: another process holds it (without `wait`).
    """
    import fcntl  # Unix alone has it, and segue's other commands run elsewhere, too

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError(f"{path.parent}: this study is running already; wait for it or stop it") from error
        yield


def stop_with_parent() -> None:
    """Watch the parent: when it is gone, ask this process to save and stop, as Ctrl-C would."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
