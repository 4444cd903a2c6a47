"""Captions for a folder of sounds, as a list that people edit and `segue encode` reads."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from segue.audio.folders import counted, walk
from segue.audio.names import identities
from segue.audio.read import read_wave
from segue.audio.sound import BadAudio
from segue.audio.tags import read_tags
from segue.data.phrasings import phrasings
from segue.data.reading import Listing, Reading
from segue.data.sidecars import caption_file, read_captions
from segue.data.sound_folder import OWN_LISTS, no_sounds
from segue.evaluation.sound_tags import Tagger
from segue.files import write_text
from segue.progress import track
from segue.types import UserError, printable

KEPT_TAGS = ("title", "genre", "artist", "album", "comment")


@dataclass(frozen=True)
class Captioned:
    """What was written.

    Attributes:
        rows: how many, one a sound.
        bare: how many of them have no caption.
        command: of `segue encode`, which reads the list.
    """

    rows: int
    bare: int
    command: str


def caption_folder(
    root: Path, out: Path | None, tagger: Tagger | None = None, count: int = 3, follow_links: bool = False
) -> Captioned:
    """Write a .jsonl list with up to `count` captions of every sound of a folder; nothing is ever replaced.

    Captions that lie beside a sound come first, as they are. Sounds of which nothing is known have none, and are
    counted: the list is to be read through and edited.

    Args:
        out: the list; None: manifest.jsonl in the folder, which `segue encode` then finds by itself.
        tagger: gives words to each sound.

    Raises:
        UserError: no sounds, a list that is there already, a caption file that cannot be read, or a full disk.
    """
    out = root / OWN_LISTS[0] if out is None else out
    _refuse_existing(root, out)
    found = walk(root, follow_links)
    notes = found.notes()
    if found.outside:
        notes.append(f"{counted(found.outside, 'link')} that lead out of it left out; hint: --follow-links")
    if not found.sounds:
        raise no_sounds(root, Listing(notes=notes))
    for note in notes:
        print(printable(f"note: {root}: {note}"), file=sys.stderr)
    relatives = [PurePosixPath(path.relative_to(root).as_posix()) for path in found.sounds]
    base = Path(os.path.abspath(out.parent))
    inside = Path(os.path.abspath(root)).is_relative_to(base)
    rows = []
    sounds = list(zip(found.sounds, relatives, identities(relatives)))
    for path, relative, name in track(sounds, len(sounds), "captioning", "files"):
        beside = caption_file(path, found.beside.get(path.parent, {}))
        own = read_captions(beside, Reading()) if beside is not None else ()
        tags = read_tags(path)
        recognised = _recognised(path, tagger)
        captions = dict.fromkeys([*own, *phrasings(relative, tags, [word for word, _ in recognised], count)])
        shown = os.path.relpath(os.path.abspath(path), base) if inside else relative.as_posix()
        row: dict = {"path": shown, "captions": list(captions), "id": name}
        row |= {tag: tags[tag] for tag in KEPT_TAGS if tags.get(tag)}
        if recognised:
            row["tags"] = {word: round(share, 3) for word, share in recognised}
        rows.append(row)
    # Looked for once more: a long run must not replace what came meanwhile.
    _refuse_existing(root, out)
    write_text(out, "".join(_line(row) for row in rows))
    bare = sum(not row["captions"] for row in rows)
    source = root if out == root / OWN_LISTS[0] else out
    named = "" if inside else f" --root {shlex.quote(str(root))}"
    return Captioned(len(rows), bare, f"segue encode {shlex.quote(str(source))}{named} --out CACHE")


def _recognised(path: Path, tagger: Tagger | None) -> list[tuple[str, float]]:
    """What a model calls a sound; nothing, with a line, where it cannot be decoded."""
    if tagger is None:
        return []
    try:
        return tagger.tags(read_wave(path, tagger.sample_rate_hz))
    except BadAudio as error:
        print(printable(f"no tags for {path}: {error.reason}"), file=sys.stderr)
        return []


def _refuse_existing(root: Path, out: Path) -> None:
    if out.suffix.lower() != ".jsonl":
        raise UserError(f"--out {out}: hint: name a .jsonl file")
    if out.exists():
        raise UserError(f"{out}: exists already, and is never replaced; hint: --out another name, or edit that list")
    # A list of another name in the folder would be read instead of this one, or this one instead of it.
    there = [root / name for name in OWN_LISTS if (root / name).exists()]
    if out.name in OWN_LISTS and out.parent == root and there:
        raise UserError(f"{there[0]}: the folder has a list already; hint: --out another name, or edit that list")


def _line(row: dict) -> str:
    text = json.dumps(row, ensure_ascii=False)
    # Surrogates stand for bytes that are no UTF-8, and cannot be written as such.
    is_text = text.encode(errors="ignore").decode() == text
    return (text if is_text else json.dumps(row)) + "\n"


def read_words(path: Path) -> Sequence[str]:
    """The words of a file, one a line.

    Raises:
        UserError: it cannot be read, or holds fewer than two words.
    """
    try:
        words = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"--words {path}: {reason}; hint: name a text file in UTF-8 with one word a line") from error
    words = list(dict.fromkeys(word for word in words if word))
    if len(words) < 2:
        raise UserError(f"--words {path}: {len(words)} words; hint: write at least two, one a line, to choose between")
    return words
