"""Runs or variants side by side: curves with interval bands, tables, one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from segue.report import page as html
from segue.report import pictures

_DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Line:
    """A curve, perhaps with an interval at each point."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Table:
    """A table of text cells; the first `ceilings` rows are references rather than competitors."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, list[str]]]
    ceilings: int = 0


def curve_png(
    lines: Mapping[str, Line], xlabel: str, title: str, *, width_px: int = 900, height_px: int = 560
) -> bytes:
    """Curves in the colours of all our pictures; beyond six, the same colours dashed. Intervals as pale bands."""
    figure, axes = pictures._figure(width_px, height_px, True)
    for index, (name, line) in enumerate(lines.items()):
        colour = pictures.COLOURS[index % len(pictures.COLOURS)]
        dash = _DASHES[index // len(pictures.COLOURS) % len(_DASHES)]
        axes.plot(line.x, line.y, dash, color=colour, label=name, linewidth=1.8,
                  marker="o" if len(line.x) <= 24 else None, markersize=3.5)  # fmt: skip
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.12, linewidth=0)
    _frame_on_means(axes, lines)
    axes.grid(True, color=pictures._GREY, alpha=0.22, linewidth=0.7)
    axes.set_xlabel(xlabel)
    axes.set_title(title, color=pictures._GREY, fontsize=10, loc="left", fontweight="bold")
    if len(lines) > 1:
        axes.legend(frameon=False, labelcolor=pictures._GREY, fontsize=7.5, ncols=1 + len(lines) // 7)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}")
    return pictures._png(figure)


def write_comparison_page(
    path: Path,
    title: str,
    lead: str,
    chips: Sequence[tuple[str, str]],
    tables: Sequence[Table],
    drawn: Sequence[tuple[str, bytes]],
    notes: Sequence[str] = (),
    *,
    command: str = "",
) -> Path:
    """Write one page of tables and pictures (title, PNG); return its path."""
    body = [html.heading(title, lead, chips)]
    for table in tables:
        rows = [
            (name, [escape(cell) for cell in cells], index < table.ceilings)
            for index, (name, cells) in enumerate(table.rows)
        ]
        body += [f"<h2>{escape(table.title)}</h2>", html.table(table.head, rows)]
    body += [f'<p class="note">{escape(note)}</p>' for note in notes]
    if drawn:
        figures = "".join(html.figure(html.image(png, words)) for words, png in drawn)
        body += ["<h2>Curves</h2>", f'<div class="card grid">{figures}</div>']
    if command:
        body += ["<h2>How this page was made</h2>", f"<pre>{escape(command)}</pre>"]
    return html.write_page(path, html.page(f"segue: {title}", body))


def _frame_on_means(axes, lines: Mapping[str, Line]) -> None:
    """Let the curves, not the widest band of a few seeds, set the height of the picture."""
    values = np.concatenate([np.asarray(line.y, float) for line in lines.values()])
    low, high = float(values.min()), float(values.max())
    room = 0.35 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(low - room, high + room)
