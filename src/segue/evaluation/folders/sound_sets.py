"""Sets of sound files by id, and what an evaluation finds out about them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segue.audio.folders import walk
from segue.audio.names import identities
from segue.audio.read import examine, read_header, read_sound, read_wave
from segue.audio.sound import SUFFIXES, BadAudio, Header
from segue.data.clip import Clip
from segue.data.manifest import load_manifest, read_listing
from segue.data.reading import Reading
from segue.evaluation.card import Measure
from segue.files import sha256_of
from segue.progress import track
from segue.types import UserError, printable

_SHOWN = 3  # clips at either end of the picture


@dataclass(frozen=True)
class ClipPair:
    """One row of the picture of the worst and the best clips.

    Attributes:
        title: which clip, and its figure.
        clips: (label, waveform [T]) from left to right.
        sample_rate_hz: of the clips.
    """

    title: str
    clips: Sequence[tuple[str, np.ndarray]]
    sample_rate_hz: int


@dataclass
class Findings:
    """What an evaluation has found so far.

    Attributes:
        sets: what it measures, by name: source, number of clips, hash of their contents.
        counts: what the heading of its table counts, by name.
        measures: the figures, in the order of the table.
        rows: name -> figures that the measures are to be read beside.
        not_computed: name of a figure -> why it is missing.
        warnings: notes below the table.
        by_file: id -> figures of one clip or pair.
        examples: the worst and the best clips.
    """

    sets: dict[str, dict] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    measures: list[Measure] = field(default_factory=list)
    rows: dict[str, list[Measure]] = field(default_factory=dict)
    not_computed: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    by_file: dict[str, dict] = field(default_factory=dict)
    examples: list[ClipPair] = field(default_factory=list)

    def attempt(self, name: str, make: Callable[..., Measure | list[Measure]], /, *arguments, **options) -> None:
        """Add what `make(*arguments, **options)` measures; where it cannot be computed, say why instead."""
        try:
            made = make(*arguments, **options)
        except UserError as error:
            # A figure that cannot be had is named in the table with its reason, never silently missing.
            self.not_computed[name] = str(error)
            return
        self.measures.extend(made if isinstance(made, list) else [made])


def find_sounds(source: Path) -> dict[str, Clip]:
    """id -> clip, sorted by id; the id is the path inside the folder without suffix, or what a manifest says.

    Raises:
        UserError: no such folder, no sounds, an id twice, or one clip only.
    """
    # A folder with a manifest is read by it, one without by its files.
    if source.is_dir() and not (source / "manifest.jsonl").exists():
        looked = walk(source)
        _say(source, looked.notes())
        paths = looked.sounds
        names = identities([path.relative_to(source) for path in paths])
        clips = [Clip(name, path, (), "") for name, path in zip(names, paths)]
    elif source.is_file() and source.suffix.lower() in SUFFIXES:
        raise UserError(f"{source}: one clip only, which has no interval; hint: name a folder with at least 2 sounds")
    else:
        clips = listed_clips(source, "filename")
    # One order for all, by id, and no id twice.
    found = {clip.id: clip for clip in sorted(clips, key=lambda clip: clip.id)}
    if len(found) < len(clips):
        twice = sorted({c.id for c in clips if sum(d.id == c.id for d in clips) > 1})
        raise UserError(f"{source}: {twice[0]} is there twice with different suffixes; hint: keep one")
    if not found:
        raise UserError(
            f"{source}: holds no sounds; hint: put {', '.join(SUFFIXES)} files there, or name another folder"
        )
    if len(found) == 1:
        raise UserError(f"{source}: one clip only, which has no interval; hint: give at least 2")
    return found


def held_out_sounds(source: Path) -> dict[str, Clip]:
    """The sounds of a set that no training on it has seen: of its splits "test" and "valid", as `segue encode` splits.

    Raises:
        UserError: as `find_sounds`; fewer than two of them.
    """
    everything = find_sounds(source)
    trained = {clip.path for clip in load_manifest(source, "none") if clip.split == "train"}
    found = {name: clip for name, clip in everything.items() if clip.path not in trained}
    if len(found) < 2:
        raise UserError(
            f"{source}: of {len(everything):,} sounds {len(found)} is held out, and an interval needs 2; hint: add "
            "sounds, or name a set that was not trained on, without --held-out"
        )
    return found


def usable_of(sets: dict[str, dict[str, Clip]], paired: bool) -> tuple[dict[str, dict[str, Clip]], list[str]]:
    """Sets without the sounds that cannot be used, and a line for each of those; of a pair both are left out.

    Raises:
        UserError: fewer than two are left.
    """
    bad: dict[str, dict[str, str]] = {name: {} for name in sets}
    for name, clips in sets.items():
        for i, clip in track(clips.items(), len(clips), f"checking {name}", "files"):
            try:
                examine(clip.path)
            except BadAudio as error:
                bad[name][i] = error.reason
    # Of a pair both go, so that the sets stay paired.
    anywhere = {i for found in bad.values() for i in found}
    left = {
        name: {i: c for i, c in clips.items() if i not in (anywhere if paired else bad[name])}
        for name, clips in sets.items()
    }
    for name, clips in left.items():
        if len(clips) < 2:
            raise UserError(f"{name}: {len(clips)} of its {len(sets[name])} sounds can be used; hint: give at least 2")
    return left, [f"left out of {name}: {i}: {reason}" for name, found in bad.items() for i, reason in found.items()]


def _say(source: Path, notes: Sequence[str]) -> None:
    """What was left out by rule, on stderr."""
    for note in notes:
        print(printable(f"note: {source}: {note}"), file=sys.stderr)


def listed_clips(source: Path, captions: str = "manifest") -> list[Clip]:
    """The clips of a data set, as its list names them.

    Raises:
        UserError: the set cannot be read, or holds stretches of files.
    """
    listing = read_listing(source, Reading(captions))
    listing.refuse_faults()
    _say(source, listing.notes)
    # Files are compared as wholes; a stretch would have to be cut out first.
    part = next((clip for clip in listing.clips if not clip.is_whole), None)
    if part is not None:
        raise UserError(f"{source}: {part.id} is a stretch of {part.path}; hint: cut it out, whole files are compared")
    return listing.clips


def described(source: Path, clips: dict[str, Clip]) -> dict:
    """A set for the JSON: where it is, how many clips, and a hash of their contents that knows no names or order."""
    # Sorted hashes of contents: renaming or reordering files is no other set.
    contents = "".join(sorted(sha256_of([clip.path]) for clip in clips.values()))
    return {
        "source": str(source),
        "clips": len(clips),
        "content": hashlib.sha256(contents.encode()).hexdigest()[:16],
    }


def some(names: Sequence[str]) -> str:
    """The first three names, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def header_of(path: Path) -> Header:
    """Rate, channels and length of a file.

    Raises:
        UserError: the file cannot be used.
    """
    return _usable(read_header, path)


def read(path: Path, rate_hz: int) -> np.ndarray:
    """[T] at rate_hz, the mean of a file's channels.

    Raises:
        UserError: the file cannot be used.
    """
    return _usable(read_wave, path, rate_hz)


def read_sides(path: Path) -> np.ndarray:
    """[2, T] of a stereo file, at its own rate.

    Raises:
        UserError: the file cannot be used.
    """
    return _usable(read_sound, path, 2)[0]


def ends(ranked: list[str]) -> list[tuple[str, str]]:
    """("worst" or "best", id) of both ends, worst first; each id once."""
    # At most half on each end, so that no clip is shown as best and worst.
    shown = min(_SHOWN, len(ranked) // 2)
    return [("worst", i) for i in ranked[:shown]] + [("best", i) for i in ranked[-shown:]]


def _usable(reader: Callable, path: Path, *arguments):
    try:
        return reader(path, *arguments)
    except BadAudio as error:
        raise UserError(f"{path}: {error.reason}; hint: repair the file, or --skip-bad to leave it out") from error
