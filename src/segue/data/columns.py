"""What the columns of a list mean: the names that data sets have in use, and what a row says by them."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from segue.data.clip import SPLITS, caption_text, refuse_control
from segue.types import UserError

# role -> the names that it goes by, the likeliest first. Names are compared in small letters, blanks and dashes as _.
_PATH = (
    *("path", "file_name", "filename", "file", "file_path", "filepath", "audio_filepath", "audio_file_path"),
    *("audio_path", "audio_file", "audio", "wav", "wav_path", "sound", "sound_path", "location", "fname"),
)
_CAPTION = (
    "captions",
    "caption",
    "text",
    "description",
    "prompt",
    "sentence",
    "raw_text",
    "transcription",
    "transcript",
)
_START = (
    *("start", "start_s", "start_sec", "start_second", "start_seconds", "start_time", "starttime", "start_ms"),
    *("segment_start", "start_offset", "begin", "begin_time", "onset"),
)
_END = (
    *("end", "end_s", "end_sec", "end_second", "end_seconds", "end_time", "endtime", "end_ms"),
    *("segment_end", "end_offset", "stop"),
)
_DURATION = ("duration", "duration_s", "duration_sec", "duration_seconds", "duration_ms")
# A name without folder and suffix, by which the file is looked up: MusicCaps, AudioCaps, WavCaps.
_STEM = ("ytid", "youtube_id", "audiocap_id")
_VIDEO = ("ytid", "youtube_id")
_NUMBERED = re.compile(r"(caption|text|description|prompt)s?_?\d+")
_SPLIT_NAMES = {
    "training": "train",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "development": "train",  # as Clotho and DCASE call what is trained on
    "testing": "test",
    "evaluation": "test",
    "eval": "test",
} | {name: name for name in SPLITS}
_AUDIOCAPS_SEC = 10.0


@dataclass(frozen=True)
class Roles:
    """Which columns of a list mean what; None and () where none does."""

    path: str | None
    stems: tuple[str, ...]
    captions: tuple[str, ...]
    id: str | None
    split: str | None
    start: str | None
    end: str | None
    duration: str | None
    of_video: bool

    @property
    def names_sounds(self) -> bool:
        """Whether a row can say which sound it is about."""
        return self.path is not None or bool(self.stems)

    def used(self) -> set[str]:
        """The columns that are not fields."""
        named = {self.path, self.id, self.split, *self.captions}
        stretch = {self.start, self.end, self.duration if self.start else None}
        return {column for column in named | stretch if column is not None}


@dataclass(frozen=True)
class Row:
    """What one row of a list says.

    Attributes:
        path: of the sound, as it stands there; None where the row gives stems instead.
        stems: names without suffix that the sound's file may have.
        captions: its wordings; None where it has no column for them.
        id, split: "" where it says nothing.
        start_sec, length_sec: the stretch of the file; None: from its beginning, to its end.
        of_video: the stretch counts from the start of a video, of which the file may be that stretch already.
        fields: whatever else stands there.
    """

    path: str | None
    stems: tuple[str, ...]
    captions: tuple[str, ...] | None
    id: str
    split: str
    start_sec: float
    length_sec: float | None
    of_video: bool
    fields: dict


def plain(name: str) -> str:
    """A column's name as habits are compared."""
    return re.sub(r"[\s\-]+", "_", name.strip().lower())


def roles_of(names: Iterable[str], chosen: dict[str, str]) -> Roles:
    """The roles of these columns.

    Args:
        chosen: role -> column, or columns with commas, or "" for none; before any habit.

    Raises:
        UserError: a chosen column is not there.
    """
    return _roles_of(tuple(names), tuple(sorted(chosen.items())))


