"""The options of every command that reads a data set."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from segue.data.reading import DataSource, Listing, Reading, columns_from
from segue.types import printable

Source = Annotated[
    str,
    typer.Argument(
        help="Folder of sounds with captions beside them; a .jsonl, .json, .csv or .tsv list; tars: x-{00..99}.tar; "
        "parquet files, a folder of save_to_disk, or hf:OWNER/NAME (docs/data.md)."
    ),
]
Captions = Annotated[
    str,
    typer.Option(
        help="Source of the captions: 'manifest' (they come with the data) or 'filename' (made from file names)."
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(help="Folder that the paths of a list start in and may not leave; default: the folder of the list."),
]
FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Follow linked folders and links that lead out (git-annex, DVC).")
]
Column = Annotated[
    list[str] | None,
    typer.Option(
        help="Column of a list as ROLE=NAME, where its name does not tell its role: path, caption, id, split, start, "
        "end or duration; ROLE= for none. May be repeated."
    ),
]
Encoding = Annotated[
    str | None, typer.Option(help="Encoding of lists and captions that are not UTF-8, for example cp1252.")
]


def reading_of(
    captions: str, root: Path | None, follow_links: bool, column: list[str] | None, encoding: str | None
) -> Reading:
    """The options as the reader takes them.

    Raises:
        UserError: one of them is not what it should be.
    """
    return Reading(captions, root, follow_links, columns_from(column or []), encoding)


def source_of(
    name: str, root: Path | None, follow_links: bool, column: list[str] | None, encoding: str | None
) -> DataSource:
    """A source as it was named on the command line, without captions.

    Raises:
        UserError: one of the options is not what it should be.
    """
    return DataSource(name, reading_of("none", root, follow_links, column, encoding))


def print_notes(source: Path | str, notes: Iterable[str]) -> None:
    """What was left out, or is to be known, on stderr."""
    for note in notes:
        print(printable(f"note: {source}: {note}"), file=sys.stderr)


def leave_out_rows(source: Path | str, listing: Listing, skip_bad: bool) -> None:
    """Refuse entries of a list that give no clip, or leave them out and say so.

    Raises:
        UserError: there are some, and they are not to be left out.
    """
    if listing.bad_rows and not skip_bad:
        # Only entries are refused here; missing files are told where they are read.
        refused = Listing(bad_rows=listing.bad_rows)
        refused.refuse_faults("; --skip-bad leaves such entries out")
    for _, complaint in listing.bad_rows:
        print(printable(f"left out {complaint}"), file=sys.stderr)
