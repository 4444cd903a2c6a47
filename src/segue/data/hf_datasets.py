"""Sets of the datasets library: parquet files, folders of save_to_disk, and sets of the hub. Sounds are read in place.

A cell of audio is {bytes, path}: the bytes of a sound file, which our own reader decodes, or the path of one.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path, PurePosixPath
from threading import Lock
from types import SimpleNamespace
from typing import IO, Any, cast

from segue.data.clip import Clip, caption_from_name
from segue.data.columns import parse_row, plain, roles_of, split_named
from segue.data.reading import Listing, Reading
from segue.data.rows import Places
from segue.types import UserError, first_line, import_extra, printable

HUB = "hf:"
MOST_GROUP_BYTES = 1 << 31  # of a parquet row group's sounds, decoded: one is held in memory
_ROWS_AT_ONCE = 1000
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")


def is_set(source: Path | str) -> bool:
    """Whether a source is a set of the datasets library, by its name or by what the folder holds."""
    if str(source).startswith(HUB) or str(source).lower().endswith(".parquet"):
        return True
    # A manifest says what the folder's owner means, even where parquet files lie beside it.
    folder = Path(source)
    if not folder.is_dir() or (folder / "manifest.jsonl").exists():
        return False
    return _is_saved(folder) or (folder / "dataset_dict.json").is_file() or bool(_parquet_files(folder))


def clips_of_set(source: str, reading: Reading) -> Listing:
    """The clips of such a set.

    Raises:
        UserError: it cannot be read or fetched, a library is missing, or it has no column of sounds.
    """
    path = Path(source)
    places = None
    if not source.startswith(HUB):
        if not path.exists():
            raise UserError(f"{source}: no such file or folder; hint: check the path")
        # Only paths inside the table need a root; sets of the hub bring their sounds along.
        places = Places(reading.root or (path if path.is_dir() else path.parent), reading.follow_links)
    listing = Listing(root=places.root if places else None)
    for table in _tables(source):
        _read_table(table, reading, listing, places)
    return listing


class Table:
    """Rows of one split, read in place.

    Attributes:
        name: for messages and ids.
        split: what the name says of it; "" where nothing.
        schema: of arrow: the columns and their types.
    """

    def __init__(self, name: str, split: str, schema) -> None:
        self.name = name
        self.split = split
        self.schema = schema

    def rows(self, columns: list[str]) -> Iterator[dict]:
        """These columns of every row, in order."""
        raise NotImplementedError

    def paths(self, column: str) -> Iterator[str | None]:
        """What the audio cells of a column give as path; their bytes are not read."""
        raise NotImplementedError

    def cell(self, column: str, row: int):
        """One cell."""
        raise NotImplementedError


class ArrowTable(Table):
    """An arrow table, mapped from disk."""

    def __init__(self, name: str, split: str, table) -> None:
        super().__init__(name, split, table.schema)
        self._table = table

    def rows(self, columns: list[str]) -> Iterator[dict]:
        # Without columns arrow yields no batches, but each row must still be counted.
        if not columns:
            yield from ({} for _ in range(self._table.num_rows))
            return
        for batch in self._table.select(columns).to_batches(max_chunksize=_ROWS_AT_ONCE):
            yield from batch.to_pylist()

    def paths(self, column: str) -> Iterator[str | None]:
        for chunk in self._table.column(column).chunks:
            yield from chunk.field("path").to_pylist()

    def cell(self, column: str, row: int):
        return self._table.column(column)[row].as_py()


class ParquetTable(Table):
    """A parquet file. The sounds of one row group are held, since a group is the least that can be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _ArrowErrors(path):
            self._file = import_extra("pyarrow.parquet", "datasets").ParquetFile(path)
            schema = self._file.schema_arrow
        # The hub's habit: train-00000-of-00004.parquet, or a folder for each split.
        split = split_named(re.split(r"[-.]", path.name)[0]) or split_named(path.parent.name) or ""
        super().__init__(path.stem, split, schema)
        groups = [self._file.metadata.row_group(i) for i in range(self._file.num_row_groups)]
        self._ends = []
        total = 0
        for group in groups:
            total += group.num_rows
            self._ends.append(total)
            if group.total_byte_size > MOST_GROUP_BYTES or group.num_rows < 0:
                raise UserError(
                    f"{path}: a row group of {group.total_byte_size:,} bytes, up to {MOST_GROUP_BYTES:,} are read; "
                    "hint: write it anew with row_group_size=100"
                )
        self._lock = Lock()
        self._held: tuple[int, str, Any] | None = None

    def rows(self, columns: list[str]) -> Iterator[dict]:
        if not columns:
            yield from ({} for _ in range(self._ends[-1] if self._ends else 0))
            return
        with _ArrowErrors(self._path):
            for batch in self._file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                yield from batch.to_pylist()

    def paths(self, column: str) -> Iterator[str | None]:
        with _ArrowErrors(self._path):
            # The path alone of a struct column: parquet stores it apart from the bytes.
            for batch in self._file.iter_batches(_ROWS_AT_ONCE, columns=[f"{column}.path"]):
                yield from batch.column(0).field("path").to_pylist()

    def cell(self, column: str, row: int):
        group = next(i for i, end in enumerate(self._ends) if row < end)
        with self._lock, _ArrowErrors(self._path):
            if self._held is None or self._held[:2] != (group, column):
                # Two groups at once could be twice what was promised in memory.
                self._held = None  # let the last one go first
                self._held = (group, column, self._file.read_row_group(group, columns=[column]).column(0))
            first = self._ends[group - 1] if group else 0
            return self._held[2][row - first].as_py()