@lru_cache(maxsize=256)
def _roles_of(names: tuple[str, ...], chosen: tuple[tuple[str, str], ...]) -> Roles:
    # The first of two columns that look alike wins: the order of the list is its owner's.
    by_plain: dict[str, str] = {}
    for name in names:
        by_plain.setdefault(plain(name), name)
    wanted = {role: [part for part in text.split(",") if part.strip()] for role, text in chosen}

    def all_of(role: str, habits: Iterable[str]) -> list[str]:
        habits = [plain(name) for name in wanted[role]] if role in wanted else habits
        return [by_plain[name] for name in habits if name in by_plain]

    def first_of(role: str, habits: Iterable[str]) -> str | None:
        return next(iter(all_of(role, habits)), None)

    # Columns that were named must exist.
    for role, asked in wanted.items():
        lacking = [name for name in asked if plain(name) not in by_plain]
        if lacking:
            found = ", ".join(names)[:200] or "none"
            raise UserError(f"no column {lacking[0]!r}, which --column {role}= names (columns: {found})")
    # The others by their usual names; "offset" is a start or an end, whichever its neighbours leave.
    path = first_of("path", _PATH)
    start = first_of("start", _START)
    # "onset, offset" are a start and an end, "offset, duration" a start and a length.
    ends = [*_END, "offset"] if start is not None and plain(start) == "onset" else _END
    end = first_of("end", ends)
    if start is None and end is None:
        start = first_of("start", ["offset"])
    # A bare id names the file only where nothing else does.
    stems = () if path is not None else tuple(all_of("", _STEM)) or tuple(all_of("", ["id"]))
    return Roles(
        path=path,
        stems=stems,
        captions=_caption_columns(wanted, by_plain),
        id=first_of("id", ["id"]),
        split=first_of("split", ["split"]),
        start=start,
        end=end,
        duration=first_of("duration", _DURATION),
        of_video=any(name in by_plain for name in _VIDEO),
    )


def _caption_columns(wanted: dict[str, list[str]], by_plain: dict[str, str]) -> tuple[str, ...]:
    if "caption" in wanted:
        return tuple(by_plain[plain(name)] for name in wanted["caption"])
    # One column of a usual name is enough; numbered ones are taken together, where there is none.
    for name in _CAPTION:
        if name in by_plain:
            return (by_plain[name],)
    return tuple(column for name, column in by_plain.items() if _NUMBERED.fullmatch(name))


def parse_row(where: str, row: dict, chosen: dict[str, str], captions: bool = True) -> Row:
    """What a row says.

    Args:
        where: file and line, for complaints.
        chosen: see `roles_of`.
        captions: whether its captions are wanted.

    Raises:
        UserError: a value that is not what its column should hold.
    """
    try:
        roles = roles_of([name for name in row if isinstance(name, str)], chosen)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    start_sec, length_sec = _stretch(where, row, roles)
    used = roles.used()
    return Row(
        path=_path(where, row, roles),
        stems=tuple(str(row[c]) for c in roles.stems if isinstance(row[c], (str, int)) and str(row[c]).strip()),
        captions=_captions(where, row, roles) if captions else None,
        id=_identity(where, row, roles),
        split=_split(where, row, roles),
        start_sec=start_sec,
        length_sec=length_sec,
        of_video=roles.of_video,
        fields={name: value for name, value in row.items() if name not in used and value != ""},
    )


def captions_of(where: str, row: dict, chosen: dict[str, str]) -> tuple[str, ...]:
    """The captions of an object that describes one sound, such as a .json beside it; () where it has none.

    Raises:
        UserError: a caption that is no text, or empty.
    """
    return _captions(where, row, roles_of(row, chosen)) or ()


def _path(where: str, row: dict, roles: Roles) -> str | None:
    if roles.path is None:
        return None
    path = row[roles.path]
    if isinstance(path, dict):  # as the datasets library writes an audio cell
        path = path.get("path")
    # A NUL cannot be in a path; the operating system's own complaint would be a ValueError.
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise UserError(f"{where}: no path; hint: give the sound file's path relative to the list")
    # Longer than any system allows: a caption in the wrong column, by all odds.
    if len(path) > 4096:
        raise UserError(f"{where}: a path of {len(path):,} characters; hint: give the sound file's path")
    return path


