"""Lists of sounds as rows: CSV and its kin, JSON lines, JSON arrays. data/columns.py tells what the columns mean."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

from segue.data.clip import MOST_LINE_BYTES
from segue.data.columns import roles_of
from segue.data.reading import Reading
from segue.data.texts import lines, opened
from segue.types import UserError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".psv")
_DELIMITERS = ",\t;|"
_CHUNK = 1 << 16  # characters
_GAP = re.compile(r"[\s,]*")
# Where the clips of a JSON object begin: WavCaps and AudioLDM write {"data": [{...}, ...]}.
_ARRAY = re.compile(r'\A\s*(?:\{.*?"[^"\n]{1,200}"\s*:\s*)?\[(?=\s*[{\]])', re.DOTALL)

# Number of the line or entry, and its row, or what is wrong with it.
Rows = Iterator[tuple[int, "dict | UserError"]]


def rows_of(path: Path, reading: Reading) -> Rows:
    """The rows of a list, one by one.

    Raises:
        UserError: the list as a whole cannot be read.
    """
    suffix = path.suffix.lower()
    # NeMo calls JSON lines .json: the first line tells.
    if suffix in (".jsonl", ".ndjson") or (suffix == ".json" and _is_json_lines(path, reading)):
        return _json_lines(path, reading)
    return _json_array(path, reading) if suffix == ".json" else _csv_rows(path, reading)


def _is_json_lines(path: Path, reading: Reading) -> bool:
    """Whether a .json holds one object a line, as NeMo writes its manifests."""
    # Not more than one line's limit: an array without line breaks may be gigabytes.
    with opened(path, reading.encoding) as file:
        line = next((line for line in iter(lambda: file.readline(MOST_LINE_BYTES), "") if line.strip()), "{}")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    # {"data": [{... on one line is the beginning of an array, not a row.
    return isinstance(row, dict) and (not row or roles_of(row, {}).names_sounds or not _ARRAY.match(line))


def _json_lines(path: Path, reading: Reading) -> Rows:
    for number, line in lines(path, reading.encoding):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, UserError(f"{where}: not JSON ({error}); hint: one JSON object a line")
            continue
        yield number, row if isinstance(row, dict) else _no_object(where)


def _no_object(where: str) -> UserError:
    return UserError(f"{where}: not a JSON object; hint: an object with path and caption for each clip")


def _json_array(path: Path, reading: Reading) -> Rows:
    """The objects of an array, decoded one by one: never more than one of them in memory."""
    with opened(path, reading.encoding) as file:
        # The array's opening bracket must come early; what stands before it may only be small.
        text = file.read(MOST_LINE_BYTES)
        start = _ARRAY.match(text)
        if start is None:
            raise UserError(f"{path}: no JSON list of clips; hint: a list of objects, or one object a line in .jsonl")
        elements = _elements(path, file, text[start.end() :])
        for number, row in enumerate(elements, 1):
            yield number, row if isinstance(row, dict) else _no_object(f"{path}, entry {number}")


def _elements(path: Path, file: TextIO, text: str) -> Iterator[object]:
    """What stands in an array up to its closing bracket, from behind its opening one on."""
    decoder = json.JSONDecoder()
    at = 0
    number = 1
    # The comma is treated as white space: decoding tells well enough what is wrong.
    while True:
        gap = _GAP.match(text, at)
        at = gap.end() if gap else at
        if at < len(text) and text[at] == "]":
            return
        try:
            element, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            # The failure may only mean that more text is needed; what reads no further is really no JSON.
            more = file.read(_CHUNK) if _is_cut(error, text) else ""
            if not more or len(text) - at > MOST_LINE_BYTES:
                longer = f"longer than {MOST_LINE_BYTES:,} bytes" if more else f"not JSON ({error})"
                raise UserError(f"{path}, entry {number}: {longer}; hint: one object for each clip") from None
            text, at = text[at:] + more, 0
            continue
        yield element
        number += 1
        # The text is shortened now and then, since cutting at each element would copy it each time.
        if at > _CHUNK:
            text, at = text[at:], 0


def _is_cut(error: Exception, text: str) -> bool:
    """Whether decoding failed because the text ends too early, rather than because it is no JSON."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    # Near the end of the text a number, a word or an escape may just be incomplete.
    return error.msg.startswith("Unterminated string") or len(text) - error.pos < 16


def _csv_rows(path: Path, reading: Reading) -> Rows:
    numbered = lines(path, reading.encoding)
    # Blank lines and Excel's line come before the header in some files.
    headers = ((n, line) for n, line in numbered if line.strip() and not line.lower().startswith("sep="))
    before, first = next(headers, (1, ""))  # Excel's "sep=;" is no header
    delimiter = _delimiter(first, reading)
    # The numbered lines go on where the header was taken from: a quoted cell may span several of them.
    table = csv.reader(chain([first], (line for _, line in numbered)), delimiter=delimiter, skipinitialspace=True)
    try:
        names = [name.strip() for name in next(table, [])]
        _check_names(path, names, reading)
        for cells in table:
            # Spreadsheets end in rows of empty cells.
            if any(cell.strip() for cell in cells):
                number = before - 1 + table.line_num
                yield number, _csv_row(f"{path}, line {number}", names, cells)
    except csv.Error as error:
        number = before - 1 + table.line_num
        raise UserError(f"{path}, line {number}: not CSV ({error}); hint: quote it as CSV asks") from error


def _delimiter(header: str, reading: Reading) -> str:
    """The sign that parts a header into columns that name sounds; the one that gives most columns, where several do."""

    def fits(sign: str) -> tuple[bool, int]:
        # Parted by the csv module itself, since a header may hold quoted delimiters.
        names = [name.strip() for name in next(csv.reader([header], delimiter=sign, skipinitialspace=True), [])]
        try:
            return roles_of(names, reading.columns).names_sounds, len(names)
        except UserError:
            return False, len(names)

    try:
        return max(_DELIMITERS, key=fits)
    except csv.Error:
        return ","


def _check_names(path: Path, names: list[str], reading: Reading) -> None:
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise UserError(f"{path}: two columns are named {twice[0]!r}; hint: rename one of them")
    try:
        roles = roles_of(names, reading.columns)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not roles.names_sounds:
        found = ", ".join(names)[:200] or "none"
        raise UserError(
            f"{path}: no column 'path' or the like (columns: {found}); hint: first line path,caption, or "
            "--column path=NAME"
        )


def _csv_row(where: str, names: list[str], cells: list[str]) -> dict | UserError:
    # Cells that are empty beyond the last column come from a trailing comma, and are harmless.
    extra = cells[len(names) :]
    if len(cells) < len(names) or any(extra):
        return UserError(
            f"{where}: {'more' if extra else 'fewer'} cells than columns; hint: put captions with commas in double "
            "quotes"
        )
    return {name: cell for name, cell in zip(names, cells) if name}
