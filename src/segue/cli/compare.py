"""`segue compare`: runs side by side: curves over examples and seconds, and what each needs to reach the first."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table as TerminalTable

from segue.files import sha256_of, write_bytes, write_text
from segue.provenance import command, commit, machine
from segue.report.comparison_page import Table, write_comparison_page
from segue.report.pictures import Line, curve_png
from segue.report.run_curves import RunCurves, first_reach, read_run
from segue.types import UserError


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders; the others are compared with the first.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for compare.json, report.html and pictures/; default: nothing is written."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Accept runs of different caches, whose losses are not comparable.")
    ] = False,
) -> None:
    """Compare runs: final values, and the examples and seconds that each needs to reach the first run's final value."""
    if len(runs) < 2:
        raise UserError("give at least two run folders: segue compare RUN RUN")
    if len({path.resolve() for path in runs}) < len(runs):
        raise UserError("a run is given twice; hint: give the folders of two different runs")
    read = [read_run(path) for path in runs]
    _refuse_other_data(runs, read, force)
    named = dict(zip(_names(runs), read))
    # What the first run has in common with any other.
    measures = [m for m in read[0].curves if any(m in run.curves for run in read[1:])]
    if not measures:
        raise UserError(f"{runs[0]}: shares no measure with the other runs (no validation or evaluation is logged yet)")
    results: dict[str, Any] = {
        "first": next(iter(named)),
        "runs": {name: str(path) for name, path in zip(named, runs)},
        "measures": {m: {name: _figures(run, read[0], m) for name, run in named.items()} for m in measures},
        "origin": {"command": command(), "commit": commit(), "machine": machine()},
    }
    table = _table(named, results)
    _print(table)
    # The same table, with curves, as files.
    # Files last: a comparison that fails leaves none.
    if out is not None:
        write_text(out / "compare.json", json.dumps(results, indent=1, allow_nan=False))
        pictures = _pictures(named, measures, out / "pictures")
        chips = [(key, value) for key, value in results["origin"].items() if key != "command"]
        lead = f"Each run against {results['first']}, the first."
        title = " · ".join(named)
        write_comparison_page(
            out / "report.html", title, lead, chips, [table], pictures, [_READING], command=results["origin"]["command"]
        )
        print(f"{out}/report.html   {out}/compare.json")


_READING = (
    "Value at the end of each run; then the examples (and seconds of training) at which its curve, linear between its "
    "points, first reaches the first run's final value, over those of the first run itself. One run each: no "
    "intervals; a study has them (segue-lab study)."
)


def _figures(run: RunCurves, first: RunCurves, measure: str) -> dict | None:
    """Final value and ratios of a run in one measure; None where it has not got it."""
    if measure not in run.curves:
        return None
    higher = first.higher(measure)
    target = float(first.curves[measure].values[-1])
    # The first run's own way to its final value is what others are divided by.
    reached = [
        first_reach(c.examples, c.values, target, higher=higher) for c in (run.curves[measure], first.curves[measure])
    ]
    # From each run's own clock: seconds compare machines and loads, too.
    seconds = [r.seconds_at(n) if math.isfinite(n) else math.inf for r, n in zip((run, first), reached)]
    return {
        "final": float(run.curves[measure].values[-1]),
        "examples_seen": float(run.curves[measure].examples[-1]),
        "examples_to_target": _finite(reached[0]),
        "examples_ratio": _finite(reached[0] / reached[1]),
        "seconds_to_target": _finite(seconds[0]),
        "seconds_ratio": _finite(seconds[0] / seconds[1]) if seconds[1] > 0 else None,
    }


def _finite(value: float) -> float | str | None:
    return None if math.isnan(value) else "not reached" if math.isinf(value) else value


def _table(named: dict[str, RunCurves], results: dict) -> Table:
    rows = []
    for measure, by_run in results["measures"].items():
        for name in named:
            figures = by_run[name]
            cells = ["–"] * 4
            if figures is not None:
                cells = [_text(figures["final"]), f"{figures['examples_seen']:,.0f}",
                         _text(figures["examples_ratio"]), _text(figures["seconds_ratio"])]  # fmt: skip
            rows.append((_title(next(iter(named.values())), measure), [name, *cells]))
    head = ("measure", "run", "final value", "examples", "examples to the first's final", "seconds to it")
    return Table(f"Against {results['first']}", head, rows)


def _title(run: RunCurves, measure: str) -> str:
    """A measure in words, and which way it is better."""
    return f"{run.title(measure)} {'↑' if run.higher(measure) else '↓'}"


def _text(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _print(table: Table) -> None:
    shown = TerminalTable(title=table.title, title_justify="left")
    for column, name in enumerate(table.head):
        shown.add_column(name, justify="left" if column < 2 else "right")
    before = None
    for measure, cells in table.rows:
        if before not in (None, measure):
            shown.add_section()
        shown.add_row(measure if measure != before else "", *cells)
        before = measure
    console = Console()
    # Into a file or a pipe: no cut columns.
    (console if console.is_terminal else Console(width=160)).print(shown)


def _pictures(named: dict[str, RunCurves], measures: list[str], folder: Path) -> list[tuple[str, bytes]]:
    """(title, PNG) of each measure and of the discrepancy over examples and over seconds; written to `folder`, too."""
    pictures = []
    drawn = measures + (["discrepancy"] if any(run.discrepancy is not None for run in named.values()) else [])
    for measure in drawn:
        curves = {
            n: run.discrepancy if measure == "discrepancy" else run.curves.get(measure) for n, run in named.items()
        }
        title = "SSL-space discrepancy" if measure == "discrepancy" else next(iter(named.values())).title(measure)
        for axis in ("examples", "seconds"):
            # Seconds at the same points, so that both pictures show the same curve over another axis.
            lines = {
                name: Line(curve.examples if axis == "examples" else
                           np.array([named[name].seconds_at(n) for n in curve.examples]), curve.values)
                for name, curve in curves.items() if curve is not None
            }  # fmt: skip
            label = "examples seen" if axis == "examples" else "seconds of training"
            png = curve_png(lines, label, title, names=list(named))
            write_bytes(folder / f"{measure}-{axis}.png", png)
            pictures.append((f"{title} over {label}", png))
    return pictures


def _names(runs: list[Path]) -> list[str]:
    """Folder names; with the parent's where two are alike."""
    short = [path.resolve().name for path in runs]
    if len(set(short)) == len(short):
        return short
    longer = ["/".join(path.resolve().parts[-2:]) for path in runs]
    return longer if len(set(longer)) == len(longer) else [str(path) for path in runs]


def _refuse_other_data(runs: list[Path], read: list[RunCurves], force: bool) -> None:
    """Validation losses compare on the same clips and latents alone.

    Raises:
        UserError: a run of another cache, and not forced.
    """
    if force:
        return
    # By the contents of the cache, since its place may differ between machines.
    marks = [_cache_mark(run.cache) for run in read]
    for path, run, mark in zip(runs[1:], read[1:], marks[1:]):
        if mark != marks[0]:
            raise UserError(
                f"{path}: trained on another cache ({run.cache}) than {runs[0]} ({read[0].cache}): their losses do not "
                "compare; hint: add --force to print them side by side"
            )


def _cache_mark(cache: Path) -> str:
    """What a cache holds, where it is there still; else its path: a cache may be moved or copied."""
    meta = cache / "meta.json"
    return sha256_of([meta]) if meta.is_file() else str(cache)
