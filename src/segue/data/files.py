"""Files written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from segue.types import UserError


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to a temporary name beside `path`, then put it in place: a reader sees all of it or none.

    Raises:
        UserError: the disk is full, or the place cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises:
        UserError: something is in the way, or the place cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    """The one line for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: the disk is full; mend: free space and run the same command again, it goes on")
    return UserError(f"{path}: cannot be written ({error.strerror}); mend: name a folder that you may write to")
