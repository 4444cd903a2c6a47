"""Names of files as ids, and files by a name that was written another way.

A name on a disk is a row of bytes, which need not be text; and text with accents is written in two ways, composed (NFC)
and decomposed (NFD), which look alike: macOS gives the one, most lists hold the other.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path, PurePath
from unicodedata import normalize

from segue.types import printable


def identities(relatives: Sequence[PurePath]) -> list[str]:
    """Ids of the files of a folder: their paths without suffix, printable and composed, each once.

    A file keeps its id when others come or go, unless another one's name differs from its own by writing or by its
    suffix alone: spear.ogg and spear.wav keep their suffixes.
    """
    bare = Counter(relative.with_suffix("") for relative in relatives)
    named = [relative if bare[relative.with_suffix("")] > 1 else relative.with_suffix("") for relative in relatives]
    # Two names that look alike are told apart by a hash of their bytes.
    raw = [name.as_posix() for name in named]
    plain = [printable(normalize("NFC", name)) for name in raw]
    written: dict[str, set[str]] = {}
    for name, identity in zip(raw, plain):
        written.setdefault(identity, set()).add(name)
    return [
        identity if name == identity or len(written[identity]) == 1 else f"{identity}~{_hash(name)}"
        for name, identity in zip(raw, plain)
    ]


def find_named(path: Path) -> Path:
    """The file that a list means: the path itself, or what lies there under the same name written another way."""
    if _exists(path) or path == path.parent:
        return path
    # Folders may be written another way as well, so that the parent is looked for first.
    parent = find_named(path.parent)
    wanted = normalize("NFC", path.name)
    try:
        # Sorted, since two names may differ from the list's one: every machine then takes the same.
        names = sorted(name for name in os.listdir(parent) if normalize("NFC", name) == wanted)
    except OSError:
        names = []
    return parent / names[0] if names else path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or holds what no name may
        return False


def _hash(name: str) -> str:
    return sha256(os.fsencode(name)).hexdigest()[:8]
