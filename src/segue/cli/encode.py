"""`segue encode`: a data set into a latent cache."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from segue.cli.data_options import (
    Captions,
    Column,
    Encoding,
    FollowLinks,
    Root,
    Source,
    leave_out_rows,
    print_notes,
    reading_of,
)
from segue.cli.options import Device, SkipBad
from segue.codecs import Codec, default_codec, load_codec
from segue.conditioners import PIPELINE, load_conditioner
from segue.conditioners.base import TextConditioner
from segue.conditioners.tokens import DEFAULT_TOKENS, fit_tokens
from segue.data.cache_layout import earlier_tokens
from segue.data.cache_parts import Part, missing_parts
from segue.data.clip import Clip
from segue.data.conditions import ConditionField
from segue.data.encoding import build_cache
from segue.data.manifest import read_listing
from segue.devices import announced_device, cores
from segue.hub import is_pipeline, pipeline_folder
from segue.models.adapters import own_seconds, read_adapter_config
from segue.ssl import Teacher, load_teacher
from segue.types import UserError

DEFAULT_SECONDS = 2.048
FEW_FILES = 200
MOST_WORKERS = 16


def encode(
    source: Source,
    out: Annotated[
        Path, typer.Option(help="Folder of the cache. The same command continues it after a kill, or with more files.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub name of a diffusers pipeline that is to be trained on: its own codec and text encoder "
            "take the place of --codec and --text (docs/fine-tuning.md)."
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            help="Codec: autoencoder (shipped, 16 kHz mono; the default), stereo-44k (shipped), spectral, folder of a "
            "trained one, or hub name."
        ),
    ] = None,
    sample_rate_hz: Annotated[
        int | None, typer.Option(help="Sample rate of the codec in Hz; default: its own.")
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(
            help="Channels of the sound: 1 (mono) or 2 (stereo), where a codec takes either, as spectral does; "
            "default: as the codec, mono where it takes either.",
            min=1,
            max=2,
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Length of the rows that files are kept in, and of the crops that training takes by default "
            "(train.seconds); default: 2.048, with --model what that generates."
        ),
    ] = None,
    text: Annotated[str | None, typer.Option(help="Text encoder: a name or a local path; default: minilm.")] = None,
    teacher: Annotated[
        str,
        typer.Option(
            help="Teacher, a frozen audio encoder whose features are cached: compact (shipped, 16 kHz), compact-44k "
            "(shipped), folder of a trained one, hub name (WavLM, PE-A...), or none, which is enough for recipes such "
            "as static-uniform."
        ),
    ] = "compact",
    teacher_layer: Annotated[
        int | None, typer.Option(help="Hidden layer of the teacher; default: the middle one.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with the teacher; MERT needs it.")
    ] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Number of tokens at which captions are cut; default: what the longest needs, up to the "
            "encoder's limit."
        ),
    ] = None,
    captions: Captions = "manifest",
    condition: Annotated[
        list[str] | None,
        typer.Option(
            help="Field of the list that is a condition of the model beside the caption: field=bpm for numbers or "
            "labels; field=bpm,optional where some rows have none. May be repeated."
        ),
    ] = None,
    root: Root = None,
    follow_links: FollowLinks = False,
    column: Column = None,
    encoding: Encoding = None,
    skip_bad: SkipBad = False,
    variants: Annotated[
        int,
        typer.Option(
            help="Versions of each training clip: the first as recorded, the others up to 3 dB softer and 50 ms later "
            "(long files: cut elsewhere). For small sets."
        ),
    ] = 1,
    dtype: Annotated[str, typer.Option(help="Number format of the cache: float16 or float32.")] = "float16",
    batch_size: Annotated[int, typer.Option(help="Number of clips that are encoded together.")] = 32,
    workers: Annotated[
        int | None,
        typer.Option(help="Number of processes that decode; 0: none; default: one a core, none below 200 files."),
    ] = None,
    device: Device = "auto",
    part: Annotated[
        str | None,
        typer.Option(
            help="Encode one part of the sounds, such as 3/16, into an OUT that all machines see; whoever ends last "
            "joins the parts."
        ),
    ] = None,
) -> None:
    """Encode sounds, captions and the features of a teacher once, into the cache that `segue train` reads."""
    if teacher == "none" and teacher_layer is not None:
        raise UserError("--teacher-layer needs a --teacher")
    for of_field in condition or []:
        ConditionField.of(of_field)  # refused before anything is loaded
    place = announced_device(device)
    if model is not None:
        codec, text, seconds = _of_pipeline(
            model, seconds, {"--codec": codec, "--text": text, "--max-tokens": max_tokens}
        )
    seconds = DEFAULT_SECONDS if seconds is None else seconds
    # The list is read first: a wrong path is told before any model is loaded.
    # What there is to encode.
    listing = read_listing(source, reading_of(captions, root, follow_links, column, encoding))
    print_notes(source, listing.notes)
    leave_out_rows(source, listing, skip_bad)
    # What encodes it.
    encoder = load_codec(codec or default_codec(), sample_rate_hz, channels)
    frozen = None if teacher == "none" else load_teacher(teacher, teacher_layer, trust_remote_code).to(place)
    # Printed before the long work, so that a wrong rate can be stopped.
    _describe(encoder, frozen)
    conditioner = load_conditioner(text or "minilm").for_seconds(seconds)
    conditioner = _fitting(conditioner, listing.clips, max_tokens, out)
    cache = build_cache(
        listing.clips,
        encoder,
        conditioner,
        frozen,
        out=out,
        seconds=seconds,
        dtype=dtype,
        skip_bad=skip_bad,
        variants=variants,
        batch_size=batch_size,
        workers=_workers(len({clip.path for clip in listing.clips})) if workers is None else workers,
        device=place,
        part=None if part is None else Part.of(part),
        conditions=condition or (),
        timed=model is None,  # a public model knows times of its own
    )
    left = missing_parts(out)
    if left:
        print(f"{cache.path}: {len(cache):,} rows; {left}")
        return
    counts = cache.meta["counts"]
    print(
        f"{out}: {counts['rows']:,} rows of {cache.channels} x {cache.frames} from {counts['clips']:,} clips "
        f"({counts['hours']:.2f} hours), {counts['captions']:,} captions, {len(cache.meta['skipped'])} files left out"
    )


def _of_pipeline(name: str, seconds: float | None, given: dict[str, object]) -> tuple[str, str, float]:
    """Codec, text encoder and length of rows for a pipeline's model.

    Raises:
        UserError: it cannot be trained here, or one of its parts was asked for as well.
    """
    other = [option for option, value in given.items() if value is not None]
    if other:
        raise UserError(f"--model {name} brings its own; hint: leave {', '.join(other)} away")
    # Before anything is loaded: its model must be one that can be trained, and its codec must be there.
    read_adapter_config(name)
    folder = pipeline_folder("--model", name)
    folder.part("vae")
    text = name if is_pipeline(name) else f"{PIPELINE}{name}"
    return name, text, own_seconds(folder) if seconds is None else seconds


def _workers(files: int) -> int:
    """Processes that decode so many files: starting them takes longer than to decode a few."""
    return 0 if files < FEW_FILES else min(MOST_WORKERS, cores())


def _fitting(conditioner: TextConditioner, clips: list[Clip], max_tokens: int | None, out: Path) -> TextConditioner:
    """The text encoder with room for the captions."""
    # Each caption once: clips may share them.
    captions = list(dict.fromkeys(caption for clip in clips for caption in clip.captions))
    # Never fewer than an earlier cache of this folder has, or its captions would be embedded anew.
    least = max(DEFAULT_TOKENS, min(earlier_tokens(out) or 0, conditioner.most_tokens))
    return fit_tokens(conditioner, captions, max_tokens, least)


def _describe(codec: Codec, teacher: Teacher | None) -> None:
    """Print how codec and teacher take sound in, and the band that the teacher carries nothing of, on stderr."""
    for part, what in ((codec, "codec"), (teacher, "teacher")):
        if part is not None and hasattr(part, "describe"):
            print(f"{what}: {part.describe()}", file=sys.stderr)
    if teacher is not None and teacher.sample_rate_hz < codec.sample_rate_hz:
        print(
            f"note: the teacher carries nothing above {teacher.sample_rate_hz // 2:,} Hz, the codec nothing above "
            f"{codec.sample_rate_hz // 2:,} Hz; alignment cannot act on the band between them",
            file=sys.stderr,
        )
