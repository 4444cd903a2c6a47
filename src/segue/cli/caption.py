"""`segue caption`: a folder of sounds into a list of captions to edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segue.cli.data_options import FollowLinks
from segue.types import UserError, printable
from segue.workflows.caption_folder import caption_folder, read_words


def caption(
    folder: Annotated[Path, typer.Argument(help="Folder of sounds.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="List to write, a new .jsonl file; default: manifest.jsonl in the folder, as encode reads it."
        ),
    ] = None,
    phrasings: Annotated[
        int, typer.Option(help="Number of wordings for a sound at most; training draws one of them.", min=1, max=6)
    ] = 3,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model that adds words: a CLAP (laion/clap-htsat-unfused), which chooses from --words, or a "
            "classifier of sounds (MIT/ast-finetuned-audioset-10-10-0.4593); hub name or folder; default: none."
        ),
    ] = None,
    words: Annotated[
        Path | None,
        typer.Option(help="Text file with one word a line, for a CLAP model; default: a list of general sounds."),
    ] = None,
    follow_links: FollowLinks = False,
) -> None:
    """Make captions from file names, folders, tags (title, genre, comment) and, with --model, from the sounds.

    The list has a line of JSON for each sound, to be edited before it is used. Nothing is replaced.
    """
    if words is not None and model is None:
        raise UserError("--words needs --model, a CLAP model that chooses from them")
    listed = None if words is None else read_words(words)
    tagger = None
    if model is not None:
        from segue.evaluation.sound_tags import load_tagger

        tagger = load_tagger(model, listed)
    done = caption_folder(folder, out, tagger, phrasings, follow_links)
    where = folder / "manifest.jsonl" if out is None else out
    print(printable(f"{where}: {done.rows:,} sounds; read it through and edit it, then: {done.command}"))
    if done.bare:
        print(
            f"note: {done.bare:,} of them have no caption, since nothing is known of them; hint: write some into the "
            "list, or --model; segue encode --skip-bad leaves them out"
        )
