"""How a data set is to be read, and what reading it found."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from segue.audio.folders import is_file
from segue.data.clip import Clip
from segue.types import UserError, printable

CAPTIONS = ("manifest", "filename", "none")
ROLES = ("path", "caption", "id", "split", "start", "end", "duration")


@dataclass(frozen=True)
class Reading:
    """The options of every command that reads a data set.

    Attributes:
        captions: where captions come from. "manifest": the list, or files beside the sounds; "filename": file and
            folder names; "none": no captions are needed, and none are read.
        root: the folder that a list's paths are relative to and may not leave; default: the list's own folder.
        follow_links: follow linked folders, and links that lead out of the root (sets of git-annex or DVC).
        columns: role -> name of the column that has it (several captions with commas; "" for none), where the habits
            of data/columns.py do not tell.
        encoding: of lists and caption files that are not UTF-8.
    """

    captions: str = "manifest"
    root: Path | None = None
    follow_links: bool = False
    columns: dict[str, str] = field(default_factory=dict)
    encoding: str | None = None

    @property
    def splits_by_content(self) -> bool:
        """Whether splits that the source names are passed over: --column split=."""
        return self.columns.get("split") == ""

    def __post_init__(self) -> None:
        if self.captions not in CAPTIONS:
            raise UserError(f"--captions must be 'manifest', 'filename' or 'none', not {self.captions!r}")
        if self.root is not None and not self.root.is_dir():
            raise UserError(f"--root {self.root}: no such folder; hint: name the folder that the list's paths start in")
        unknown = [role for role in self.columns if role not in ROLES]
        if unknown:
            raise UserError(f"--column {unknown[0]}=...: no such role; hint: one of {', '.join(ROLES)}")


@dataclass(frozen=True)
class DataSource:
    """A data set's place together with how it is to be read; functions that take a source hand it on as a whole.

    Attributes:
        name: see `manifest.read_listing`.
    """

    name: str
    reading: Reading

    def __str__(self) -> str:
        return self.name


def columns_from(options: list[str]) -> dict[str, str]:
    """`--column ROLE=NAME` options as role -> name.

    Raises:
        UserError: one is not of that form.
    """
    columns = {}
    for option in options:
        role, equals, name = option.partition("=")
        if not equals:
            raise UserError(f"--column {option}: hint: write it as ROLE=NAME, for example --column caption=description")
        columns[role.strip()] = name
    return columns


@dataclass
class Listing:
    """What a source holds.

    Attributes:
        clips: what can be tried, in a fixed order.
        bad_rows: (where, complaint) of each entry that gives no clip: malformed, without a caption, out of the root.
        missing: complaints about clips whose file is not there; they are among `clips`, and fail when they are read.
        notes: what was left out by rule, counted and named, one line each.
        root: the folder that all paths lie in, where there is one.
    """

    clips: list[Clip] = field(default_factory=list)
    bad_rows: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    root: Path | None = None

    def without_faults(self) -> list[Clip]:
        """The clips whose files are there; what is left out is printed on stderr."""
        for complaint in [words for _, words in self.bad_rows] + self.missing:
            print(printable(f"left out {complaint}"), file=sys.stderr)
        return [clip for clip in self.clips if not isinstance(clip.path, Path) or is_file(clip.path)]

    def refuse_faults(self, hint: str = "") -> None:
        """
        Args:
            hint: what else the command at hand can do about them.

        Raises:
            UserError: an entry gives no clip, or a file is not there; the first of them, and how many more.
        """
        complaints = [complaint for _, complaint in self.bad_rows] + self.missing
        if complaints:
            more = f" ({len(complaints) - 1:,} more entries have faults)" if len(complaints) > 1 else ""
            raise UserError(complaints[0] + more + hint)
