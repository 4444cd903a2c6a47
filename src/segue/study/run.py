"""Runs the cells of a study: one process each, a few at once, resumable after a kill; a failed one stops no other."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from segue.codecs import default_codec, load_codec
from segue.conditioners import load_conditioner
from segue.data.cache import LatentCache
from segue.data.demo import render_demo_set
from segue.data.encoding import build_cache
from segue.data.manifest import Clip, load_manifest
from segue.files import sha256_of, write_text
from segue.ssl import load_teacher
from segue.study.config import Cell, DataSource, Study, cells_of, run_config
from segue.study.evaluate import Listening, make_listening
from segue.training.checks import check_before_training
from segue.training.interrupt import Interrupt
from segue.training.log import read_log
from segue.training.progress import Meter
from segue.types import UserError

DEMO_SECONDS = 2.048
CELLS, CELL, DONE, FAILED, OUTPUT = "cells", "cell.json", "done.json", "failed.json", "output.log"


@dataclass(frozen=True)
class Prepared:
    """A study ready to run: its data, its question to the judge (None = none), and its cells."""

    cache: LatentCache
    listening: Listening | None
    cells: list[Cell]


def prepare(study: Study, out: Path) -> Prepared:
    """Render and encode, or open, the data; choose prompts; write OUT/plan.json, which names every cell.

    Raises:
        UserError: the data cannot be had, or an arm cannot train on them.
    """
    cache, clips = _data(study.data, out)
    for arm in study.arms:
        try:
            check_before_training(run_config(study, arm, study.seeds[0]), cache)
        except UserError as error:
            raise UserError(f"arm {arm.name}: {error}") from error
    listening = make_listening(cache, clips, study.evaluation.judge_clips, out / "listening")
    cells = cells_of(study, sha256_of([cache.path / "meta.json"]), listening.key if listening else "")
    plan = {"study": asdict(study), "cache": str(cache.path.resolve()), "cells": [asdict(cell) for cell in cells]}
    write_text(out / "plan.json", json.dumps(plan, indent=1))
    return Prepared(cache, listening, cells)


def planned_cells(out: Path) -> list[Cell]:
    """The cells that the last run of a study in `out` named, finished or not.

    Raises:
        UserError: nothing was run there.
    """
    path = out / "plan.json"
    if not path.exists():
        raise UserError(f"{out}: no study was run here; leave --report-only away")
    return [Cell(**cell) for cell in json.loads(path.read_text())["cells"]]


def run_cells(
    prepared: Prepared,
    study: Study,
    out: Path,
    worker: Sequence[str],
    *,
    slots: int = 2,
    threads: int = 1,
    device: str = "auto",
    quiet: bool = False,
) -> bool:
    """Run what is not done yet; True when every cell was tried, False when interrupted.

    Args:
        worker: command that runs one cell, whose folder is added as its last word.
        slots: processes at once.
        threads: OMP_NUM_THREADS of each.
        device: as `segue train --device`.

    Raises:
        UserError: this study is running already.
    """
    cells_dir = out / CELLS
    pending = [cell for cell in prepared.cells if not (cells_dir / cell.folder / DONE).exists()]
    total = study.examples * len(prepared.cells)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    running: dict[str, tuple[Cell, subprocess.Popen]] = {}
    failed = 0

    def seen() -> int:
        behind = study.examples * (len(prepared.cells) - len(pending) - len(running))
        return behind + sum(min(study.examples, _position(cells_dir / folder)) for folder in running)

    with locked(out / "study.lock"), Interrupt() as interrupt, Meter(study.name, total, seen(), quiet) as meter:
        while (pending or running) and not interrupt.requested:
            while pending and len(running) < slots:
                cell = pending.pop(0)
                _write_cell(cells_dir / cell.folder, cell, prepared, study, device)
                running[cell.folder] = cell, _start(worker, cells_dir / cell.folder, environment)
            time.sleep(0.2)
            for folder, (cell, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[folder]
                left = f"{len(pending) + len(running)} of {len(prepared.cells)} cells left"
                if (cells_dir / folder / DONE).exists():
                    meter.say(f"{cell.arm} seed {cell.seed}: done; {left}")
                else:
                    failed += 1
                    line = _record_failure(cells_dir / folder, process.returncode)
                    meter.say(f"{cell.arm} seed {cell.seed}: failed ({line}); {left}")
            cells_left = len(pending) + len(running)
            words = ", ".join(f"{c.arm}/{c.seed} {_position(cells_dir / folder) / study.examples:.0%}"
                              for folder, (c, _) in running.items())  # fmt: skip
            bad = f", {failed} failed" if failed else ""
            meter.update(seen(), f"{len(prepared.cells) - cells_left}/{len(prepared.cells)} cells{bad}; {words}")
        _stop([process for _, process in running.values()])
        return not interrupt.requested


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


def status_of(folder: Path) -> tuple[str, str]:
    """("done" | "failed" | "unfinished" | "missing", the last line of a failure) of a cell's folder."""
    if (folder / DONE).exists():
        return "done", ""
    if (folder / FAILED).exists():
        return "failed", json.loads((folder / FAILED).read_text())["line"]
    return ("unfinished" if (folder / CELL).exists() else "missing"), ""


