"""`segue-lab study`: variants x seeds from a small file, resumable; tables with intervals, pictures, Markdown."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from segue.cli.options import Device
from segue.provenance import command, commit, machine
from segue.types import UserError
from segue_lab.study import worker
from segue_lab.study.runs import planned_runs, prepare, train_runs
from segue_lab.study.study_config import read_study
from segue_lab.study.tables import write_study_report


def study(
    file: Annotated[
        Path,
        typer.Argument(metavar="STUDY.json", help="Study file: variants, seeds, data and length (docs/studies.md)."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the study: data, runs, tables, pictures.")],
    slots: Annotated[int, typer.Option(help="Number of runs at once, each in a process.")] = 2,
    threads: Annotated[int, typer.Option(help="Number of threads of each run.")] = 1,
    device: Device = "auto",
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing; remake tables and pictures from finished runs.")
    ] = False,
    markdown: Annotated[Path | None, typer.Option(help="File to write the tables to, in Markdown.")] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Variant to compare with, instead of the study's baseline; needs --report-only, writes "
            "OUT/against-NAME."
        ),
    ] = None,
) -> int:
    """Run every variant with every seed, evaluate each at fixed lengths, make tables. The same command continues."""
    if slots < 1 or threads < 1:
        raise UserError(f"--slots {slots}, --threads {threads}: give at least 1")
    plan = read_study(file)
    # Another baseline changes tables alone, so that nothing may be trained under it.
    if baseline is not None:
        names = [variant.name for variant in plan.variants]
        if not report_only or baseline not in names:
            raise UserError(f"--baseline goes with --report-only and names a variant: {', '.join(names)}")
        plan = replace(plan, baseline=baseline)
    finished = True
    if report_only:
        # A folder may hold runs of an earlier study file, which are left out.
        wanted = {(variant.name, seed) for variant in plan.variants for seed in plan.seeds_of(variant)}
        runs = [run for run in planned_runs(out) if (run.variant, run.seed) in wanted]
    else:
        print(f"study {plan.name}: {len(plan.variants)} variants, {len(plan.seeds)} seeds", file=sys.stderr)
        prepared = prepare(plan, out)
        runs = prepared.runs
        finished = train_runs(prepared, plan, out, worker.COMMAND, slots=slots, threads=threads, device=device)
    origin = {"command": command(), "commit": commit(), "machine": machine()}
    # Beside the study's own tables, never in their place.
    place = out if baseline is None else out / f"against-{baseline}"
    summary = write_study_report(plan, out, runs, origin, markdown, place)
    print(f"{place}/report.html   {place}/report.md   {place}/results.json   ({summary})")
    if not finished:
        print("stopped and saved; the same command continues", file=sys.stderr)
        return 130
    return 0
