"""A clean list of what can be used of a data set: `segue data check --fix OUT.jsonl`."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from segue.data.clip import Clip
from segue.data.columns import Roles, roles_of
from segue.files import write_text
from segue.types import UserError


def write_clean_list(out: Path, clips: Sequence[Clip], root: Path | None) -> str:
    """Write clips, with their splits, as a JSONL list; return the words of a command that reads it.

    Paths are relative to the list where it lies in or above the set's root, else to the root, which then must be named.

    Args:
        root: the folder that all clips lie in.

    Raises:
        UserError: no clip, sounds that are no files of their own (in tars or tables), or `out` cannot be written.
    """
    if not clips:
        raise UserError(f"--fix {out}: nothing can be used; hint: see the files above")
    if out.suffix.lower() != ".jsonl":
        raise UserError(f"--fix {out}: hint: name a .jsonl file")
    if root is None or not all(isinstance(clip.path, Path) for clip in clips):
        raise UserError(f"--fix {out}: lists name files, not members of tars or tables; hint: encode with --skip-bad")
    # The list's own folder is the base that survives moving list and sounds together.
    here = Path(os.path.abspath(out.parent))
    base = here if Path(os.path.abspath(root)).is_relative_to(here) else Path(os.path.abspath(root))
    rows = [_row(clip, base) for clip in clips]
    write_text(out, "".join(_line(row) for row in rows))
    named = "" if base == here else f" --root {shlex.quote(str(root))}"
    return f"segue encode {shlex.quote(str(out))}{named}"


def _line(row: dict) -> str:
    text = json.dumps(row, ensure_ascii=False)
    # Surrogates stand for bytes that are no UTF-8, and cannot be written as such.
    is_text = text.isprintable() or text.encode(errors="ignore").decode() == text
    return (text if is_text else json.dumps(row)) + "\n"  # a name that is not UTF-8 is escaped


def _row(clip: Clip, base: Path) -> dict:
    path = os.path.relpath(os.path.abspath(clip.path), base)
    row: dict = {"path": path, "captions": list(clip.captions), "id": clip.id, "split": clip.split}
    if not clip.captions:
        del row["captions"]
    if not clip.is_whole:
        # As start and end, which every list reader takes, rather than as our own length.
        row["start"] = clip.start_sec
        if clip.length_sec is not None:
            row["end"] = clip.start_sec + clip.length_sec
    # A field that would be taken for one of ours, such as the start that --column start= passed over, keeps its value
    # under another name.
    return row | {_harmless(name, row): value for name, value in clip.fields.items()}


def _harmless(name: str, row: dict) -> str:
    meant: Roles = roles_of((*row, name), {})
    return f"{name} (field)" if name in row or name in meant.used() else name
