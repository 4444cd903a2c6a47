"""`segue data`: check a data set, pack a cache into shards, or render the demo set."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from segue.data.cache import LatentCache
from segue.data.check import check_clips, report_json, report_lines, stated_bytes
from segue.data.demo import render_demo_set
from segue.data.manifest import load_manifest
from segue.data.packing import pack_cache
from segue.memory import format_bytes
from segue.types import printable


def render_demo(
    out: Annotated[Path, typer.Argument(help="New or empty folder for the set.")],
    clips: Annotated[int, typer.Option(help="Number of clips.")] = 6000,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    sample_rate_hz: Annotated[int, typer.Option(help="Sample rate of the clips.")] = 16000,
    seconds: Annotated[float, typer.Option(help="Length of a clip.")] = 2.048,
    processes: Annotated[int, typer.Option(help="Processes that render; the result does not depend on it.")] = 2,
) -> None:
    """Render the captioned demo set from a General-MIDI sound font: FLAC files and manifest.jsonl."""
    manifest = render_demo_set(
        out, clips=clips, seed=seed, sample_rate_hz=sample_rate_hz, seconds=seconds, processes=processes
    )
    print(manifest)


def check(
    source: Annotated[
        str,
        typer.Argument(help="Folder of sounds with .txt captions, .csv or .jsonl manifest, or tars: x-{00..99}.tar."),
    ],
    captions: Annotated[
        str, typer.Option(help="'manifest': captions come with the data; 'filename': made from file names.")
    ] = "manifest",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    workers: Annotated[int, typer.Option(help="Threads that decode.")] = 4,
) -> int:
    """Decode every file; print counts, hours, rates, and each file that cannot be used. Exit 2 where there is one."""
    clips = load_manifest(source, captions)
    print(f"peak memory about {format_bytes(stated_bytes(len(clips), workers))}", file=sys.stderr)
    report = check_clips(clips, workers)
    if as_json:
        print(json.dumps(report_json(report), indent=1, ensure_ascii=True))
    else:
        print("\n".join(printable(line) for line in report_lines(report)))
        if report.bad:
            print(f"{len(report.bad)} bad files; mend: repair or remove them, or segue encode --skip-bad")
    return 2 if report.bad else 0


def pack(
    cache: Annotated[Path, typer.Argument(help="A finished latent cache of `segue encode`.")],
    out: Annotated[Path, typer.Option(help="Folder of the shards; a killed packing goes on there.")],
    rows_per_shard: Annotated[int, typer.Option(help="Rows of a shard.")] = 512,
    window: Annotated[int, typer.Option(help="Shards that training shuffles together.")] = 8,
) -> None:
    """Pack a latent cache into WebDataset tar shards, which `segue train --data OUT` streams."""
    packed = pack_cache(LatentCache.open(cache), out, rows_per_shard=rows_per_shard, window=window)
    print(f"{out}: {len(packed):,} rows in {len(list(out.glob('*.tar'))):,} shards; train with --data {out}")
