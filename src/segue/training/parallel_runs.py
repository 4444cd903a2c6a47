"""Runs as processes, each in a folder of its own: a few at once, watched, stopped; none outlives its parent.

Two small runs of one thread each train a third more examples in a minute on two cores than one run after the other on
two threads.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from segue.devices import cores, when_parent_ends
from segue.progress import Meter
from segue.training.interrupt import Interrupt
from segue.types import UserError

OUTPUT = "output.log"


@dataclass(frozen=True)
class Job:
    """A run to train.

    Attributes:
        name: of the run, for people.
        folder: of the run; the worker gets it as its last word.
        examples: length of the run.
        done: True where it is finished already and only counted.
    """

    name: str
    folder: Path
    examples: int
    done: bool = False


def run_jobs(
    jobs: Sequence[Job],
    worker: Sequence[str],
    *,
    slots: int,
    threads: int,
    title: str,
    start: Callable[[Job], None],
    end: Callable[[Job, int], str],
    quiet: bool = False,
) -> bool:
    """Run each job that is not done in a process of its own.

    Args:
        worker: command that trains one job; the job's folder is added as its last word.
        slots: processes at once.
        threads: OMP_NUM_THREADS of each.
        title: of the progress bar.
        start: called before a job's process starts; it leaves in the job's folder what the worker reads.
        end: called with a job and its exit code; it returns how the job ended, in words ("" = nothing to say). What
            it raises stops all of them.

    Returns:
        True when every job has ended, False when interrupted: the processes then have saved and stopped.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    waiting = [job for job in jobs if not job.done]
    running: dict[Job, subprocess.Popen] = {}
    failed = 0

    def seen(job: Job) -> int:
        ended = job not in running and job not in waiting
        return job.examples if ended else min(job.examples, examples_logged(job.folder))

    with (
        Interrupt() as interrupt,
        Meter(title, sum(job.examples for job in jobs), sum(map(seen, jobs)), quiet) as meter,
    ):
        try:
            while (waiting or running) and not interrupt.requested:
                while waiting and len(running) < slots:
                    start(waiting[0])
                    running[waiting[0]] = _start(worker, waiting[0].folder, environment)
                    del waiting[0]
                time.sleep(0.2)
                # Processes that have ended make room. What `end` raises leads to `finally`, which stops the others.
                for job, process in list(running.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del running[job]
                    failed += code != 0
                    words = end(job, code)
                    if words:
                        meter.say(f"{job.name}: {words}; {len(waiting) + len(running)} of {len(jobs)} runs left")
                # How far all of them are, by the logs that they write.
                shares = ", ".join(f"{job.name} {seen(job) / job.examples:.0%}" for job in running)
                ended = f"{len(jobs) - len(waiting) - len(running)}/{len(jobs)} runs"
                bad = f", {failed} failed" if failed else ""
                meter.update(sum(map(seen, jobs)), f"{ended}{bad}; {shares}")
        finally:
            _stop(list(running.values()))
        return not interrupt.requested


def slots_here(runs: int) -> int:
    """How many runs go at once: one on an accelerator, and no more than there are cores for."""
    alone = torch.cuda.is_available() or torch.backends.mps.is_available() or os.name == "nt"  # no file locks there
    return 1 if alone else max(1, min(runs, cores()))


def threads_each(slots: int) -> int:
    """One slot's share of the cores."""
    return max(1, cores() // slots)


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
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a file's lock; the system lets go of it when this process ends, however it ends.

    Raises:
        UserError: another process holds it (without `wait`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, blocking=wait)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"{path.parent}: this study is running already; wait for it or stop it") from error
    try:
        yield
    finally:
        lock.release()


def stop_with_parent() -> None:
    """Watch the parent: when it is gone, ask this process to save and stop, as Ctrl-C would."""
    when_parent_ends(_ask_to_stop, every_sec=0.5)


def _ask_to_stop() -> None:
    if os.name == "nt":  # os.kill would end the process there, without asking
        signal.raise_signal(signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def _start(worker: Sequence[str], folder: Path, environment: dict) -> subprocess.Popen:
    """Run `worker` on a folder, its output in the folder's output.log."""
    with (folder / OUTPUT).open("a") as output:
        # A session of its own: Ctrl-C reaches the parent alone, which then asks its workers to save.
        return subprocess.Popen(
            [*worker, str(folder)], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
            start_new_session=True,
        )  # fmt: skip


def _stop(processes: list[subprocess.Popen], patience_sec: float = 120.0) -> None:
    """Ask workers to save and stop; kill those that do not."""
    for process in processes:
        # All are asked before the first is waited for, so that they save at the same time.
        process.terminate()
    deadline = time.monotonic() + patience_sec
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
