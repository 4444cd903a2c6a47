"""A user's data: a folder with captions beside its sound files, a CSV, or a JSONL manifest, as a list of clips."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Literal

from segue.audio.folders import walk
from segue.audio.names import find_named, identities
from segue.audio.sound import SUFFIXES
from segue.data.clip import (
    MOST_LINE_BYTES,
    SPLITS,
    Clip,
    caption_from_name,
    caption_text,
    other_fields,
    refuse_control,
    row_captions,
)
from segue.data.tar_manifest import clips_of_tars
from segue.types import UserError

VALID_SHARE = 0.05
_ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")


def load_manifest(source: Path | str, captions: Literal["manifest", "filename", "none"] = "manifest") -> list[Clip]:
    """Read a data set, in a fixed order.

    Args:
        source: a folder of sound files (recursive) with a .txt of the same name beside each, where each non-empty line
            is one wording; or a folder that holds manifest.jsonl; or a .jsonl or .csv file with the columns path
            (relative to the manifest), caption (or captions, a list), id, split; further columns become fields; or
            WebDataset tars, shards/clips-{000000..000099}.tar, read in place (data/tar_manifest.py).
        captions: "filename" makes captions from file and folder names, where the data has none; "none" asks for none.

    Raises:
        UserError: one line that names the file, what is wrong with it, and the mend.
    """
    if captions not in ("manifest", "filename", "none"):
        raise UserError(f"--captions must be 'manifest' or 'filename', not {captions!r}")
    from_names = {"manifest": False, "filename": True, "none": None}[captions]
    if str(source).endswith(".tar"):
        clips = clips_of_tars(str(source), from_names)
        _refuse_duplicate_ids(source, clips)
        return _with_splits(clips)
    source = Path(source)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; mend: check the path")
    if source.is_dir():
        listed = source / "manifest.jsonl"
        clips = (
            _from_rows(listed, _jsonl_rows(listed), from_names) if listed.exists() else _from_folder(source, from_names)
        )
    elif source.suffix.lower() == ".jsonl":
        clips = _from_rows(source, _jsonl_rows(source), from_names)
    elif source.suffix.lower() == ".csv":
        clips = _from_rows(source, _csv_rows(source), from_names)
    elif source.suffix.lower() in _ARCHIVES:
        raise UserError(f"{source}: an archive; these are not unpacked here; mend: unpack it yourself, name the folder")
    else:
        raise UserError(f"{source}: not a folder, .jsonl or .csv; mend: name the folder of sounds or a manifest")
    if not clips:
        raise UserError(
            f"{source}: holds no sounds; mend: put {', '.join(SUFFIXES)} files there, or name another folder"
        )
    _refuse_duplicate_ids(source, clips)
    return _with_splits(clips)


def _from_folder(root: Path, from_names: bool) -> list[Clip]:
    inside = root.resolve()
    clips, bare = [], []
    found = walk(root)
    for path in found.outside:
        _refuse_outside(inside, path, str(path))
    relatives = [PurePosixPath(path.relative_to(root).as_posix()) for path in found.sounds]
    for path, relative, identity in zip(found.sounds, relatives, identities(relatives)):
        text = path.with_suffix(".txt")
        captions = _caption_lines(text) if from_names is False and text.exists() else ()
        if from_names:
            captions = _name_captions(path, relative)
        if not captions and from_names is not None:
            bare.append(path)
        clips.append(Clip(identity, path, captions, ""))
    if bare:
        others = f" and {len(bare) - 1} more" if len(bare) > 1 else ""
        raise UserError(
            f"{bare[0]}{others}: no caption file; mend: write {bare[0].with_suffix('.txt').name} beside it, "
            "or --captions filename to make captions from file names"
        )
    return clips


def _caption_lines(path: Path) -> tuple[str, ...]:
    lines = tuple(caption_text(f"{path}, line {number}", line) for number, line in _lines(path) if line.strip())
    if not lines:
        raise UserError(f"{path}: an empty caption; mend: write what the sound is")
    return lines


def _name_captions(path: Path, relative: PurePosixPath) -> tuple[str, ...]:
    caption = caption_from_name(relative)
    if not caption:
        raise UserError(f"{path}: its name holds no words for a caption; mend: rename it, or write a .txt beside it")
    return (caption,)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line, ends kept; never more than one line in memory.

    Raises:
        UserError: unreadable, no UTF-8, or a line of more than `MOST_LINE_BYTES`.
    """
    position = 0
    try:
        with path.open("rb") as file:
            for number in count(1):
                line = file.readline(MOST_LINE_BYTES + 1)
                if not line:
                    return
                if len(line) > MOST_LINE_BYTES:
                    raise UserError(
                        f"{path}, line {number}: longer than {MOST_LINE_BYTES:,} bytes; mend: one clip a line"
                    )
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                position += len(line)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {position + error.start}); mend: save it as UTF-8, "
            "e.g. iconv -f latin1 -t utf-8"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend: check the path and its rights") from error


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); mend: one JSON object a line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not a JSON object; mend: one object with path and caption a line")
        yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict]]:
    reader = csv.DictReader(line for _, line in _lines(path))
    try:
        if "path" not in (reader.fieldnames or ()):
            found = ", ".join(reader.fieldnames or ())[:200] or "none"
            raise UserError(f"{path}: no column 'path' (columns: {found}); mend: first line path,caption")
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{path}, line {reader.line_num}: {'more' if None in row else 'fewer'} cells than columns; "
                    "mend: put captions with commas in double quotes"
                )
            # An empty cell says nothing; for a caption it is refused below.
            yield reader.line_num, {k: v for k, v in row.items() if v != "" or k in ("path", "caption")}
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error}); mend: quote it as CSV asks") from error


