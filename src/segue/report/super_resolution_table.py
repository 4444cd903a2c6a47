"""What the demo's page says of super-resolution: the table of distances, and how to read it."""

from __future__ import annotations

from collections.abc import Mapping

from segue.report.page import table

ABOUT = (
    "Both variants trained from the same seed on the same clips for the same number of examples: each clip lost its "
    "top to a filter drawn at random, and the model learned to restore it. Then held-out notes were narrowed by one "
    "fixed filter and widened again. Played are those held-out clips, of some twenty, that lost most."
)
READING = (
    "LSD: log-spectral distance to the original in decades of power, full band, below and above the cutoff; lower is "
    "better. SI-SDR: of the waveform, in dB, higher is better; an invented band costs SI-SDR. Small: 95 % bootstrap "
    "interval over clips, not over seeds. The notes are (instrument, pitch) pairs of no training clip. The grey "
    "rows need no model: sinc adds nothing, band replication copies the upper octave upwards, and the codec round trip "
    "is the ceiling. The shipped models trained longer, on other sounds."
)
_HEAD = ("", "LSD full", "LSD low", "LSD high", "SI-SDR (dB)")
_MEASURES = {"lsd full": 3, "lsd low": 3, "lsd high": 3, "si-sdr db": 1}  # and digits


def measures_table(summary: Mapping) -> str:
    """The rows of summary["rows"], name -> measure -> mean and interval; those that are no variant are references."""
    # Rows that are no variant need no model: they are the references.
    variants = summary.get("variants", {})
    rows = [(name, _cells(row), name not in variants) for name, row in summary.get("rows", {}).items()]
    return table(_HEAD, rows)


def _cells(row: Mapping) -> list[str]:
    cells = []
    for name, digits in _MEASURES.items():
        low, high = row[name]["interval"]
        cells.append(f"{row[name]['mean']:.{digits}f}<small>{low:.{digits}f}–{high:.{digits}f}</small>")
    return cells
