"""Runs or variants side by side: tables and pictures on one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from segue.report import page as html


@dataclass(frozen=True)
class Table:
    """A table of text cells; the first `ceilings` rows are references rather than competitors."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, list[str]]]
    ceilings: int = 0


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
    # The references come first in their tables, and are drawn apart from what competes with them.
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
