"""Curves of one run or of several side by side, from the lines of log.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segue.report.page import figure, image
from segue.report.pictures import Line, curve_png

# Numbers of "train" lines that get a panel, with its title; the rest of a log is for machines.
_TRAIN = {"loss": "training loss", "timestep_mean": "mean t drawn"}
_TRAIN_ALONE = {
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "examples_per_sec": "examples per second",
}
_STAGE = {
    "regime": "regime r (0 semantic, 1 refinement)",
    "alignment_weight": "alignment weight",
    "timestep_mean": "mean t of the timestep distribution",
    "discrepancy": "SSL-space discrepancy",
}
_SEEN = "examples seen"


def read_events(run_dir: Path, name: str = "log.jsonl") -> list[dict]:
    """The lines of a run's log in order; empty where there is none. A line cut short by a kill is left out."""
    path = run_dir / name
    events = []
    # A kill may cut the last line short; all others are whole.
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and _is_number(event.get("examples_seen")):
            if "guidance_weight" in event:  # its name in older logs
                event["alignment_weight"] = event.pop("guidance_weight")
            events.append(event)
    return events


def curve_figures(runs: Mapping[str, Sequence[dict]]) -> list[str]:
    """Panels as HTML figures for `runs`: name -> events. Several runs share each panel; empty panels are left out.

    The stages of one run have pictures of their own (report/stages.py).
    """
    panels = _validation_panels(runs)
    # Alone, a run shows its own pace as well; side by side, that would compare machines.
    alone = len(runs) == 1
    for event, titles in (("train", _TRAIN | _TRAIN_ALONE if alone else _TRAIN), ("stage", {} if alone else _STAGE)):
        for key, title in titles.items():
            panels.append((title, {name: points(events, event, key) for name, events in runs.items()}))
    return [_panel(title, series) for title, series in panels if any(x for x, _ in series.values())]


def _validation_panels(runs: Mapping[str, Sequence[dict]]) -> list[tuple[str, dict]]:
    """One run: all times in one panel. Several: a panel for each time, so that runs are compared like with like."""
    # Times are text in the log: sorted as numbers, 0.5 stands before 0.75 and 10.
    times = sorted({t for events in runs.values() for e in events for t in e.get("loss_by_t") or {}}, key=float)
    if len(runs) == 1:
        (events,) = runs.values()
        return [
            ("validation loss at fixed t", {f"t = {t}": points(events, "validation", "loss_by_t", t) for t in times})
        ]
    return [
        (
            f"validation loss at t = {t}",
            {n: points(events, "validation", "loss_by_t", t) for n, events in runs.items()},
        )
        for t in times
    ]


def points(events: Sequence[dict], event: str, *keys: str) -> tuple[list[float], list[float]]:
    """Examples and values of a number in the lines of one event; the keys lead to it, one inside the other."""
    x: list[float] = []
    y: list[float] = []
    for line in events:
        value: Any = line if line.get("event") == event else None
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if _is_number(value):
            x.append(line["examples_seen"])
            y.append(value)
    return x, y


def _panel(title: str, series: dict) -> str:
    drawn = {name: Line(*points) for name, points in series.items() if points[0]}
    png = curve_png(drawn, _SEEN, title, width_px=720, height_px=430, names=list(series))
    return figure(image(png, f"{title} over {_SEEN}"))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
