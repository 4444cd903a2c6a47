"""What lies in a folder of sounds. Every command walks by this function, so that all of them see the same files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from segue.audio.sound import SUFFIXES
from segue.types import UserError, printable

_BESIDE = (".txt", ".json", ".jsonl", ".csv", ".tsv")  # captions and lists; what of them is used, is told elsewhere


@dataclass
class Found:
    """What a walk over a folder met. Hidden files and folders (`._song.wav`, `.git`) are not looked at.

    Attributes:
        sounds: files whose suffix is one of `SUFFIXES`, in order of their paths.
        beside: of each folder, the caption files and lists: name in small letters -> path.
        outside: links of sounds that lead out of the folder, and were not followed.
        others: files of no known kind.
        linked_folders: links to folders, which were not entered; empty where links are followed.
        repeated: folders that following links led to once more.
        dangling: links of sounds to nothing.
        unreadable: folders that may not be read.
    """

    sounds: list[Path] = field(default_factory=list)
    beside: dict[Path, dict[str, Path]] = field(default_factory=dict)
    outside: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    linked_folders: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)
    dangling: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)

    def notes(self) -> list[str]:
        """One line for each kind of thing that is left out, counted and named."""
        found = []
        if self.others:
            kinds = Counter(path.suffix.lower() or "without suffix" for path in self.others)
            listed = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common(8))
            found.append(f"{counted(self.others, 'file')} of other kinds left out: {listed}")
        if self.linked_folders:
            found.append(f"{counted(self.linked_folders, 'linked folder')} not followed; hint: --follow-links")
        if self.repeated:
            found.append(f"{counted(self.repeated, 'linked folder')} read under another name already")
        if self.dangling:
            found.append(
                f"{counted(self.dangling, 'dangling link')}: the file is elsewhere; hint: git annex get, or dvc pull"
            )
        if self.unreadable:
            found.append(f"{counted(self.unreadable, 'folder')} may not be read; hint: check the rights")
        return found


def counted(paths: Iterable[Path], what: str) -> str:
    """How many, and the first of them by name: "3 files (notes.md and 2 more)"."""
    paths = list(paths)
    more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
    return printable(f"{len(paths):,} {what}{'s' * (len(paths) > 1)} ({paths[0].name}{more})")


def walk(root: Path, follow_links: bool = False) -> Found:
    """Look through a folder and those in it.

    Args:
        follow_links: take sounds that links outside lead to, and enter linked folders, each once.

    Raises:
        UserError: no such folder.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; hint: name a folder that holds sounds")
    found = Found()
    inside = root.resolve()
    seen: set[str] = set()
    folders = [root]
    links: list[Path] = []  # followed last, so that what lies in the root is found in its own place
    # Real paths are remembered: a link back up would otherwise be walked for ever.
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        if os.path.realpath(folder) in seen:
            found.repeated.append(folder)
            continue
        seen.add(os.path.realpath(folder))
        # Sounds and other files are sorted in; folders wait for their turn.
        for entry in _entries(found, folder):
            path = folder / entry.name
            if not _is_folder(entry):
                _sort_in(found, path, inside, follow_links)
            elif not entry.is_symlink():
                folders.append(path)
            else:
                (links if follow_links else found.linked_folders).append(path)
    # The order of a directory depends on the disk; that of a data set must not.
    groups = (found.sounds, found.outside, found.others, found.dangling)
    for group in (*groups, found.linked_folders, found.repeated, found.unreadable):
        group.sort()
    return found


def _entries(found: Found, folder: Path) -> list[os.DirEntry]:
    """What stands in a folder, by name, without what is hidden."""
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError:
        found.unreadable.append(folder)
        return []
    return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _sort_in(found: Found, path: Path, inside: Path, follow_links: bool) -> None:
    is_sound = path.suffix.lower() in SUFFIXES
    # Dangling links come before the test for files, which they would fail without a reason.
    if is_sound and is_dangling(path):
        found.dangling.append(path)
    elif not is_file(path):
        found.others.append(path)
    elif is_sound:
        # A link out of the folder could bring in files that its owner never meant to share.
        is_followed = follow_links or not path.is_symlink() or is_inside(inside, path)
        (found.sounds if is_followed else found.outside).append(path)
    elif path.suffix.lower() in _BESIDE:
        found.beside.setdefault(path.parent, {})[path.name.lower()] = path
    else:
        found.others.append(path)


def is_file(path: Path) -> bool:
    """Whether there is a file of this name, also where the name is one that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_dangling(path: Path) -> bool:
    """Whether the path is a link to nothing, or to itself."""
    try:
        return isinstance(path, Path) and path.is_symlink() and not path.exists()
    except OSError:
        return True


def is_inside(root: Path, path: Path) -> bool:
    """Whether a path, its links followed, lies in a folder whose own links are followed already."""
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError, ValueError):  # a loop of links, or a name that no file can have
        return False
