"""Finished runs to results.json, report.md, report.html and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from segue.files import write_bytes, write_text
from segue.report.comparison_page import Table, write_comparison_page
from segue.report.pictures import Line, curve_png
from segue.report.run_curves import LOSS_AT, MEASURES, run_curves
from segue_lab.study.aggregate import Band, StudyCurves, band, compare, wall_clock
from segue_lab.study.eval_set import LOG_MEL, read_description
from segue_lab.study.evaluation import REPLICATES
from segue_lab.study.runs import DONE, part_of, read_run_file, status_of
from segue_lab.study.study_config import PlannedRun, Study

UNSURE = "≈"
READING = (
    f"{UNSURE} marks what this study cannot tell from the baseline: the 95 % interval of the difference includes 0, or "
    "that of the ratio includes 1. Intervals: crossed bootstrap, paired over seeds and clips; between seeds with "
    "Student's t weights (n - 1 degrees of freedom), so that three seeds give wide intervals; over "
    "clips with the same prompts and noise in every run. Losses vary over seeds alone."
)
TARGET_READING = (
    "Examples at which the variant's mean curve, linear between its evaluations, first reaches the baseline's final "
    "mean, over the examples at which the baseline's own first does. "
    "≤: the variant had reached it at its first evaluation."
)
CEILINGS = {"real": "real clips", "codec_round_trip": "codec round trip"}


def write_study_report(
    study: Study,
    out: Path,
    runs: Sequence[PlannedRun],
    origin: Mapping[str, str],
    markdown: Path | None = None,
    place: Path | None = None,
) -> str:
    """Write results.json, report.md, report.html and pictures/ from what is finished; return one line of status.

    Args:
        runs: those that belong to the study; the others in the folder are left alone.
        origin: "command", "commit" (of this report) and "machine".
        markdown: a second place for the tables.
        place: folder for what is written; the study's own by default.
    """
    place = place or out
    statuses = {(run.variant, run.seed): status_of(part_of(out, "runs") / run.folder) for run in runs}
    curves = read_curves(out, runs)
    results = results_of(study, curves)
    results |= {"status": _status(study, statuses), "origin": _origin(out, runs, origin)}
    asked = read_description(part_of(out, "eval-set"))
    results |= {"ceilings": asked.get("ceilings", {}), "frechet_reference": asked.get("reference_kind")}
    space = "log-mel statistics" if asked.get("space") == LOG_MEL else "the note classifier's space"
    results |= {"frechet_space": space}
    write_text(place / "results.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False))
    tables = tables_of(study, results)
    notes = _notes(study, results)
    pictures = _pictures(study, curves, place / "pictures")
    text = _markdown(study, results, tables, notes)
    write_text(place / "report.md", text)
    if markdown is not None:
        write_text(markdown, text)
    chips = [(k, str(v)) for k, v in results["origin"].items() if k != "command"]
    write_comparison_page(
        place / "report.html", study.name, results["status"]["line"], chips, tables, pictures, notes,
        command=str(origin.get("command", "")),
    )  # fmt: skip
    return results["status"]["line"]


def read_curves(out: Path, runs: Sequence[PlannedRun]) -> dict[str, dict[int, StudyCurves]]:
    """variant -> seed -> curves of finished runs."""
    curves: dict[str, dict[int, StudyCurves]] = {}
    for run in runs:
        folder = part_of(out, "runs") / run.folder
        if (folder / DONE).exists():
            first = min(read_run_file(folder)["evaluation"]["evaluate_at"])
            start = first * run.config["train"]["total_examples"]
            seconds = json.loads((folder / DONE).read_text(encoding="utf-8"))["seconds"]
            curves.setdefault(run.variant, {})[run.seed] = StudyCurves(run_curves(folder, start), seconds)
    return curves


def results_of(study: Study, runs: Mapping[str, Mapping[int, StudyCurves]]) -> dict:
    """Every figure of the tables as plain JSON."""
    found = [m for by_seed in runs.values() for run in by_seed.values() for m in run.curves]
    # Sorted as numbers, since the times are text here.
    losses = sorted({m for m in found if m.startswith(LOSS_AT)}, key=lambda m: float(m.removeprefix(LOSS_AT)))
    names = [m for m in MEASURES if m in found] + losses
    baseline = runs.get(study.baseline, {})
    measures = {}
    # Every variant against the baseline, measure by measure.
    for name in names:
        higher = MEASURES[name][1] if name in MEASURES else False
        row = {}
        for variant in runs:
            # Without a single paired run of the baseline a variant is compared with itself, for its own figures.
            paired = compare(runs[variant], baseline, name, higher=higher)
            alone = compare(runs[variant], runs[variant], name, higher=higher)
            if paired is not None:
                row[variant] = paired.to_json()
            elif alone is not None:
                row[variant] = {key: alone.to_json()[key] for key in ("seeds", "final", "area")}
        measures[name] = row
    clocks = {variant: wall_clock(by_seed, baseline) for variant, by_seed in runs.items()}
    return {
        "schema_version": 2,
        "name": study.name,
        "baseline": study.baseline,
        "examples": study.examples,
        "variants": [asdict(variant) for variant in study.variants],
        "seeds": list(study.seeds),
        "set": list(study.set),
        "evaluation": asdict(study.evaluation) | {"clip_replicates": REPLICATES},
        "measures": measures,
        "seconds": {variant: {str(s): run.seconds for s, run in by_seed.items()} for variant, by_seed in runs.items()},
        "wall_clock": {variant: figure.to_json() for variant, figure in clocks.items() if figure is not None},
    }


def tables_of(study: Study, results: Mapping) -> list[Table]:
    """The tables of a report, as text cells."""
    measures = results["measures"]
    variants = [variant.name for variant in study.variants]
    planned = {variant.name: len(study.seeds_of(variant)) for variant in study.variants}
    shown = [m for m in MEASURES if measures.get(m)]
    losses = [m for m in measures if m.startswith(LOSS_AT)]
    # How many of its seeds a variant has finished stands beside every figure.
    seeds = {variant: f"{len(results['seconds'].get(variant, {}))} of {planned[variant]}" for variant in variants}

    # A cell of each kind of table.
    def rows(names: Sequence[str], cell) -> list[tuple[str, list[str]]]:
        return [
            (variant, [seeds[variant], *(cell(measures[m].get(variant), m, variant) for m in names)])
            for variant in variants
        ]

    def final(entry: Mapping | None, measure: str, variant: str) -> str:
        return _value(entry, "final", measure, mark=variant != study.baseline)

    def target(entry: Mapping | None, measure: str, variant: str) -> str:
        if variant == study.baseline:
            return "1"
        if not entry or "to_target" not in entry:
            return "–"
        return ("≤ " if entry["at_first_evaluation"] else "") + _ratio(entry["to_target"])

    def area(entry: Mapping | None, measure: str, variant: str) -> str:
        if variant == study.baseline:
            return _value(entry, "area", measure, mark=False)
        return _value(entry, "area_difference", measure, signed=True)

    # Rows above the variants: what no run can surpass.
    ceilings = [
        (title, ["", *(_number(results["ceilings"][name].get(m), m) for m in shown)])
        for name, title in CEILINGS.items()
        if name in results["ceilings"]
    ]
    clocks = results["wall_clock"]

    def clock(variant: str) -> list[str]:
        ratio = "1" if variant == study.baseline else _ratio(clocks[variant]) if variant in clocks else "–"
        return [ratio, _seconds(results["seconds"].get(variant, {}))]

    # The tables: final values, time to the baseline's final value, mean height of the curves, losses.
    time_rows = [(variant, [*cells, *clock(variant)]) for variant, cells in rows(shown, target)]
    titles = [_title(m) for m in shown]
    tables = [Table("Final values", ("", "seeds", *titles), [*ceilings, *rows(shown, final)], len(ceilings))]
    heading = ("", "seeds", *titles, "wall-clock ratio", "seconds a run")
    tables.append(Table(f"Examples to the final value of {study.baseline}, as a ratio", heading, time_rows))
    tables.append(Table(f"Mean height of the curves, minus that of {study.baseline}", ("", "seeds", *titles),
                        rows(shown, area)))  # fmt: skip
    if losses:
        heading = ("", "seeds", *(f"t = {m.removeprefix(LOSS_AT)}" for m in losses))
        tables.append(Table("Final validation loss at fixed t", heading, rows(losses, final)))
    return tables


def _pictures(study: Study, runs: Mapping, folder: Path) -> list[tuple[str, bytes]]:
    """(title, PNG) of each measure over examples and over seconds; written to `folder`, too."""
    pictures = []
    for measure, (title, _, percent) in MEASURES.items():
        bands = {variant.name: band(runs[variant.name], measure) for variant in study.variants if variant.name in runs}
        bands = {name: b for name, b in bands.items() if b is not None}
        if not bands:
            continue
        for axis, label in (("examples", "examples seen"), ("seconds", "seconds of training")):
            lines = {name: _line(b, axis, percent) for name, b in bands.items()}
            heading = f"{title}{' (%)' if percent else ''}"
            png = curve_png(lines, label, heading, names=[variant.name for variant in study.variants])
            write_bytes(folder / f"{measure}-{axis}.png", png)
            pictures.append((f"{heading} over {label}", png))
    return pictures


def _line(found: Band, axis: str, percent: bool) -> Line:
    # Intervals of few seeds reach where no measure can be: below 0, above 100 %.
    scale, most = (100.0, 1.0) if percent else (1.0, None)
    edges = [None if edge is None else np.clip(edge, 0.0, most) * scale for edge in (found.low, found.high)]
    return Line(getattr(found, axis), found.mean * scale, *edges)


def _status(study: Study, statuses: Mapping[tuple[str, int], tuple[str, str]]) -> dict:
    done = [key for key, (state, _) in statuses.items() if state == "done"]
    # A variant may run with fewer seeds than the study.
    wanted = [(variant.name, seed) for variant in study.variants for seed in study.seeds_of(variant)]
    missing = [f"{variant} seed {seed}: {_why(*statuses.get((variant, seed), ('missing', '')))}"
               for variant, seed in wanted if (variant, seed) not in done]  # fmt: skip
    line = f"{len(done)} of {len(wanted)} runs done" + ("; PARTIAL" if missing else "")
    return {"done": len(done), "of": len(wanted), "missing": missing, "line": line}


def _why(state: str, line: str) -> str:
    return f"failed ({line})" if state == "failed" else {"missing": "not run yet"}.get(state, state)


def _origin(out: Path, runs: Sequence[PlannedRun], origin: Mapping[str, str]) -> dict:
    done = [part_of(out, "runs") / run.folder / DONE for run in runs]
    # Runs may have been made at several commits: all are named.
    commits = sorted({json.loads(path.read_text(encoding="utf-8"))["commit"] for path in done if path.exists()})
    return {"command": origin.get("command", ""), "machine": origin.get("machine", ""),
            "runs made at commit": ", ".join(commits), "tables made at commit": origin.get("commit", "")}  # fmt: skip


def _notes(study: Study, results: Mapping) -> list[str]:
    evaluation = results["evaluation"]
    missing = results["status"]["missing"]
    notes = [f"Partial study. Missing: {'; '.join(missing)}."] if missing else []
    notes.append(f"{study.examples:,} examples a run, seeds {', '.join(map(str, study.seeds))}. {READING}")
    if results.get("frechet_reference"):
        notes.append(
            f"Evaluated at {', '.join(f'{s:g}' for s in evaluation['evaluate_at'])} of the run: "
            f"{evaluation['clips']} clips, averaged weights, {evaluation['steps']} multistep steps, guidance "
            f"scale {evaluation['guidance']:g}, rescaled by {evaluation.get('rescale', 0):g}; "
            f"Fréchet distance to {results['frechet_reference']} in {results['frechet_space']}."
        )
    notes.append(TARGET_READING)
    return notes


def _markdown(study: Study, results: Mapping, tables: Sequence[Table], notes: Sequence[str]) -> str:
    origin = results["origin"]
    parts = [f"## {study.name}", f"{results['status']['line']}, on {origin['machine']}; runs made at commit "
             f"{origin['runs made at commit'] or '–'}, tables at {origin['tables made at commit'] or '–'}:",
             f"```\n{origin['command']}\n```", *notes]  # fmt: skip
    for table in tables:
        head = "| " + " | ".join(table.head) + " |\n|" + "---|" * len(table.head)
        lines = ["| " + " | ".join([name, *cells]) + " |" for name, cells in table.rows]
        parts += [f"### {table.title}", "\n".join([head, *lines])]
    return "\n\n".join(parts) + "\n"


def _title(measure: str) -> str:
    title, higher, percent = MEASURES[measure]
    return f"{title}{' %' if percent else ''} {'↑' if higher else '↓'}"


def _value(entry: Mapping | None, key: str, measure: str, *, mark: bool = True, signed: bool = False) -> str:
    if not entry or key not in entry:
        return "–"
    figure = entry[key]
    words = _number(figure["value"], measure, signed)
    if "interval" in figure:
        ends = figure["interval"]
        if MEASURES.get(measure, ("", False, False))[2] and not signed:
            ends = [min(1.0, max(0.0, x)) for x in ends]  # a t interval does not know that shares end
        words += f" [{', '.join(_number(x, measure, signed) for x in ends)}]"
    # A difference carries its own mark; a value, that of its difference.
    against = figure if signed else entry.get(f"{key}_difference", {})
    return words + (f" {UNSURE}" if mark and against.get("includes_null") else "")


def _ratio(figure: Mapping) -> str:
    words = _number(figure["value"], "")
    if "interval" in figure:
        words += f" [{', '.join(_number(x, '') for x in figure['interval'])}]"
    return words + (f" {UNSURE}" if figure.get("includes_null") else "")


def _number(value: float | str | None, measure: str, signed: bool = False) -> str:
    if value is None or isinstance(value, str):
        return value or "–"
    percent = measure in MEASURES and MEASURES[measure][2]
    if percent:
        return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    # Losses of variants differ in the third digit: one more is shown.
    significant = 4 if measure.startswith("validation_loss") and not signed else 3
    digits = max(0, significant - 1 - math.floor(math.log10(abs(value)))) if value else 2
    text = f"{value:.{min(digits, 4)}f}"
    return f"+{text}" if signed and value > 0 else text


def _seconds(by_seed: Mapping[str, float]) -> str:
    return f"{np.mean(list(by_seed.values())):.0f}" if by_seed else "–"