def _from_rows(manifest: Path, rows: Iterator[tuple[int, dict]], from_names: bool) -> list[Clip]:
    root, inside = manifest.parent, manifest.parent.resolve()
    clips = []
    for number, row in rows:
        where = f"{manifest}, line {number}"
        name = row.get("path")
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise UserError(f"{where}: no path; mend: give the sound file's path relative to the manifest")
        if len(name) > 4096:
            raise UserError(f"{where}: a path of {len(name):,} characters; mend: give the sound file's path")
        refuse_control(where, "the path", name)
        path = find_named(root / name)
        _refuse_outside(inside, path, f"{where}: {name}")
        if not _is_file(path):
            raise UserError(f"{where}: {name} does not exist; mend: paths are relative to the manifest's folder")
        relative = PurePosixPath(path.resolve().relative_to(inside).as_posix())
        identity = row.get("id", identities([relative])[0])
        split = row.get("split") or ""
        if not isinstance(identity, (str, int)) or identity == "":
            raise UserError(f"{where}: id must be text, not {identity!r}; mend: a text that no other row has")
        refuse_control(where, "the id", str(identity))
        if split and split not in SPLITS:
            raise UserError(f"{where}: split must be train, valid or test, not {split!r}")
        has_captions = from_names is not None and {"caption", "captions"} & row.keys()
        captions = row_captions(where, row) if has_captions else ()
        if from_names and not captions:
            captions = _name_captions(path, relative)
        if not captions and from_names is not None:
            raise UserError(f"{where}: no caption; mend: add one, or --captions filename to make captions from names")
        clips.append(Clip(str(identity), path, captions, split, other_fields(row)))
    return clips


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _refuse_outside(inside: Path, path: Path, what: str) -> None:
    try:
        is_inside = path.resolve().is_relative_to(inside)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of symbolic links
        raise UserError(f"{what}: cannot be followed; mend: replace the link by the file") from error
    if not is_inside:
        raise UserError(f"{what} leads out of {inside}; mend: copy the file into the folder")


def _refuse_duplicate_ids(source: Path, clips: list[Clip]) -> None:
    first: dict[str, Clip] = {}
    for clip in clips:
        if clip.id in first:
            raise UserError(
                f"{source}: two clips have the id {clip.id!r} ({first[clip.id].path.name} and {clip.path.name}); "
                "mend: rename a file, or give each row an id of its own"
            )
        first[clip.id] = clip


def _with_splits(clips: list[Clip]) -> list[Clip]:
    """Fill in splits by a hash of the id, so that a clip keeps its split when others come and go. A set that names no
    split at all gets at least one validation clip, the one with the smallest hash."""

    def position(clip: Clip) -> float:
        return int.from_bytes(sha256(clip.id.encode()).digest()[:8], "big") / 2**64

    if not any(clip.split for clip in clips) and len(clips) > 1:
        cut = max(VALID_SHARE, min(map(position, clips)))
    else:
        cut = VALID_SHARE
    return [
        clip if clip.split else replace(clip, split="valid" if position(clip) <= cut else "train") for clip in clips
    ]
