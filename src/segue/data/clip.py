"""One clip of a data set, and what may be said of it: its caption and its other fields, wherever they stand."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from unicodedata import category, normalize

from segue.audio.sound import TOO_SHORT_SEC
from segue.types import UserError

SPLITS = ("train", "valid", "test")
MOST_LINE_BYTES = 1 << 20  # of a manifest or a caption file: longer ones are no captions but a mistake, or a trap
MOST_CAPTION_CHARACTERS = 4000
END_SLACK_SEC = 0.1  # a list rounds its times: what ends this little behind the file ends with it


@dataclass(frozen=True)
class Clip:
    """One sound of a data set.

    Attributes:
        id: unique in its set; by default the path inside the set without suffix.
        path: the sound file; inside a tar or a table, the member that stands in for it (tars.py, hf_datasets.py).
        captions: what it sounds like, one wording each; empty where captions are not asked for.
        split: "train", "valid" or "test"; "" where the list names none and none has been assigned yet (data/splits.py).
        fields: whatever else the manifest says of it.
        start_sec: where in its file the clip begins.
        length_sec: how long it is; None: to the end of the file.
    """

    id: str
    path: Path
    captions: tuple[str, ...]
    split: str
    fields: dict = field(default_factory=dict)
    start_sec: float = 0.0
    length_sec: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the clip is its whole file."""
        return self.start_sec == 0 and self.length_sec is None

    def seconds(self, file_sec: float) -> float:
        """How long the clip is in a file of `file_sec`; a stretch that ends just beyond the file ends with it."""
        rest = file_sec - self.start_sec
        return rest if self.length_sec is None else min(self.length_sec, rest)

    def stretch_problem(self, file_sec: float) -> str | None:
        """Why a file of `file_sec` cannot give this clip; None where it can."""
        if self.is_whole:
            return None
        end_sec = file_sec if self.length_sec is None else self.start_sec + self.length_sec
        if self.start_sec >= file_sec or end_sec > file_sec + END_SLACK_SEC:
            return (
                f"its stretch from {self.start_sec:g} to {end_sec:g} s lies outside the file of {file_sec:.2f} s "
                "(--column start= --column end= where the files are the excerpts already)"
            )
        if self.seconds(file_sec) < TOO_SHORT_SEC:
            return f"too short: a stretch of {1000 * self.seconds(file_sec):.1f} ms"
        return None


def caption_from_name(path: PurePosixPath) -> str:
    """A caption from a relative path: words of the file name, then those of its folder where they add any.

    Underscores, dashes and capitals part words; numbers go, note names (C4, F#3) stay. Empty where nothing is left.
    """
    # macOS writes accents apart from their letters: without this, words would part there.
    path = PurePosixPath(normalize("NFC", str(path)))
    words = words_of(path.stem)
    # Names such as "piano/piano C4" would say everything twice.
    folder = [w for w in words_of(path.parent.name) if w not in words] if path.parent.name else []
    return ", ".join(" ".join(part) for part in (words, folder) if part)


def words_of(name: str) -> list[str]:
    """The words of a name, in small letters; numbers go, note names stay."""
    words = []
    # CamelCase is parted first; # and digits stay with the letters before them, for note names.
    for word in re.findall(r"[^\W_]+#?\d*", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)):
        if re.fullmatch(r"[A-Ga-g](#|b)?-?\d", word):
            words.append(word[0].upper() + word[1:])
            continue
        word = word.strip("0123456789").lower()
        if word:
            words.append(word)
    return words


def caption_text(where: str, text: str) -> str:
    """White space made single.

    Raises:
        UserError: far too long, or holding what is no text.
    """
    if len(text) > MOST_CAPTION_CHARACTERS:
        raise UserError(
            f"{where}: a caption of {len(text):,} characters, up to {MOST_CAPTION_CHARACTERS:,} are read; hint: cut it"
        )
    # After white space has been made single: tabs and line ends are control characters too.
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
            raise UserError(f"{where}: {what} holds the control character {name}; hint: take it out")
