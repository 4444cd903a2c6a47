"""What `segue codec ship` and `segue teacher ship` read from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from segue.types import UserError


def measured_and_listed(measure_on: Sequence[str], sources: Path) -> tuple[dict[str, Path], list[dict]]:
    """The folders of --measure NAME=FOLDER by name, and the JSON list of --sources.

    Raises:
        UserError: a pair without name or folder, or a file that is no JSON.
    """
    pairs = [text.partition("=") for text in measure_on]
    if any(not name or not folder for name, _, folder in pairs):
        raise UserError("--measure wants NAME=FOLDER; mend: for example --measure notes=runs/demo-set")
    try:
        listed = json.loads(sources.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{sources}: not a readable JSON file ({error}); mend: a list of objects") from error
    return {name: Path(folder) for name, _, folder in pairs}, listed