def _data(source: DataSource, out: Path) -> tuple[LatentCache, list[Clip]]:
    if source.cache:
        clips = load_manifest(Path(source.manifest)) if source.manifest else []
        return LatentCache.open(Path(source.cache)), clips
    clips = load_manifest(render_demo_set(out / "data", clips=source.demo_clips, seed=0))
    codec = load_codec(source.codec or default_codec())
    teacher = None if source.teacher == "none" else load_teacher(source.teacher or "compact")
    text = load_conditioner("minilm")
    return build_cache(clips, codec, text, teacher, out=out / "cache", seconds=DEMO_SECONDS), clips


def _write_cell(folder: Path, cell: Cell, prepared: Prepared, study: Study, device: str) -> None:
    about = asdict(cell) | {
        "cache": str(prepared.cache.path.resolve()),
        "evaluation": asdict(study.evaluation),
        "listening": str((folder.parent.parent / "listening").resolve()) if prepared.listening else None,
        "device": device,
    }
    (folder / FAILED).unlink(missing_ok=True)
    write_text(folder / CELL, json.dumps(about, indent=1))


def _start(worker: Sequence[str], folder: Path, environment: dict) -> subprocess.Popen:
    with (folder / OUTPUT).open("a") as output:
        # A session of its own: Ctrl-C reaches this process alone, which then asks its workers to save.
        return subprocess.Popen(
            [*worker, str(folder)], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
            start_new_session=True,
        )  # fmt: skip


def _stop(processes: list[subprocess.Popen], patience_sec: float = 120.0) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + patience_sec
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def _record_failure(folder: Path, code: int) -> str:
    """Write failed.json; return its line: the last one that the worker printed."""
    text = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace")
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip() for line in text.splitlines()]
    line = next((line for line in reversed(lines) if line), "no output")
    if code < 0:
        line = f"killed by signal {-code}; its last line: {line}"
    write_text(folder / FAILED, json.dumps({"code": code, "line": line}))
    return line


def _position(folder: Path) -> int:
    """Examples that a running cell has logged; only the end of its log is read."""
    path = folder / "log.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        found = re.findall(rb'"examples_seen": (\d+)', file.read())
    return int(found[-1]) if found else 0


def clear_cell(folder: Path) -> None:
    """Forget a start that left no checkpoint, so that the run begins anew."""
    for name in ("config.json", "log.jsonl"):
        (folder / name).unlink(missing_ok=True)


def finish_cell(folder: Path, seconds: float, commit: str) -> None:
    """Mark a cell done; written last."""
    validation = [e for e in read_log(folder / "log.jsonl") if e["event"] == "validation"]
    last = validation[-1]["examples_seen"] if validation else 0
    write_text(folder / DONE, json.dumps({"seconds": seconds, "examples_seen": last, "commit": commit}))
