"""One clip of a data set, and what may be said of it: its caption and its other fields, wherever they stand."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from unicodedata import category

from segue.types import UserError

SPLITS = ("train", "valid", "test")
MOST_LINE_BYTES = 1 << 20  # of a manifest or a caption file: longer ones are no captions but a mistake, or a trap
MOST_CAPTION_CHARACTERS = 4000
_OURS = ("path", "caption", "captions", "id", "split")


@dataclass(frozen=True)
class Clip:
    """One sound of a data set.

    Attributes:
        id: unique in its set; by default the path inside the set without suffix.
        path: the sound file; inside a tar, the member that stands in for it (data/tars.py).
        captions: what it sounds like, at least one wording.
        split: "train", "valid" or "test".
        fields: whatever else the manifest says of it.
    """

    id: str
    path: Path
    captions: tuple[str, ...]
    split: str
    fields: dict = field(default_factory=dict)


def caption_from_name(path: PurePosixPath) -> str:
    """A caption from a relative path: words of the file name, then those of its folder where they add any.

    Underscores, dashes and capitals part words; numbers go, note names (C4, F#3) stay. Empty where nothing is left.
    """
    words = _words_of(path.stem)
    folder = [w for w in _words_of(path.parent.name) if w not in words] if path.parent.name else []
    return ", ".join(" ".join(part) for part in (words, folder) if part)


def _words_of(name: str) -> list[str]:
    words = []
    for word in re.findall(r"[^\W_]+#?\d*", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)):
        if re.fullmatch(r"[A-Ga-g](#|b)?-?\d", word):
            words.append(word[0].upper() + word[1:])
            continue
        word = word.strip("0123456789").lower()
        if word:
            words.append(word)
    return words


def other_fields(row: dict) -> dict:
    """Whatever a row says beside what is ours."""
    return {k: v for k, v in row.items() if k not in _OURS}


def row_captions(where: str, row: dict) -> tuple[str, ...]:
    """The captions of a row that has some.

    Raises:
        UserError: no text, or an empty one.
    """
    captions = row.get("captions", row.get("caption"))
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
        raise UserError(f"{where}: caption must be text (or captions a list of texts); mend: quote it")
    cleaned = tuple(caption_text(where, c) for c in captions)
    if not cleaned or not all(cleaned):
        raise UserError(f"{where}: an empty caption; mend: write what the sound is")
    return cleaned


def caption_text(where: str, text: str) -> str:
    """White space made single.

    Raises:
        UserError: far too long, or holding what is no text.
    """
    if len(text) > MOST_CAPTION_CHARACTERS:
        raise UserError(
            f"{where}: a caption of {len(text):,} characters, up to {MOST_CAPTION_CHARACTERS:,} are read; mend: cut it"
        )
    refuse_control(where, "the caption", cleaned := " ".join(text.split()))
    return cleaned


def refuse_control(where: str, what: str, text: str) -> None:
    """
    Raises:
        UserError: `text` holds a control character.
    """
    for character in text:
        if category(character) in ("Cc", "Cs"):
            name = f"U+{ord(character):04X}"
            raise UserError(f"{where}: {what} holds the control character {name}; mend: take it out")
