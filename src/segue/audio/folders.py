"""What lies in a folder of sounds. Every command walks by this function, so that all of them see the same files."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from segue.audio.sound import SUFFIXES
from segue.types import UserError


@dataclass(frozen=True)
class Found:
    """What a walk over a folder met; hidden files and folders (`._song.wav`, `.git`) are not looked at.

    Attributes:
        sounds: files whose suffix is one of `SUFFIXES`, in order of their paths.
        outside: links to sounds that lead out of the folder; empty where links are followed.
        linked_folders: links to folders, which were not entered; empty where links are followed.
        dangling: links that lead nowhere.
        others: suffix -> number of files with it.
    """

    sounds: list[Path] = field(default_factory=list)
    outside: list[Path] = field(default_factory=list)
    linked_folders: list[Path] = field(default_factory=list)
    dangling: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def walk(root: Path, follow_links: bool = False) -> Found:
    """Walk over a folder and the folders in it.

    Args:
        follow_links: take sounds that links outside lead to, and enter linked folders, each once.

    Raises:
        UserError: no such folder, or one that cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; hint: name a folder that holds sounds")
    found, entered = Found(), set()
    inside = root.resolve()

    def stop(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); hint: check its rights") from error

    for place, folders, files in os.walk(root, followlinks=follow_links, onerror=stop):
        about = os.stat(place)
        if (about.st_dev, about.st_ino) in entered:  # a link to a folder above
            folders.clear()
            continue
        entered.add((about.st_dev, about.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if not follow_links and (Path(place) / name).is_symlink():
                found.linked_folders.append(Path(place) / name)
        for name in files:
            if not name.startswith("."):
                _sort_in(Path(place) / name, inside, follow_links, found)
    for paths in (found.sounds, found.outside, found.linked_folders, found.dangling):
        paths.sort()
    return found


def _sort_in(path: Path, inside: Path, follow_links: bool, found: Found) -> None:
    if not path.is_file():
        found.dangling.append(path)
    elif path.suffix.lower() not in SUFFIXES:
        found.others[path.suffix.lower()] += 1
    elif follow_links or not path.is_symlink() or path.resolve().is_relative_to(inside):
        found.sounds.append(path)
    else:
        found.outside.append(path)
