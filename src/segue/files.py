"""Files: written whole or not at all (a kill or a full disk leaves the old state or the new one), and hashed."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from segue.types import UserError

MOST_NAME_BYTES = 255  # of a file's name, on most file systems


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, ending in .tmp; what is written there takes its place when the block ends well.

    Raises:
        UserError: the disk is full, or the place cannot be written.
    """
    # The process's number keeps two that write the same file out of each other's temporary one.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    if len(os.fsencode(temporary.name)) > MOST_NAME_BYTES:
        short = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        temporary = path.with_name(f"{short}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all; see `replacing`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))  # names of files need not be text


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises:
        UserError: something is in the way, or the place cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def sync(path: Path) -> None:
    """Force a file or folder to disk, so that a rename after it cannot overtake its contents."""
    if os.name == "nt" and path.is_dir():  # Windows syncs files alone, and those that are open to be written
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(files: Sequence[Path]) -> str:
    """The first 16 hex digits of the hash of files' contents, one after the other: enough to tell weights apart."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            while block := handle.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def cannot_write(path: Path, error: OSError) -> UserError:
    """The one line for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: the disk is full; hint: free space and run the same command again, it goes on")
    return UserError(f"{path}: cannot be written ({error.strerror}); hint: name a folder that you may write to")