@dataclass(frozen=True)
class TableSound:
    """A sound in a cell; it stands in for a Path where sound is read.

    Attributes:
        table, column, row: where it is.
        name: what its file was called.
    """

    table: Table
    column: str
    row: int
    name: str

    @property
    def suffix(self) -> str:
        """As of a Path."""
        return PurePosixPath(self.name).suffix

    def __str__(self) -> str:
        return f"{self.table.name}, row {self.row}" + (f" ({self.name})" if self.name else "")

    def stat(self) -> SimpleNamespace:
        """As of a Path; its size alone."""
        return SimpleNamespace(st_size=len(self._bytes()))

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The sound file's bytes."""
        if mode != "rb":
            raise ValueError(f"mode {mode!r}: a cell is read only")
        return io.BytesIO(self._bytes())

    def _bytes(self) -> bytes:
        try:
            cell = self.table.cell(self.column, self.row)
        except UserError as error:
            # Sound readers expect the errors of files: they then leave this sound out like any other.
            raise OSError(0, str(error)) from error
        return (cell.get("bytes") if isinstance(cell, dict) else cell) or b""


class _ArrowErrors:
    """Turns what arrow says of a file into one line."""

    def __init__(self, path: Path | str) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._arrow = import_extra("pyarrow", "datasets")

    def __exit__(self, kind, error, trace) -> None:
        # Damage shows as any of these; arrow's own errors are also ValueError, OSError or KeyError.
        if isinstance(error, (self._arrow.ArrowException, OSError, ValueError, KeyError, MemoryError, OverflowError)):
            raise UserError(
                f"{self._path}: cannot be read ({printable(first_line(error))[:200]}); hint: copy or write it again"
            ) from error


def _tables(source: str) -> list[Table]:
    if source.startswith(HUB):
        return _hub_tables(source)
    path = Path(source)
    if path.is_file():
        return [ParquetTable(path)]
    # A set of several splits lists them; their names are followed only where they lead into this folder.
    if (path / "dataset_dict.json").is_file():
        names = _plain_names(_json(path / "dataset_dict.json").get("splits"))
        if not names:
            raise UserError(f"{path / 'dataset_dict.json'}: no list of splits; hint: save the set again")
        return [_saved_table(path / name, name) for name in names]
    if _is_saved(path):
        return [_saved_table(path, "")]
    return [ParquetTable(file) for file in _parquet_files(path)]


def _is_saved(folder: Path) -> bool:
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def _parquet_files(folder: Path) -> list[Path]:
    # Directly in the folder, or in one folder a split, as the hub has them.
    return sorted(folder.glob("*.parquet")) or sorted(folder.glob("*/*.parquet"))


def _plain_names(names: object) -> list[str]:
    """Names that lead nowhere else; none of them where one does, or where this is no list of names."""
    if not isinstance(names, list):
        return []
    plain = [n for n in names if isinstance(n, str) and n not in ("", ".", "..") and not re.search(r"[/\\\0]", n)]
    return plain if len(plain) == len(names) else []


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); hint: save the set again") from error
    return found if isinstance(found, dict) else {}


def _saved_table(folder: Path, name: str) -> Table:
    """A folder of Dataset.save_to_disk: arrow files, which state.json lists."""
    arrow = import_extra("pyarrow", "datasets")
    state = _json(folder / "state.json")
    files = _plain_names([f.get("filename") for f in state.get("_data_files") or [] if isinstance(f, dict)])
    if not files:
        raise UserError(f"{folder / 'state.json'}: names no arrow files in its folder; hint: save the set again")
    # Selections and shuffles are kept as indices beside the table; the rows in place would be others.
    if state.get("_indices_files"):
        raise UserError(f"{folder}: an indexed set; hint: flatten_indices() and save it again")
    parts = []
    for file in files:
        with _ArrowErrors(folder / file):
            # Mapped, so that a set larger than memory can be read.
            part = arrow.ipc.open_stream(arrow.memory_map(str(folder / file))).read_all()
            part.validate(full=True)  # false offsets would be followed
            parts.append(part)
    with _ArrowErrors(folder):
        return ArrowTable(name or folder.name, split_named(name) or "", arrow.concat_tables(parts))


