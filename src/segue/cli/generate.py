"""`segue generate`: captions in, wav files out."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from segue.audio.write import write_wav
from segue.cli.options import Device, finite
from segue.conditioners.tokens import count_tokens
from segue.devices import announced_device
from segue.files import make_folder
from segue.pipeline import Pipeline, Sampling
from segue.progress import Meter
from segue.types import UserError, printable

MOST_SLUG = 60  # characters of the prompt in a file's name


def generate(
    run: Annotated[Path, typer.Argument(help="Run folder, checkpoint folder, or model.safetensors.")],
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Texts to generate sounds from; each makes one file.")
    ] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="Text file in UTF-8 with one prompt a line.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the wav files.")] = Path("generated"),
    seconds: Annotated[
        float | None, typer.Option(help="Length of each sound in seconds; default: that of the training clips.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise; the same seed gives the same bytes.")] = 0,
    take: Annotated[
        int,
        typer.Option(
            help="Number of the first prompt's take: `--take 5` with the sixth prompt of a list makes its file again.",
            min=0,
        ),
    ] = 0,
    steps: Annotated[int, typer.Option(help="Number of solver steps.")] = 24,
    solver: Annotated[str, typer.Option(help="Solver of the sampling ODE: euler, heun or multistep.")] = "multistep",
    guidance: Annotated[
        float, typer.Option(help="Scale of classifier-free guidance; 1: none.")
    ] = Sampling.guidance_scale,
    rescale: Annotated[float, typer.Option(help="Share of guidance rescaling, 0 to 1.")] = 0.0,
    batch_size: Annotated[int, typer.Option(help="Number of prompts that are computed together.", min=1)] = 16,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    weights: Annotated[str, typer.Option(help="Weights to use: ema (averaged) or model (as trained).")] = "ema",
    device: Device = "auto",
) -> None:
    """Generate sounds from prompts.

    Each file keeps its prompt, the seed and the number of its take in its metadata. Files appear as they are made, and
    none is replaced without --overwrite.
    """
    finite("--rescale", rescale, 0.0, 1.0)
    # Prompts of the command line come first, and are numbered before those of a file.
    captions = [*(prompts or []), *(_read_prompts(prompts_file) if prompts_file else [])]
    if not captions:
        raise UserError('no prompt; for example: segue generate runs/mine "a soft violin playing C 5"')
    for caption in captions:
        _refuse_not_text(caption)
    sampling = Sampling(steps, solver, guidance, rescale)
    place = announced_device(device)
    # The number of the take stands in the name: any file can be made again by its number.
    paths = [out / f"{take + index:03d}-{_slug(caption)}.wav" for index, caption in enumerate(captions)]
    # All names are checked before the model is loaded: nothing is half done.
    if not overwrite:
        _refuse_existing(paths)
    pipeline = Pipeline.load(run, weights, place)
    pipeline.samples_of(seconds)
    # Words that the encoder cuts or does not know are told: the sound cannot follow them.
    counts = count_tokens(pipeline.conditioner, captions)
    for note in counts.notes("prompt") if counts else []:
        print(f"note: {note}", file=sys.stderr)
    make_folder(out)
    _generate(pipeline, captions, paths, f"{run} seed {seed}", seconds, seed, take, sampling, batch_size)


def _generate(
    pipeline: Pipeline,
    captions: Sequence[str],
    paths: Sequence[Path],
    about: str,
    seconds: float | None,
    seed: int,
    take: int,
    sampling: Sampling,
    batch_size: int,
) -> None:
    """Compute batch after batch, and write each before the next one begins."""
    # Heun evaluates twice a step, but for the last one.
    per_batch = 2 * sampling.steps - 1 if sampling.solver == "heun" else sampling.steps
    done = 0
    with Meter("generating", per_batch * -(-len(captions) // batch_size), unit="evaluations", first_line_sec=15) as bar:

        def advance() -> None:
            nonlocal done
            done += 1
            bar.update(done)

        for first in range(0, len(captions), batch_size):
            part = captions[first : first + batch_size]
            # Noise is keyed by the take's number, so that batches of any size give the same sounds.
            waves = pipeline.generate(
                part,
                seconds=seconds,
                seed=seed,
                sampling=sampling,
                batch_size=batch_size,
                first=take + first,
                on_step=advance,
            )
            # Written at once: a killed command keeps what it has made.
            for index, wave in enumerate(waves, first):
                comment = f"{about} take {take + index}"
                write_wav(paths[index], wave.numpy(), pipeline.codec.sample_rate_hz, captions[index], comment)
                print(printable(str(paths[index])), flush=True)


def _refuse_existing(paths: Sequence[Path]) -> None:
    there = [path for path in paths if path.exists()]
    if there:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise UserError(f"{there[0]}: exists already{more}; hint: --overwrite, or another --out for another seed")


def _refuse_not_text(caption: str) -> None:
    try:
        # Surrogates of a terminal that is not UTF-8 cannot be encoded.
        caption.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"prompt {printable(caption)!r}: not UTF-8; hint: set the terminal to UTF-8") from error


def _read_prompts(path: Path) -> list[str]:
    try:
        # Editors of some systems put a byte order mark before UTF-8; utf-8-sig takes it off.
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"--prompts-file {path}: {reason}; hint: name a text file with one prompt a line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts-file {path}: not UTF-8; hint: save it as UTF-8") from error


def _slug(caption: str) -> str:
    """A file name of a caption's letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")[:MOST_SLUG] or "sound"
