"""`segue encode`: a data set into a latent cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segue.codecs import load_codec
from segue.conditioners import load_conditioner
from segue.data.cache import build_cache
from segue.data.manifest import load_manifest


def encode(
    source: Annotated[Path, typer.Argument(help="Folder of sounds with .txt captions, or a .csv or .jsonl manifest.")],
    out: Annotated[Path, typer.Option(help="Folder of the cache; a killed run goes on there.")],
    codec: Annotated[str, typer.Option(help="A codec's name, or the folder of a trained one.")] = "spectral",
    sample_rate_hz: Annotated[int | None, typer.Option(help="Rate of the codec; default: its own.")] = None,
    seconds: Annotated[float, typer.Option(help="Length of a row; longer files are cut, shorter ones padded.")] = 2.048,
    text: Annotated[str, typer.Option(help="A text encoder's name or local path.")] = "minilm",
    captions: Annotated[
        str, typer.Option(help="'manifest': captions come with the data; 'filename': made from file names.")
    ] = "manifest",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unusable files out, and list them.")] = False,
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    batch_size: Annotated[int, typer.Option(help="Clips encoded together.")] = 32,
    workers: Annotated[int, typer.Option(help="Threads that decode.")] = 2,
    device: Annotated[str, typer.Option(help="Where the codec runs: cpu, cuda or mps.")] = "cpu",
) -> None:
    """Encode latents and captions once, into OUT: what `segue train` reads."""
    clips = load_manifest(source, captions)
    cache = build_cache(
        clips,
        load_codec(codec, sample_rate_hz),
        load_conditioner(text),
        out=out,
        seconds=seconds,
        dtype=dtype,
        skip_bad=skip_bad,
        batch_size=batch_size,
        workers=workers,
        device=device,
    )
    counts = cache.meta["counts"]
    print(
        f"{out}: {counts['rows']:,} rows of {cache.channels} x {cache.frames} from {counts['clips']:,} clips "
        f"({counts['hours']:.2f} hours), {counts['captions']:,} captions, {len(cache.meta['skipped'])} files left out"
    )