def _hub_tables(source: str) -> list[Table]:
    parts = _HUB_NAME.fullmatch(source.removeprefix(HUB).removeprefix("//datasets/"))
    if parts is None:
        raise UserError(f"{source}: no name of a data set; hint: hf:OWNER/NAME, hf:OWNER/NAME:CONFIG or ...@REVISION")
    library = import_extra("datasets", "datasets")
    try:
        found = library.load_dataset(parts["name"], parts["config"], revision=parts["revision"])
    except Exception as error:  # the hub, the network and each file format have errors of their own
        raise UserError(
            f"{source}: not to be had from the hub ({printable(first_line(error))[:300]}); hint: check the name, and "
            "the network; HF_HUB_OFFLINE=1 keeps to what was fetched before"
        ) from error
    return [ArrowTable(name, split_named(name) or "", part.with_format("arrow")[:]) for name, part in found.items()]


def _read_table(table: Table, reading: Reading, listing: Listing, places: Places | None) -> None:
    """Add the clips of a table to the listing."""
    arrow = import_extra("pyarrow", "datasets")
    names = [name for name in table.schema.names if table.schema.names.count(name) == 1]
    types = {name: table.schema.field(name).type for name in names}
    sound = _sound_column(table, names, types, reading)
    kept = [name for name in names if name != sound and _is_plain_type(arrow, types[name])]
    left = [name for name in names if name not in (*kept, sound)]
    if left:
        listing.notes.append(f"{table.name}: columns that are no text or numbers left out: {', '.join(left)[:200]}")
    paths, is_embedded = _paths(table, sound, types[sound])
    for number, (row, path) in enumerate(zip(table.rows(kept), paths)):
        where = f"{table.name}, row {number}"
        try:
            if is_embedded:
                # Only the last part of a path: the folders are those of another machine.
                name = PurePosixPath((path or "").replace("\\", "/")).name
                file = cast(Path, TableSound(table, sound, number, name))
            elif places is not None and path:
                file = places.find(where, path)
            else:
                raise UserError(f"{where}: no sound in column {sound!r}; hint: embed the sounds, not their paths")
            listing.clips.append(_clip(where, file, path or "", row, table, number, reading))
        except UserError as error:
            listing.bad_rows.append((where, str(error)))


def _clip(where: str, file: Path, path: str, row: dict, table: Table, number: int, reading: Reading) -> Clip:
    # The path column is the sound itself here, so that it plays no part in the row.
    parsed = parse_row(where, row, {**reading.columns, "path": ""}, captions=reading.captions != "none")
    captions = parsed.captions or ()
    if not captions and reading.captions == "filename" and path:
        captions = tuple(filter(None, [caption_from_name(PurePosixPath(path))]))
    if not captions and reading.captions != "none":
        raise UserError(f"{where}: no caption; hint: --column caption=NAME names the column that has it")
    identity = parsed.id or f"{table.name}/{number:06d}"
    split = parsed.split or ("" if reading.splits_by_content else table.split)
    return Clip(identity, file, captions, split, parsed.fields, parsed.start_sec, parsed.length_sec)


def _paths(table: Table, sound: str, kind) -> tuple[Iterator[str | None], bool]:
    """The path of each sound, and whether its bytes are in the table itself; the first row tells."""
    types = import_extra("pyarrow", "datasets").types
    if types.is_string(kind) or types.is_large_string(kind):
        return (row[sound] for row in table.rows([sound])), False
    if not types.is_struct(kind):
        # Bare bytes have no names.
        return repeat(None), True
    first = next(iter(table.paths(sound)), None)
    return table.paths(sound), first is None or bool(table.cell(sound, 0).get("bytes"))


def _sound_column(table: Table, names: list[str], types: dict, reading: Reading) -> str:
    """The column of sounds: the one that is chosen, one of audio cells, or one of paths."""
    arrow = import_extra("pyarrow", "datasets")

    def holds_sounds(kind) -> bool:
        if arrow.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and kind.get_field_index("path") >= 0
        return arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind)

    def holds_paths(kind) -> bool:
        return arrow.types.is_string(kind) or arrow.types.is_large_string(kind)

    try:
        habit = roles_of(names, reading.columns).path
    except UserError as error:
        raise UserError(f"{table.name}: {error}") from error
    # Images are stored as the same struct of bytes and path.
    fitting = [name for name in names if holds_sounds(types[name]) and "image" not in plain(name)]
    if habit is not None and (habit in fitting or ("path" in reading.columns and holds_paths(types[habit]))):
        return habit
    if fitting and "path" not in reading.columns:
        return fitting[0]
    if habit is not None and holds_paths(types[habit]):
        return habit
    raise UserError(
        f"{table.name}: no column of sound files or of their paths (columns: {', '.join(names)[:200]}); hint: "
        "cast_column to Audio and save it again, or --column path=NAME"
    )


def _is_plain_type(arrow, kind) -> bool:
    """Whether a column's cells are text, numbers, or lists of text."""
    check = arrow.types
    if check.is_list(kind) or check.is_large_list(kind):
        # Lists count by what they hold: several captions in one cell are lists of text.
        kind = kind.value_type
        return check.is_string(kind) or check.is_large_string(kind)
    return any(
        test(kind)
        for test in (check.is_string, check.is_large_string, check.is_integer, check.is_floating, check.is_boolean)
    )
