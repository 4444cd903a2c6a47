"""Run folders as parts of a page: figures, verdicts, curves, stages and sounds. What stands behind the tab Runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from segue import UserError
from segue.report.curves import curve_figures, read_events
from segue.report.page import number, table
from segue.report.run_curves import LOSS_AT, MEASURES, run_curves
from segue.report.run_page import sound_cards, verdict_list
from segue.report.stages import stage_figures
from segue.report.verdict import verdict

MOST_RUNS = 6  # as many colours as pictures have
# The look of the report's parts inside the page, whose own colours they take.
STYLE = """<style>
.segue-run{font-size:15px;line-height:1.5}
.segue-run h2{font-size:19px;margin:26px 0 8px}.segue-run h3{font-size:16px;margin:0}
.segue-run .grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(260px,1fr));gap:14px 18px}
.segue-run .card{border:1px solid var(--border-color-primary);border-radius:10px;padding:14px 16px;margin:10px 0;
overflow-x:auto;background:var(--background-fill-primary)}
.segue-run figure{margin:0}.segue-run img{display:block;width:100%;height:auto;margin:0}
.segue-run audio{display:block;width:100%;height:34px;margin:6px 0 4px}
.segue-run figcaption,.segue-run .note{font-size:13px;color:var(--body-text-color-subdued)}
.segue-run .sounds{grid-template-columns:repeat(auto-fit,minmax(170px,1fr))}
.segue-run table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;margin:0}
.segue-run table *{border:0!important}.segue-run th,.segue-run td{padding:6px 12px;text-align:left;white-space:nowrap}
.segue-run dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;margin:0}.segue-run dd{margin:0}
.segue-run dt{color:var(--body-text-color-subdued)}
.segue-run .prompt{display:flex;gap:8px;align-items:center;margin-bottom:10px}
.segue-run .badge{font-size:12px;border:1px solid #b45309;color:#b45309;border-radius:6px;padding:0 7px}
.segue-run .verdict{list-style:none!important;margin:6px 0;padding:0!important}
.segue-run .verdict li{list-style:none!important;border-left:3px solid #3b82f6;padding:1px 12px;margin:6px 0}
.segue-run .verdict li.warn{border-color:#b45309}
</style>"""


def runs_html(runs: Mapping[str, Path]) -> str:
    """Runs side by side: a table of final figures, their verdicts, shared curves, then each one's stages and sounds.

    Args:
        runs: name -> folder.

    Raises:
        UserError: none, or more than the pictures have colours for.
    """
    if not runs:
        raise UserError("no run is chosen; hint: choose one of the list, or train one")
    if len(runs) > MOST_RUNS:
        raise UserError(f"{len(runs)} runs: choose at most {MOST_RUNS}")
    events = {name: read_events(path) for name, path in runs.items()}
    body = [_figures(runs, events)]
    for name in runs:
        findings = verdict_list(verdict(events[name], _planned(runs[name])))
        body += [f"<h3>{escape(name)}</h3>", *findings] if findings else []
    curves = curve_figures(events)
    if curves:
        body += ["<h2>Curves</h2>", f'<div class="card grid">{"".join(curves)}</div>']
    for name in runs:
        stages = stage_figures(events[name], name)
        if stages:
            body += [f"<h2>Stages: {escape(name)}</h2>", f'<div class="card grid">{"".join(stages)}</div>']
    for name, path in runs.items():
        sounds = sound_cards(path)
        if sounds:
            body += [f"<h2>Sounds: {escape(name)}</h2>", *sounds]
    return wrapped(body)


def wrapped(body: Sequence[str]) -> str:
    """Parts of a report in the look of the page."""
    return f'{STYLE}<div class="segue-run">{"".join(body)}</div>'


def live_html(run: Path) -> str:
    """How a run goes: its verdict, its curves, and the newest sounds."""
    events = read_events(run)
    body = verdict_list(verdict(events, None))
    curves = [c for c in curve_figures({run.name: events}) if "validation loss" in c or "training loss" in c]
    if curves:
        body.append(f'<div class="card grid">{"".join(curves)}</div>')
    sounds = sound_cards(run, times=1)
    body += ["<h2>Newest sounds</h2>", *sounds] if sounds else []
    return wrapped(body) if body else ""


def _figures(runs: Mapping[str, Path], events: Mapping[str, Sequence[dict]]) -> str:
    """The table of final figures: a row each, and the measures that any of them has."""
    last = {
        name: {measure: float(curve.values[-1]) for measure, curve in run_curves(path).items()}
        for name, path in runs.items()
    }
    shown = [measure for measure in MEASURES if any(measure in figures for figures in last.values())]
    times = sorted({m for figures in last.values() for m in figures if m.startswith(LOSS_AT)},
                   key=lambda m: float(m.removeprefix(LOSS_AT)))  # fmt: skip
    head = ["run", "recipe", "examples", *map(_heading, shown), *(f"at t = {m.removeprefix(LOSS_AT)}" for m in times)]
    rows = []
    for name, path in runs.items():
        seen = max((e["examples_seen"] for e in events[name]), default=0)
        cells = [escape(str(_config(path).get("recipe", "–"))), number(seen)]
        cells += [_cell(last[name].get(m), m) for m in [*shown, *times]]
        rows.append((name, cells, False))
    return table(head, rows)


def _heading(measure: str) -> str:
    title, higher, percent = MEASURES[measure]
    return f"{title}{' %' if percent else ''} {'↑' if higher else '↓'}"


def _cell(value: float | None, measure: str) -> str:
    if value is None:
        return "–"
    if measure in MEASURES and MEASURES[measure][2]:
        return f"{100 * value:.1f}"
    return f"{value:.4f}" if "loss" in measure else number(value)


def _config(run: Path) -> dict:
    try:
        stored = json.loads((run / "config.json").read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _planned(run: Path) -> int | None:
    train = _config(run).get("train")
    total = train.get("total_examples") if isinstance(train, dict) else None
    return total if isinstance(total, int) else None
