"""Commands of segue in processes of their own: training goes on beside the page, and is stopped by a signal.

A page that ends ends its trainings, too: they save, and `segue train --resume` goes on.
"""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread

from segue import UserError

# Under the name that a shell gives it, which the run then keeps as its command.
SEGUE = (sys.executable, "-c", "import sys; sys.argv[0] = 'segue'; from segue.cli.main import main; main()")
_KEPT_LINES = 200
_WAIT_SEC = 40.0  # longer than the grace in which `segue train` saves
_COMPLAINT = "segue: "
STOPPED = 130  # the exit code of a training that was stopped and saved


@dataclass
class Job:
    """Commands, one after the other, that make or continue a run.

    Attributes:
        run: its folder.
        lines: the last ones that the commands printed.
        state: "running", "finished", "stopped" or "failed".
    """

    run: Path
    commands: Sequence[Sequence[str]]
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))
    state: str = "running"
    stopping: Event = field(default_factory=Event)
    process: subprocess.Popen | None = None
    thread: Thread | None = None

    @property
    def last_line(self) -> str:
        """What was printed last."""
        return self.lines[-1] if self.lines else ""


class Jobs:
    """The jobs of a page, one a run folder."""

    def __init__(self) -> None:
        self._jobs: dict[Path, Job] = {}
        self._lock = Lock()

    def of(self, run: Path) -> Job | None:
        """The job of a run, of this page."""
        return self._jobs.get(run)

    @property
    def running(self) -> list[Job]:
        """Those that are not over."""
        return [job for job in self._jobs.values() if job.state == "running"]

    def start(self, run: Path, commands: Sequence[Sequence[str]]) -> Job:
        """Start commands of segue, given without its name.

        Raises:
            UserError: the run is being trained already.
        """
        with self._lock:
            if (job := self._jobs.get(run)) is not None and job.state == "running":
                raise UserError(f"{run.name} is being trained already; hint: stop it first")
            job = self._jobs[run] = Job(run, commands)
            job.thread = Thread(target=_work, args=(job,), daemon=True)
            job.thread.start()
            return job

    def stop(self, run: Path) -> None:
        """Ask the job of a run to save and end.

        Raises:
            UserError: none is running.
        """
        job = self._jobs.get(run)
        if job is None or job.state != "running":
            raise UserError(f"{run.name} is not being trained by this page")
        _end(job)

    def close(self) -> None:
        """End all of them, and wait until they have saved."""
        left = self.running
        for job in left:
            _end(job)
        for job in left:
            if job.thread is not None:
                job.thread.join(_WAIT_SEC)


def output_of(arguments: Sequence[str], stop: Event | None = None) -> str:
    """What a short command of segue prints.

    Args:
        stop: ends it early.

    Raises:
        UserError: it failed, with the line that it complained with. Another exit code than 0 alone is no failure:
            `segue data check` has one where it finds bad files.
    """
    process = subprocess.Popen([*SEGUE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               stdin=subprocess.DEVNULL, text=True, errors="replace")  # fmt: skip
    while True:
        try:
            out, err = process.communicate(timeout=0.2)
            break
        except subprocess.TimeoutExpired:
            if stop is not None and stop.is_set():
                process.terminate()
    lines = err.splitlines()
    if process.returncode and (not out or any(line.startswith(_COMPLAINT) for line in lines)):
        raise UserError(_complaint(lines))
    return out


def _work(job: Job) -> None:
    for command in job.commands:
        if job.stopping.is_set():
            job.state = "stopped"
            return
        # A session of its own: Ctrl-C in the terminal of the page ends the page, which then ends it in its own way.
        job.process = subprocess.Popen([*SEGUE, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                       stdin=subprocess.DEVNULL, text=True, errors="replace",
                                       start_new_session=True)  # fmt: skip
        if job.stopping.is_set():
            job.process.terminate()
        assert job.process.stdout is not None
        for line in job.process.stdout:
            if line.strip():
                job.lines.append(line.rstrip())
        code = job.process.wait()
        if job.stopping.is_set() or code == STOPPED:
            job.state = "stopped"
            return
        if code:
            job.state = "failed"
            return
    job.state = "finished"


def _end(job: Job) -> None:
    job.stopping.set()
    if job.process is not None and job.process.poll() is None:
        job.process.terminate()


def _complaint(lines: Sequence[str]) -> str:
    """The line that a command of segue complained with; else the last one."""
    ours = [line.removeprefix(_COMPLAINT) for line in lines if line.startswith(_COMPLAINT)]
    return ours[-1] if ours else lines[-1] if lines else "the command failed without a word"
