"""`segue generate`: captions in, wav files out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import soundfile
import typer
from rich.progress import Progress
from torch import Tensor

from segue._version import __version__
from segue.files import replacing
from segue.pipeline import Pipeline, Sampling
from segue.types import UserError


def generate(
    run: Annotated[Path, typer.Argument(help="Run folder, checkpoint folder, or model.safetensors.")],
    prompts: Annotated[
        list[str] | None, typer.Argument(help="What to generate; several prompts make several files.")
    ] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="A UTF-8 text file with one prompt a line.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the wav files.")] = Path("generated"),
    seconds: Annotated[float | None, typer.Option(help="Length; default: that of the training clips.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    steps: Annotated[int, typer.Option(help="Solver steps.")] = 24,
    solver: Annotated[str, typer.Option(help="euler, heun or multistep.")] = "multistep",
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 = none.")] = Sampling.guidance_scale,
    rescale: Annotated[float, typer.Option(help="Guidance rescaling, 0 to 1.")] = 0.0,
    batch_size: Annotated[int, typer.Option(help="Prompts computed together.")] = 16,
    weights: Annotated[str, typer.Option(help="ema (averaged) or model (as trained).")] = "ema",
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
) -> None:
    """Generate sounds from prompts. The prompt and the seed are kept in each file's metadata."""
    captions = [*(prompts or []), *(_read_prompts(prompts_file) if prompts_file else [])]
    if not captions:
        raise UserError('no prompt; for example: segue generate runs/mine "a soft violin playing C 5"')
    sampling = Sampling(steps, solver, guidance, rescale)
    pipeline = Pipeline.load(run, weights, device)
    evaluations = (2 * steps - 1 if solver == "heun" else steps) * -(-len(captions) // batch_size)
    with Progress(transient=True) as bar:
        task = bar.add_task("generating", total=evaluations)
        waves = pipeline.generate(
            captions,
            seconds=seconds,
            seed=seed,
            sampling=sampling,
            batch_size=batch_size,
            on_step=lambda: bar.advance(task),
        )
    out.mkdir(parents=True, exist_ok=True)
    for index, (caption, wave) in enumerate(zip(captions, waves)):
        path = out / f"{index:03d}-{_slug(caption)}.wav"
        write_wav(path, wave, pipeline.codec.sample_rate_hz, caption, f"{run} seed {seed}")
        print(path)


def write_wav(path: Path, wave: Tensor, sample_rate_hz: int, title: str, comment: str) -> None:
    """Write a 16-bit wav [T] with its prompt as title. The file appears whole or not at all; equal input, equal bytes.

    A wave beyond full scale is scaled to it, since a clipped one would be another sound.
    """
    settings = {"samplerate": sample_rate_hz, "channels": 1, "subtype": "PCM_16", "format": "WAV"}
    with replacing(path) as temporary, soundfile.SoundFile(temporary, "w", **settings) as file:
        file.title, file.comment, file.software = title, comment, f"segue {__version__}"
        file.write((wave / wave.abs().max().clamp(min=1.0)).numpy())


def _read_prompts(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise UserError(f"--prompts-file {path}: no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts-file {path}: not UTF-8; save it as UTF-8") from error


def _slug(caption: str) -> str:
    """A file name of a caption's letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")[:60] or "sound"
