"""What tells sounds and data sets apart: hashes of files' bytes, computed once each, and of a cache's rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from segue.progress import track

_BLOCK = 1 << 20
_known: dict[tuple, str] = {}


def content_hash(path: Path) -> str:
    """The sha256 of a file's bytes; hashed anew only where its size or time of change is another.

    Raises:
        OSError: it cannot be read.
    """
    about = path.stat()
    # Both times, since tools that copy or unpack set the first of them back.
    key = (path, about.st_size, getattr(about, "st_mtime_ns", 0), getattr(about, "st_ctime_ns", 0))
    if key not in _known:
        digest = sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        _known[key] = digest.hexdigest()
    return _known[key]


def content_hashes(paths: Sequence[Path], workers: int = 4) -> dict[Path, str]:
    """The hash of each file; "" for one that cannot be read."""

    def hashed(path: Path) -> str:
        try:
            return content_hash(path)
        except OSError:
            return ""

    unique = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(unique, track(pool.map(hashed, unique), len(unique), "hashing files", "files")))


def rows_digest(rows: Iterable[dict]) -> str:
    """A hash of what a cache holds, whatever its shards: ids, contents, stretches, splits and captions, in order, and
    the conditions of those that have some."""
    digest = sha256()
    for row in rows:
        described = [row["id"], row["sha256"], row["start_sec"], row["length_sec"], row["split"], row["captions"]]
        described += [row.get("variant"), *([row["conditions"]] if "conditions" in row else [])]
        digest.update(json.dumps(described, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:32]
