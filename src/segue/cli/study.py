"""`segue study`: arms x seeds from a small file, resumable; tables with intervals, pictures, Markdown."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from segue.cli.origin import command, commit, machine
from segue.cli.train import run_training
from segue.data.cache import LatentCache
from segue.study.config import EvaluationSettings, read_study
from segue.study.evaluate import at_each_moment
from segue.study.hearing import hearing, is_hearing, load_hearing
from segue.study.judged import judging, load_listening
from segue.study.processes import locked, stop_with_parent
from segue.study.resolution import distances
from segue.study.run import CELL, clear_cell, finish_cell, planned_cells, prepare, run_cells
from segue.study.tables import write_study_report
from segue.training.checkpoint import latest_checkpoint, list_checkpoints
from segue.training.config import from_json
from segue.types import UserError


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.json", help="Arms, seeds, data, length; see docs/studies.md.")],
    out: Annotated[Path, typer.Option(help="Folder of the study: data, runs, tables, pictures.")],
    slots: Annotated[int, typer.Option(help="Runs at once, each a process.")] = 2,
    threads: Annotated[int, typer.Option(help="Threads of each run.")] = 1,
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing: remake tables and pictures from finished runs.")
    ] = False,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables there, too, ready for the docs.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="With --report-only: compare with this arm instead, in OUT/against-NAME.")
    ] = None,
) -> int:
    """Run every arm with every seed, evaluate each at fixed moments, and make tables. The same command goes on."""
    if slots < 1 or threads < 1:
        raise UserError(f"--slots {slots}, --threads {threads}: give at least 1")
    plan = read_study(file)
    if baseline is not None:
        names = [arm.name for arm in plan.arms]
        if not report_only or baseline not in names:
            raise UserError(f"--baseline goes with --report-only and names an arm: {', '.join(names)}")
        plan = replace(plan, baseline=baseline)
    finished = True
    if report_only:
        wanted = {(arm.name, seed) for arm in plan.arms for seed in plan.seeds_of(arm)}
        cells = [cell for cell in planned_cells(out) if (cell.arm, cell.seed) in wanted]
    else:
        print(f"study {plan.name}: {len(plan.arms)} arms, {len(plan.seeds)} seeds", file=sys.stderr)
        prepared = prepare(plan, out)
        cells = prepared.cells
        worker = [sys.executable, "-m", "segue.cli.study"]
        finished = run_cells(prepared, plan, out, worker, slots=slots, threads=threads, device=device)
    origin = {"command": command(), "commit": commit(), "machine": machine()}
    place = out if baseline is None else out / f"against-{baseline}"
    summary = write_study_report(plan, out, cells, origin, markdown, place)
    print(f"{place}/report.html   {place}/report.md   {place}/results.json   ({summary})")
    if not finished:
        print("stopped and saved; the same command goes on", file=sys.stderr)
        return 130
    return 0


def work(folder: Path) -> int:
    """Train and evaluate one cell, as its cell.json says; what `segue study` starts in a process of its own."""
    stop_with_parent()
    with locked(folder / "lock", wait=True):  # the worker of a study that was killed may still be saving
        cell = json.loads((folder / CELL).read_text())
        config = from_json(cell["config"])
        total = config.train.total_examples
        resume = bool(list_checkpoints(folder))
        if not resume:
            clear_cell(folder)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        if not resume or _state(folder)["examples_seen"] < total:
            result = run_training(config, Path(cell["cache"]), folder, resume=resume, device=cell["device"], samples=0)
            if not result.finished:
                print(f"stopped at {result.examples_seen:,} examples, saved", file=sys.stderr)
                return 130
        settings = EvaluationSettings(**cell["evaluation"] | {"evaluate_at": tuple(cell["evaluation"]["evaluate_at"])})
        device = "cpu" if cell["device"] == "auto" else cell["device"]
        measure = None
        if cell["listening"]:
            asked = Path(cell["listening"])
            ears = hearing(load_hearing(asked), settings, device) if is_hearing(asked) else None
            measure = ears or judging(load_listening(asked), settings, device)
        elif config.train.task == "super-resolution" and settings.judge_clips:
            cache = LatentCache.open(Path(cell["cache"]))
            measure = distances(cache, config.degradation.held_out, settings, device)
        if measure is not None:
            at_each_moment(folder, settings, measure, total=total, batch_size=config.train.batch_size)
        finish_cell(folder, _state(folder)["seconds"], commit())
    return 0


def _state(folder: Path) -> dict:
    return json.loads((latest_checkpoint(folder) / "state.json").read_text())


if __name__ == "__main__":
    try:
        sys.exit(work(Path(sys.argv[1])))
    except UserError as error:
        sys.exit(f"segue: {' '.join(str(error).split())}")
