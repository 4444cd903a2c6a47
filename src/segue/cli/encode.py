"""`segue encode`: a data set into a latent cache."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from segue.cli.options import device_of
from segue.cli.reading import (
    Captions,
    Column,
    Encoding,
    FollowLinks,
    Root,
    Source,
    leave_out_rows,
    reading_of,
    say_notes,
)
from segue.codecs import Codec, default_codec, load_codec
from segue.conditioners import load_conditioner
from segue.conditioners.base import TextConditioner
from segue.conditioners.tokens import DEFAULT_TOKENS, fit_tokens
from segue.data.clip import Clip
from segue.data.encoding import build_cache
from segue.data.manifest import read_listing
from segue.data.plan import earlier_tokens
from segue.ssl import Teacher, load_teacher
from segue.types import UserError


def encode(
    source: Source,
    out: Annotated[
        Path, typer.Option(help="Folder of the cache; a killed run goes on there, and so does one with more files.")
    ],
    codec: Annotated[
        str | None,
        typer.Option(help="Default: the shipped autoencoder. Or spectral, a trained one's folder, or a hub name."),
    ] = None,
    sample_rate_hz: Annotated[int | None, typer.Option(help="Rate of the codec; default: its own.")] = None,
    seconds: Annotated[float, typer.Option(help="Length of a row; longer files are cut, shorter ones padded.")] = 2.048,
    text: Annotated[str, typer.Option(help="A text encoder's name or local path.")] = "minilm",
    teacher: Annotated[
        str,
        typer.Option(
            help="Whose features are cached beside the latents: compact (shipped), a trained one's folder, a hub name "
            "(WavLM, MERT...), or none: recipes such as static-uniform need none."
        ),
    ] = "compact",
    teacher_layer: Annotated[int | None, typer.Option(help="Which hidden layer; default: the middle one.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with the teacher; MERT needs it.")
    ] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Cut captions here; default: what the longest needs, up to the encoder's positions."),
    ] = None,
    captions: Captions = "manifest",
    root: Root = None,
    follow_links: FollowLinks = False,
    column: Column = None,
    encoding: Encoding = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unusable files out, and list them.")] = False,
    variants: Annotated[
        int,
        typer.Option(
            help="Versions of each training clip: the first as recorded, the others up to 3 dB softer and 50 ms later "
            "(long files: cut elsewhere). For small sets."
        ),
    ] = 1,
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    batch_size: Annotated[int, typer.Option(help="Clips encoded together.")] = 32,
    workers: Annotated[int, typer.Option(help="Threads that decode.")] = 2,
    device: Annotated[str, typer.Option(help="Where codec and teacher run: cpu, cuda or mps.")] = "cpu",
) -> None:
    """Encode latents, captions and a teacher's features once, into OUT: what `segue train` reads."""
    if teacher == "none" and teacher_layer is not None:
        raise UserError("--teacher-layer needs a --teacher")
    device = device_of(device)
    listing = read_listing(source, reading_of(captions, root, follow_links, column, encoding))
    say_notes(source, listing.notes)
    leave_out_rows(source, listing, skip_bad)
    voice = load_codec(codec or default_codec(), sample_rate_hz)
    ears = None if teacher == "none" else load_teacher(teacher, teacher_layer, trust_remote_code).to(device)
    _describe(voice, ears)
    conditioner = _fitting(load_conditioner(text), listing.clips, max_tokens, out)
    cache = build_cache(
        listing.clips,
        voice,
        conditioner,
        ears,
        out=out,
        seconds=seconds,
        dtype=dtype,
        skip_bad=skip_bad,
        variants=variants,
        batch_size=batch_size,
        workers=workers,
        device=device,
    )
    counts = cache.meta["counts"]
    print(
        f"{out}: {counts['rows']:,} rows of {cache.channels} x {cache.frames} from {counts['clips']:,} clips "
        f"({counts['hours']:.2f} hours), {counts['captions']:,} captions, {len(cache.meta['skipped'])} files left out"
    )


def _fitting(conditioner: TextConditioner, clips: list[Clip], max_tokens: int | None, out: Path) -> TextConditioner:
    """The text encoder with room for the captions."""
    captions = list(dict.fromkeys(caption for clip in clips for caption in clip.captions))
    least = max(DEFAULT_TOKENS, min(earlier_tokens(out) or 0, conditioner.most_tokens))
    return fit_tokens(conditioner, captions, max_tokens, least)


def _describe(codec: Codec, teacher: Teacher | None) -> None:
    """Say on stderr how codec and teacher take sound in, and what of it the teacher cannot hear."""
    for part, what in ((codec, "codec"), (teacher, "teacher")):
        if part is not None and hasattr(part, "describe"):
            print(f"{what}: {part.describe()}", file=sys.stderr)
    if teacher is not None and teacher.sample_rate_hz < codec.sample_rate_hz:
        print(
            f"note: the teacher hears up to {teacher.sample_rate_hz // 2:,} Hz, the codec carries up to "
            f"{codec.sample_rate_hz // 2:,} Hz; what lies above, the teacher cannot guide",
            file=sys.stderr,
        )
