"""What the verbs of `segue evaluate` share: sets of files by id, findings, and how they are shown and written."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from segue.audio.folders import walk
from segue.audio.names import identities
from segue.audio.read import read_header, read_wave
from segue.audio.sound import SUFFIXES, BadAudio, Header
from segue.cli.origin import command, commit, machine
from segue.data.clip import Clip
from segue.data.manifest import load_manifest
from segue.files import sha256_of, write_bytes, write_text
from segue.metrics.card import Measure
from segue.report.evaluate import ClipPair, worst_and_best_png
from segue.types import UserError

_SHOWN = 3  # clips at either end of the picture

Out = Annotated[Path, typer.Option(help="Folder for evaluation.json, files.csv, worst-and-best.png and the cache.")]
Seed = Annotated[int, typer.Option(help="Of the bootstrap and of FAD-infinity's subsets.")]
Draws = Annotated[int, typer.Option(help="Bootstrap draws; Frechet takes at most 100, FAD-infinity 50.", min=20)]
Visqol = Annotated[bool, typer.Option("--visqol", help="ViSQOL's MOS, too (needs visqol-python; slow).")]
Trim = Annotated[bool, typer.Option("--trim", help="Cut pairs of different lengths to the shorter one.")]


@dataclass
class Findings:
    """What a command has found so far.

    Attributes:
        sets: what it measures, by name: source, number of clips, hash of their contents.
    """

    sets: dict[str, dict] = field(default_factory=dict)
    measures: list[Measure] = field(default_factory=list)
    rows: dict[str, list[Measure]] = field(default_factory=dict)  # what the measures are to be read beside
    not_computed: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    by_file: dict[str, dict] = field(default_factory=dict)

    def attempt(self, name: str, make: Callable[[], Measure | list[Measure]]) -> None:
        """Add what `make` measures; where it cannot be computed, say why instead."""
        try:
            made = make()
        except UserError as error:
            self.not_computed[name] = str(error)
            return
        self.measures.extend(made if isinstance(made, list) else [made])


def find_sounds(source: Path) -> dict[str, Clip]:
    """id -> clip, sorted by id; the id is the path inside the folder without suffix, or what a manifest says.

    Raises:
        UserError: no such folder, no sounds, an id twice, or one clip only.
    """
    if source.is_dir() and not (source / "manifest.jsonl").exists():
        paths = walk(source).sounds
        names = identities([path.relative_to(source) for path in paths])
        clips = [Clip(name, path, (), "") for name, path in zip(names, paths)]
    elif source.is_file() and source.suffix.lower() in SUFFIXES:
        raise UserError(f"{source}: one clip only, which has no interval; name a folder with at least 2 sounds")
    else:
        clips = load_manifest(source, "filename")
    found = {clip.id: clip for clip in sorted(clips, key=lambda clip: clip.id)}
    if len(found) < len(clips):
        twice = sorted({c.id for c in clips if sum(d.id == c.id for d in clips) > 1})
        raise UserError(f"{source}: {twice[0]} is there twice with different suffixes; keep one")
    if not found:
        raise UserError(f"{source}: holds no sounds; put {', '.join(SUFFIXES)} files there, or name another folder")
    if len(found) == 1:
        raise UserError(f"{source}: one clip only, which has no interval; give at least 2")
    return found


def described(source: Path, clips: dict[str, Clip]) -> dict:
    """A set for the JSON: where it is, how many clips, and a hash of their contents that knows no names or order."""
    contents = "".join(sorted(sha256_of([clip.path]) for clip in clips.values()))
    return {
        "source": str(source),
        "clips": len(clips),
        "content": hashlib.sha256(contents.encode()).hexdigest()[:16],
    }


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def header_of(path: Path) -> Header:
    try:
        return read_header(path)
    except BadAudio as error:
        raise UserError(f"{path}: {error.reason}; mend the file, or leave it out and count it as failed") from error


def read(path: Path, rate_hz: int) -> np.ndarray:
    try:
        return read_wave(path, rate_hz)
    except BadAudio as error:
        raise UserError(f"{path}: {error.reason}; mend the file, or leave it out and count it as failed") from error


def ends(ranked: list[str]) -> list[tuple[str, str]]:
    """("worst" or "best", id) of both ends, worst first; each id once."""
    shown = min(_SHOWN, len(ranked) // 2)
    return [("worst", i) for i in ranked[:shown]] + [("best", i) for i in ranked[-shown:]]


def finish(found: Findings, out: Path, rows: list[ClipPair], counts: dict) -> None:
    results = {
        "counts": counts,
        "sets": found.sets,
        "measures": [m.to_json() for m in found.measures],
        "rows": {name: [m.to_json() for m in measures] for name, measures in found.rows.items()},
        "not_computed": found.not_computed,
        "notes": found.warnings,
        "origin": {"command": command(), "commit": commit(), "machine": machine()},
    }
    picture = worst_and_best_png(rows)
    write_bytes(out / "worst-and-best.png", picture)
    write_text(out / "files.csv", _csv(found.by_file))
    write_text(out / "evaluation.json", json.dumps(results, indent=1, allow_nan=False))
    _print(found, counts)
    print(f"{out}/evaluation.json   {out}/files.csv   {out}/worst-and-best.png")


def _csv(by_file: dict[str, dict]) -> str:
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in by_file.values() for key in row))
    writer = csv.DictWriter(text, ["id", *columns], lineterminator="\n")
    writer.writeheader()
    for name in sorted(by_file):
        writer.writerow({"id": name, **by_file[name]})
    return text.getvalue()


def _print(found: Findings, counts: dict) -> None:
    title = ", ".join(f"{n:,} {name}" for name, n in counts.items())
    table = Table(title=title, title_justify="left")
    for column in ("measure", "value", "95 % interval", "N", "better", *found.rows):
        table.add_column(column, justify="left" if column in ("measure", "better") else "right")
    beside = [{m.name: f"{m.value:.4g}" for m in measures} for measures in found.rows.values()]
    for m in found.measures:
        value = f"{m.value:.4g} {m.unit}".strip()
        cells = [m.name, value, f"{m.interval[0]:.4g} to {m.interval[1]:.4g}", f"{m.n:,}", m.better]
        table.add_row(*cells, *(values.get(m.name, "–") for values in beside))
    console = Console()
    # Into a file or a pipe: no cut columns.
    console = console if console.is_terminal else Console(width=140)
    console.print(table)
    for name, why in found.not_computed.items():
        print(f"not computed: {name}: {why}")
    for m in found.measures:
        if "r2" in m.card:
            print(f"{m.name}: R2 of the fit {m.card['r2']:.3f}")
    for line in found.warnings:
        print(f"note: {line}")
