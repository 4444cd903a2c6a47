"""Models by name: a local folder as it is, or files fetched from the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segue.types import UserError, first_line


def model_folder(option: str, name: str, patterns: Sequence[str]) -> Path:
    """The folder of a model; of one on the hub, these files are fetched where they are not there yet.

    HF_HUB_OFFLINE=1 keeps to what was fetched before.

    Args:
        option: what the user gave the name to, for the error's line: "--codec".
        name: local folder, hub name, or NAME@REVISION.
        patterns: of the files that are wanted; nothing else is fetched.

    Raises:
        UserError: no such folder, and not to be had from the hub.
    """
    path = Path(name)
    if path.exists():
        return path
    try:
        return fetched_folder(name, patterns)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{option} {name}: no such folder, and not to be had from the hub ({first_line(error)}); "
            "give a name that segue knows, a hub name or a local folder"
        ) from error


def fetched_folder(name: str, patterns: Sequence[str]) -> Path:
    """The folder of a model on the hub, with the files that match `patterns`; fetched where they are not there yet.

    Args:
        name: hub name, or NAME@REVISION.
        patterns: of the files that are wanted.

    Raises:
        OSError: the hub cannot be reached, or has no such model.
        ValueError: it is no name of the hub.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns)))
