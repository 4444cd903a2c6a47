"""Runs the cells of a study: one process each, a few at once, resumable after a kill; a failed one stops no other."""

from __future__ import annotations

import glob
import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from segue.codecs import default_codec, load_codec
from segue.conditioners import load_conditioner
from segue.data.cache import LatentCache
from segue.data.clip import Clip
from segue.data.demo import render_demo_set
from segue.data.encoding import build_cache
from segue.data.manifest import load_manifest
from segue.files import sha256_of, write_text
from segue.ssl import load_teacher
from segue.study.config import (
    Cell,
    DataSource,
    EvaluationSettings,
    Study,
    cell_key,
    cells_of,
    run_config,
    same_settings,
)
from segue.study.hearing import Hearing, make_hearing
from segue.study.judged import Listening, make_listening
from segue.study.processes import examples_logged, last_words, locked, start_worker, stop_workers
from segue.training.checks import check_before_training
from segue.training.interrupt import Interrupt
from segue.training.log import read_log
from segue.training.progress import Meter
from segue.types import UserError

DEMO_SECONDS = 2.048
CELLS, CELL, DONE, FAILED = "cells", "cell.json", "done.json", "failed.json"


@dataclass(frozen=True)
class Prepared:
    """A study ready to run: its data, its question to the judge or to an ear of the data's (None = none), its cells."""

    cache: LatentCache
    listening: Listening | Hearing | None
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
    tasks = {run_config(study, arm, study.seeds[0]).train.task for arm in study.arms}
    if len(tasks) > 1:
        raise UserError(f"arms of {' and '.join(sorted(tasks))} do not compare; make a study of each")
    listening = None
    if tasks == {"generation"}:
        listening = _question(study, cache, clips, out / "listening")
    question = sha256_of([cache.path / "meta.json"]), listening.key if listening else "", study.evaluation
    cells = [_finished_before(cell, out / CELLS, question) for cell in cells_of(study, *question[:2])]
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
    lengths = {cell.folder: cell.config["train"]["total_examples"] for cell in prepared.cells}
    total = sum(lengths.values())
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    running: dict[str, tuple[Cell, subprocess.Popen]] = {}
    failed = 0

    def seen() -> int:
        ahead = sum(lengths[cell.folder] for cell in pending) + sum(lengths[folder] for folder in running)
        return total - ahead + sum(min(lengths[folder], examples_logged(cells_dir / folder)) for folder in running)

    with locked(out / "study.lock"), Interrupt() as interrupt, Meter(study.name, total, seen(), quiet) as meter:
        while (pending or running) and not interrupt.requested:
            while pending and len(running) < slots:
                cell = pending.pop(0)
                _write_cell(cells_dir / cell.folder, cell, prepared, study, device)
                running[cell.folder] = cell, start_worker(worker, cells_dir / cell.folder, environment)
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
                    line = last_words(cells_dir / folder, process.returncode)
                    write_text(cells_dir / folder / FAILED, json.dumps({"code": process.returncode, "line": line}))
                    meter.say(f"{cell.arm} seed {cell.seed}: failed ({line}); {left}")
            cells_left = len(pending) + len(running)
            words = ", ".join(f"{c.arm}/{c.seed} {examples_logged(cells_dir / folder) / lengths[folder]:.0%}"
                              for folder, (c, _) in running.items())  # fmt: skip
            bad = f", {failed} failed" if failed else ""
            meter.update(seen(), f"{len(prepared.cells) - cells_left}/{len(prepared.cells)} cells{bad}; {words}")
        stop_workers([process for _, process in running.values()])
        return not interrupt.requested


def status_of(folder: Path) -> tuple[str, str]:
    """("done" | "failed" | "unfinished" | "missing", the last line of a failure) of a cell's folder."""
    if (folder / DONE).exists():
        return "done", ""
    if (folder / FAILED).exists():
        return "failed", json.loads((folder / FAILED).read_text())["line"]
    return ("unfinished" if (folder / CELL).exists() else "missing"), ""


def _question(study: Study, cache: LatentCache, clips: list[Clip], folder: Path) -> Listening | Hearing | None:
    """The judge's where the data are notes that it knows and no field is named, else the log-mel ear's."""
    count, field = study.evaluation.judge_clips, study.data.class_field
    judged = None if field else make_listening(cache, clips, count, folder)
    return judged or make_hearing(cache, clips, count, field, folder)


def _data(source: DataSource, out: Path) -> tuple[LatentCache, list[Clip]]:
    if source.cache:
        clips = load_manifest(Path(source.manifest)) if source.manifest else []
        return LatentCache.open(Path(source.cache)), clips
    clips = load_manifest(render_demo_set(out / "data", clips=source.demo_clips, seed=0))
    codec = load_codec(source.codec or default_codec())
    teacher = None if source.teacher == "none" else load_teacher(source.teacher or "compact")
    text = load_conditioner("minilm")
    return build_cache(clips, codec, text, teacher, out=out / "cache", seconds=DEMO_SECONDS), clips


def _finished_before(cell: Cell, cells_dir: Path, question: tuple[str, str, EvaluationSettings]) -> Cell:
    """The cell as an earlier version of segue finished it, or itself.

    A setting that came later changes every key. A run made before it is the same run where all that was settable then
    is the same and its new settings are at their defaults, so hours of training are not thrown away by an update.
    """
    if (cells_dir / cell.folder / DONE).exists():
        return cell
    for done in sorted(cells_dir.glob(f"{glob.escape(cell.arm)}-seed{cell.seed}-*/{DONE}")):
        stored = json.loads((done.parent / CELL).read_text())
        config = stored["config"]
        if stored["key"] == cell_key(config, *question) and same_settings(config, cell.config):
            return replace(cell, key=stored["key"], config=config)
    return cell


def _write_cell(folder: Path, cell: Cell, prepared: Prepared, study: Study, device: str) -> None:
    about = asdict(cell) | {
        "cache": str(prepared.cache.path.resolve()),
        "evaluation": asdict(study.evaluation),
        "listening": str((folder.parent.parent / "listening").resolve()) if prepared.listening else None,
        "device": device,
    }
    (folder / FAILED).unlink(missing_ok=True)
    write_text(folder / CELL, json.dumps(about, indent=1))


def clear_cell(folder: Path) -> None:
    """Forget a start that left no checkpoint, so that the run begins anew."""
    for name in ("config.json", "log.jsonl"):
        (folder / name).unlink(missing_ok=True)


def finish_cell(folder: Path, seconds: float, commit: str) -> None:
    """Mark a cell done; written last."""
    validation = [e for e in read_log(folder / "log.jsonl") if e["event"] == "validation"]
    last = validation[-1]["examples_seen"] if validation else 0
    write_text(folder / DONE, json.dumps({"seconds": seconds, "examples_seen": last, "commit": commit}))
