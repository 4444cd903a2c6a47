"""`segue data`: check a data set, pack a cache into shards, or render the demo set."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from segue.cli.data_options import Column, Encoding, FollowLinks, Root, Source, reading_of
from segue.cli.options import finite
from segue.conditioners import load_token_counter
from segue.conditioners.tokens import count_tokens
from segue.data.check import check_listing, report_json, report_lines, stated_bytes
from segue.data.clip import Clip
from segue.data.demo_set import render_demo_set
from segue.data.fix import write_clean_list
from segue.data.manifest import read_listing
from segue.data.open_cache import open_cache
from segue.data.packing import pack_cache
from segue.data.splits import held_out_first
from segue.memory import format_bytes
from segue.types import UserError, printable


def render_demo(
    out: Annotated[Path, typer.Argument(help="Folder of the set, new or empty.")],
    clips: Annotated[int, typer.Option(help="Number of clips.")] = 6000,
    seed: Annotated[int, typer.Option(help="Seed of the notes; the same seed gives the same bytes.")] = 0,
    sample_rate_hz: Annotated[int, typer.Option(help="Sample rate of the clips in Hz.")] = 16000,
    seconds: Annotated[float, typer.Option(help="Length of a clip in seconds.")] = 2.048,
    processes: Annotated[
        int, typer.Option(help="Number of processes that render; the result does not depend on it.")
    ] = 2,
) -> None:
    """Render the captioned demo set from a General-MIDI sound font: FLAC files and manifest.jsonl."""
    manifest = render_demo_set(
        out, clips=clips, seed=seed, sample_rate_hz=sample_rate_hz, seconds=seconds, processes=processes
    )
    print(manifest)


def check(
    source: Source,
    captions: Annotated[
        str,
        typer.Option(
            help="Source of the captions: 'manifest' (they come with the data), 'filename' (made from file "
            "names), 'none'."
        ),
    ] = "manifest",
    root: Root = None,
    follow_links: FollowLinks = False,
    column: Column = None,
    encoding: Encoding = None,
    text: Annotated[
        str, typer.Option(help="Text encoder whose tokens are counted; none: they are not counted.")
    ] = "minilm",
    max_tokens: Annotated[
        int | None, typer.Option(help="Number of tokens at which captions are cut; default: the encoder's limit.")
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(help="File to write: a .jsonl list of what can be used, with splits; the exit code is then 0."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    workers: Annotated[int, typer.Option(help="Number of threads that decode.")] = 4,
) -> int:
    """Decode every file; print counts, hours, rates, and each file that cannot be used. Exit code 2 if there is one."""
    finite("--workers", workers, 1)
    listing = read_listing(source, reading_of(captions, root, follow_links, column, encoding))
    # Captions come first: the tokeniser's libraries are then part of what is resident when the need is stated.
    tokens, notes = _tokens(text, listing.clips, max_tokens)
    # The peak is stated before the long work, on stderr: stdout may be JSON.
    print(f"peak memory about {format_bytes(stated_bytes(len(listing.clips), workers))}", file=sys.stderr)
    report, usable = check_listing(listing, workers)
    if as_json:
        printed = report_json(report)
        # ASCII alone: names that are no UTF-8 must survive the way into a file.
        print(json.dumps(printed | {"notes": printed["notes"] + notes, "tokens": tokens}, indent=1, ensure_ascii=True))
    else:
        lines = report_lines(report) + [f"note: {note}" for note in notes]
        print("\n".join(printable(line) for line in lines))
        if report.bad:
            print(
                f"{len(report.bad)} bad files; hint: repair or remove them, segue encode --skip-bad, or --fix OUT.jsonl"
            )
    if fix is not None:
        # Contents that a list puts into several splits are written into the held-out one alone.
        command = write_clean_list(fix, held_out_first(usable.clips, usable.contents), listing.root)
        print(printable(f"{fix}: {len(usable.clips):,} clips; {command}"), file=sys.stderr)
        # A clean list was made, so that faults of the source are no failure any more.
        return 0
    return 2 if report.bad else 0


def _tokens(text: str, clips: list[Clip], max_tokens: int | None) -> tuple[dict | None, list[str]]:
    """Tokens of the captions for the report, and notes on them; None and the reason where they cannot be counted."""
    captions = list(dict.fromkeys(caption for clip in clips for caption in clip.captions))
    if text == "none" or not captions:
        return None, []
    # Counting needs the encoder's files: where they cannot be had, the check of the sounds still counts.
    try:
        counts = count_tokens(load_token_counter(text, max_tokens), captions)
    except UserError as error:
        return None, [f"tokens of captions not counted ({error})"]
    if counts is None:
        return None, []
    found = {"encoder": text, "longest": counts.longest, "cut": len(counts.cut), "unknown": len(counts.unknown)}
    return found, counts.notes()


def pack(
    cache: Annotated[Path, typer.Argument(help="Finished latent cache of `segue encode`.")],
    out: Annotated[Path, typer.Option(help="Folder of the shards. The same command continues it after a kill.")],
    rows_per_shard: Annotated[int, typer.Option(help="Number of rows in a shard.")] = 512,
    window: Annotated[int, typer.Option(help="Number of shards that training shuffles together.")] = 8,
) -> None:
    """Pack a latent cache into WebDataset tar shards, which `segue train --data OUT` streams."""
    packed = pack_cache(open_cache(cache), out, rows_per_shard=rows_per_shard, window=window)
    print(f"{out}: {len(packed):,} rows in {len(list(out.glob('*.tar'))):,} shards; train with --data {out}")