def _captions(where: str, row: dict, roles: Roles) -> tuple[str, ...] | None:
    """The wordings of a row; None where it has no caption column, or nothing in an optional one."""
    if not roles.captions:
        return None
    values: list = []
    for column in roles.captions:
        value = _as_list(row[column])
        values += value if isinstance(value, list) else [value]
    # Null captions are absent, not faulty: a file beside the sound may have them.
    if values and all(value is None for value in values):
        return None
    if len(roles.captions) > 1:  # caption_1 to caption_5: some rows have fewer
        values = [value for value in values if value not in (None, "")]
    if not all(isinstance(value, str) for value in values):
        raise UserError(f"{where}: caption must be text (or captions a list of texts); hint: quote it")
    cleaned = tuple(caption_text(where, value) for value in values)
    if not cleaned or not all(cleaned):
        raise UserError(f"{where}: an empty caption; hint: write what the sound is")
    return cleaned


def _as_list(value):
    """A cell that holds a list of texts, as JSON or as Python prints it."""
    if not (isinstance(value, str) and value.startswith("[") and value.endswith("]")):
        return value
    # JSON first, as most lists are written; literal_eval takes Python's quotes and runs nothing.
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(found, list) and found and all(isinstance(part, str) for part in found):
            return found
    return value


def _identity(where: str, row: dict, roles: Roles) -> str:
    value = None if roles.id is None else row[roles.id]
    if value is None or value == "":
        return ""
    if not isinstance(value, (str, int)):
        raise UserError(f"{where}: id must be text, not {value!r}; hint: a text that no other row has")
    refuse_control(where, "the id", str(value))
    return str(value)


def _split(where: str, row: dict, roles: Roles) -> str:
    value = "" if roles.split is None else row[roles.split]
    if value is None or value == "":
        return ""
    name = split_named(value)
    if name is None:
        raise UserError(f"{where}: split must be train, valid or test, not {value!r}")
    return name


def split_named(value) -> str | None:
    """The split that a name means, such as "validation" or "dev"; None where it means none."""
    return _SPLIT_NAMES.get(plain(value)) if isinstance(value, str) else None


def _stretch(where: str, row: dict, roles: Roles) -> tuple[float, float | None]:
    """Start and length of a row's part of its file."""
    start = _seconds(where, row, roles.start)
    end = _seconds(where, row, roles.end)
    length = _seconds(where, row, roles.duration) if roles.start is not None else None
    # Without any time the row means its whole file, and a duration alone is only a description.
    if start is None and end is None:
        return 0.0, None
    if end is not None:
        length = end - (start or 0.0)
    elif length is None and roles.of_video:
        length = _AUDIOCAPS_SEC  # AudioCaps gives the start alone
    if length is not None and not length > 0:
        raise UserError(
            f"{where}: a stretch from {start or 0:g} s that ends at {(start or 0) + length:g} s; hint: give the end "
            "in seconds, after the start"
        )
    return start or 0.0, length


def _seconds(where: str, row: dict, column: str | None) -> float | None:
    """A time in seconds: a number, or [hours:]minutes:seconds."""
    value = None if column is None else row[column]
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        # True is 1 second to float().
        if isinstance(value, bool):
            raise ValueError
        # "1:30" and "0:01:30" are in use in lists that people write.
        parts = [float(part) for part in str(value).strip().split(":")]
        seconds = sum(part * 60.0**power for power, part in enumerate(reversed(parts)))
        if len(parts) > 3 or not math.isfinite(seconds) or min(parts) < 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise UserError(
            f"{where}: {column} must be a time in seconds from 0 on, not {str(value)[:40]!r}; hint: if it means "
            "something else, add --column start= --column end="
        ) from None
    return seconds / 1000 if plain(column or "").endswith("_ms") else seconds
