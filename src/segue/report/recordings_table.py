"""What the demo's page says of recordings: the tables of distances and of what the sounds are, and how to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segue.report.page import table

ABOUT = (
    "Both variants were trained from the same seed on the same recordings for the same number of examples, and then "
    "generated clips of the captions of held-out recordings. Some of these captions were trained on, by other "
    "recordings; some were not. No classifier knows these sounds, so the figures compare spectra."
)
READING = (
    "A clip is the mean and the deviation of 32 mel bands over its window, in dB. Distance to the recording of the "
    "same caption: the mean difference of these; lower is better; chance is the distance to the recordings of other "
    "captions. Kernel and Fréchet distance compare the whole sets, made and held out; the kernel distance (x100) is 0 "
    "on average where they are alike. Small: 95 % bootstrap interval over clips, not over seeds. The grey rows are no "
    "models: other recordings were trained on (their first figure is of those that share a caption with a held-out "
    "one), and the codec round trip is the ceiling of all that is generated here. The second table has medians, and "
    "quartiles in small; a sound ends where all that follows lies 40 dB below its loudest 10 ms."
)
_HEAD = ("", "distance to the recording of the same caption (dB)", "kernel distance", "Fréchet distance")
_SOUNDS = {
    "length_sec": ("length (s)", 2),
    "level_db": ("level (dB)", 0),
    "treble_db": ("above 10 kHz (dB)", 0),
    "width_db": ("side against mid (dB)", 0),
}


def measures_table(summary: Mapping) -> str:
    """Two tables of summary["rows"]: name -> distances, and "sounds" with the quartiles of each figure."""
    variants = summary.get("variants", {})
    rows = summary.get("rows", {})
    distances = [(name, _cells(row), name not in variants) for name, row in rows.items() if "kernel_distance" in row]
    shown = [key for key in _SOUNDS if any(key in row.get("sounds", {}) for row in rows.values())]
    sounds = [
        (name, [_quartiles(row["sounds"][key], _SOUNDS[key][1]) for key in shown], name not in variants)
        for name, row in rows.items()
        if "sounds" in row
    ]
    return table(_HEAD, distances) + table(("", *(_SOUNDS[key][0] for key in shown)), sounds)


def _cells(row: Mapping) -> list[str]:
    own = row.get("caption_distance")
    chance = f" · chance {own['chance']:.1f}" if own and "chance" in own else ""
    first = "–" if not own else f"{own['value']:.1f}<small>{_span(own['interval'], 1)}{chance} · n {own['n']}</small>"
    cells = [first, f"{row['kernel_distance']:.1f}<small>{_span(row['kernel_distance_interval'], 1)}</small>"]
    frechet = row.get("frechet_distance")
    small = "" if frechet is None else f"<small>{_span(row['frechet_distance_interval'], 0)} · n {row['clips']}</small>"
    return [*cells, "–" if frechet is None else f"{frechet:.0f}{small}"]


def _span(interval: Sequence[float], digits: int) -> str:
    return f"{interval[0]:.{digits}f}–{interval[1]:.{digits}f}"


def _quartiles(values: Sequence[float], digits: int) -> str:
    low, middle, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle}<small>{low} to {high}</small>"
