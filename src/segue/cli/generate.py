"""`segue generate`: captions, and recordings where there are some, in; wav or flac files out."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from segue._version import __version__
from segue.audio.loudness import QUIETEST_LUFS, gain_to
from segue.audio.tags import read_form, read_settings
from segue.audio.write import SUFFIXES, write_wav
from segue.cli.edit_options import EDITING, Maker, edit_of, how_kept
from segue.cli.options import Device, finite
from segue.cli.which_model import DEFAULT, SHIPPED_MODEL, no_prompt, refuse_other_run, run_and_prompts
from segue.conditioners.tokens import count_tokens
from segue.devices import announced_device, device_of
from segue.files import make_folder
from segue.models.fields import asked_values
from segue.pipeline import Pipeline, Sampling
from segue.progress import Meter
from segue.types import UserError, import_extra, printable

MOST_SLUG = 60  # characters of the prompt in a file's name
SUBTYPES = ("PCM_16", "PCM_24", "FLOAT")
_SILENT = 1e-3  # of full scale (-60 dB); a sound whose peak is lower counts as silent
_MOST_NEGATIVE = 300  # characters; it has to find room in the metadata
_MOST_PATH = 400  # characters of the run's path in the metadata
# What --like takes over from a file, and of which type it is there.
_KEPT: dict[str, type] = {"seed": int, "number": int, "seconds": float, "steps": int, "solver": str, "guidance": float,
         "rescale": float, "loudness": float, "weights": str, "format": str, "subtype": str, "conditions": dict,
         "negative": str, "loop": bool, "from": str, "replace": str, "continue": float, "strength": float}  # fmt: skip


@dataclass(frozen=True)
class _Take:
    """One sound to make, and the file that it goes into."""

    caption: str
    seed: int
    number: int
    path: Path


@dataclass(frozen=True)
class _Output:
    """How files are written: encoding of samples, loudness in LUFS (None: as it comes), settings for the metadata."""

    subtype: str
    loudness: float | None
    settings: dict[str, Any]

    def write(self, take: _Take, wave: np.ndarray, rate_hz: int) -> bool:
        """Write a sound [A, T]; what had to be changed of its level is printed. Returns whether it is silent."""
        wanted = 1.0
        if self.loudness is not None and np.isfinite(wave).all():
            wanted, hindered = gain_to(wave, rate_hz, self.loudness)
            if hindered:
                print(printable(f"note: {take.path.name}: {hindered}"), file=sys.stderr)
        about = {"segue": __version__, "seed": take.seed, "number": take.number} | self.settings
        comment = json.dumps(about, ensure_ascii=False)
        gain = write_wav(take.path, wave * np.float32(wanted), rate_hz, take.caption, comment, self.subtype)
        # A hair above full scale is rounding, of a sound that was brought there.
        if gain < 0.999:
            line = f"{take.path.name}: {-20 * np.log10(gain):.1f} dB softer, so as not to clip; hint: --subtype FLOAT"
            print(printable(f"note: {line} keeps the level"), file=sys.stderr)
        return float(np.abs(wave).max()) * wanted < _SILENT


def generate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] PROMPT...",
            help="RUN: run folder, checkpoint folder, model.safetensors, or OWNER/NAME of the hub; left out or "
            "'default': the shipped model. The first word is RUN where it is 'default', exists as a path, or holds a "
            "slash and no space. PROMPT: a text to generate a sound from; each makes --count files.",
        ),
    ] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="Text file in UTF-8 with one prompt a line.")] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            help="File that `segue generate` wrote: its prompt, seed and settings are taken where no others are given."
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Recording to work on, with one of --replace, --continue, --strength and --loop.",
            show_default=False,
        ),
    ] = None,
    replace_: Annotated[
        str | None,
        typer.Option("--replace", help="Seconds of the recording that are made anew, as START-END, such as 2.0-3.5."),
    ] = None,
    continue_: Annotated[
        float | None, typer.Option("--continue", help="Seconds that the recording is continued by.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="Noise that is put on the recording and taken away under the prompt, above 0 to 1: a variation of it, "
            "the freer the more."
        ),
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Make the end of each sound meet its beginning.")] = False,
    negative: Annotated[
        str | None,
        typer.Option(help='What the sounds should not be, such as "noise, hum"; acts through --guidance.'),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("generated"),
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Length of each sound in seconds; default: that of the training clips, in which a sound may end "
            "earlier, where those it learned from did."
        ),
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            help="Value of a field that the model was trained with by segue encode --condition, such as bpm=120. May "
            "be repeated."
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(help="Number of takes of each prompt; their seeds are --seed, --seed + 1 and so on.", min=1)
    ] = 1,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the noise; the same seed gives the same bytes; default: 0.")
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(
            "--number",
            "--take",
            help="Number of the first prompt: `--number 5` with the sixth prompt of a list makes its file again; "
            "default: 0.",
            min=0,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Number of solver steps; default: 24, of a public model what its pipeline takes.")
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(
            help="Solver of the sampling ODE: euler, heun, multistep or dpm; default: multistep, of a public model "
            "that of its pipeline."
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Scale of classifier-free guidance; 1: none; default: 2, of a public model that of its pipeline."
        ),
    ] = None,
    rescale: Annotated[
        float | None, typer.Option(help="Share of guidance rescaling, 0 to 1; default: 0.7, of others' models 0.")
    ] = None,
    container: Annotated[
        str | None, typer.Option("--format", help="Format of the files: wav or flac; default: wav.")
    ] = None,
    subtype: Annotated[
        str | None,
        typer.Option(
            help="Encoding of the samples: PCM_16, PCM_24 or FLOAT (wav alone; keeps every level); default: PCM_16."
        ),
    ] = None,
    loudness: Annotated[
        float | None,
        typer.Option(
            help="Loudness of each sound in LUFS, such as -14; never louder than its peak allows; default: as it comes."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Number of sounds that are computed together.", min=1)] = 16,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    weights: Annotated[
        str | None, typer.Option(help="Weights to use: ema (averaged) or model (as trained); default: ema.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Generate sounds from prompts, or edit a recording: continue it, replace a stretch, vary it, loop it.

    Each file keeps its prompt, seed, number and settings in its metadata, and number and seed in its name. Files appear
    as they are made, and none is replaced without --overwrite.
    """
    # Prompts of the command line come first, and are numbered before those of a file.
    run, prompts = run_and_prompts(words or [])
    captions = [*prompts, *(_read_prompts(prompts_file) if prompts_file else [])]
    given: dict[str, Any] = {
        "seed": seed,
        "number": number,
        "seconds": seconds,
        "steps": steps,
        "solver": solver,
        "guidance": guidance,
        "rescale": rescale,
        "loudness": loudness,
        "weights": weights,
        "format": container,
        "subtype": subtype,
        "negative": negative,
        "loop": loop or None,
        "from": None if source is None else str(source),
        "replace": replace_,
        "continue": continue_,
        "strength": strength,
        "conditions": _conditions(condition) if condition else None,
    }
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    # Options win over what --like names; its number belongs to its own prompt.
    if like is not None:
        kept = _settings_of(like)
        refuse_other_run(like, kept, run)
        left_out = {"number"} if captions else set()
        # Another edit is another sound: nothing of the file's own edit, nor its length, belongs to it.
        if EDITING & asked.keys():
            left_out |= EDITING | {"seconds"}
        captions = captions or [kept["prompt"]]
        asked = {name: kept[name] for name in _KEPT.keys() - left_out if name in kept} | asked
    encoding = asked.get("subtype", "PCM_16")
    form = _form(asked.get("format", "wav"), encoding)
    finite("--rescale", asked.get("rescale"), 0.0, 1.0)
    finite("--loudness", asked.get("loudness"), QUIETEST_LUFS, 0.0)
    edit = edit_of(asked)
    if negative is not None and not negative.strip():
        raise UserError("--negative: an empty one; hint: leave it away, or say what the sounds should not be")
    if negative is not None and len(negative) > _MOST_NEGATIVE:
        raise UserError(f"--negative: {len(negative)} characters; hint: give at most {_MOST_NEGATIVE}")
    if not captions:
        raise UserError(no_prompt(run))
    for text in [*captions, asked.get("negative", "")]:
        _refuse_not_text(text)
    of_sampling = _of_sampling(asked)
    Sampling(**of_sampling)  # refused before the model is loaded
    place = device_of(device)
    if "loudness" in asked:
        import_extra("pyloudnorm", "evaluate")
    # All takes of a prompt follow each other. Number and seed stand in the name: any file can be made again by them.
    first, lowest = asked.get("number", 0), asked.get("seed", 0)
    takes = [
        _Take(caption, s, n, out / f"{n:03d}-{_slug(caption)}-seed{s}{SUFFIXES[form]}")
        for n, caption in enumerate(captions, first)
        for s in range(lowest, lowest + count)
    ]
    # All names are checked before the model is loaded: nothing is half done.
    if not overwrite:
        _refuse_existing([take.path for take in takes])
    kind = asked.get("weights", "ema")
    pipeline = Pipeline.load(run, kind, place)
    if run is None:
        print(f"model: {SHIPPED_MODEL}", file=sys.stderr)
    announced_device(place)  # only now: what cannot be loaded is said in one line alone
    length_sec = pipeline.samples_of(asked.get("seconds")) / pipeline.codec.sample_rate_hz
    conditions = _checked(pipeline, asked.get("conditions", {}))
    sampling = replace(pipeline.own_sampling, **of_sampling)
    if "negative" in asked and sampling.guidance_scale == 1:
        raise UserError("--negative acts through guidance, whose scale is 1 here; hint: --guidance 3, or no --negative")
    own: dict[str, Any] = {name: asked[name] for name in ("negative", "loop") if name in asked}
    # A length that is drawn for each sound is drawn again by --like.
    of_length = length_sec if "seconds" in asked or "loop" in own or not pipeline.saved.card.lengths else None
    maker = Maker(
        pipeline, sampling, of_length, own | {"conditions": conditions}, None if edit is None else edit.bound(pipeline)
    )
    # Words that the encoder cuts or does not know are told: the sound cannot follow them.
    counts = count_tokens(pipeline.conditioner, captions)
    for note in counts.notes("prompt") if counts else []:
        print(f"note: {note}", file=sys.stderr)
    if maker.fits_parts:
        print(f"note: {how_kept(pipeline)}", file=sys.stderr)
    make_folder(out)
    settings: dict[str, Any] = {
        "run": (run or DEFAULT)[-_MOST_PATH:],  # the end of a long path says most of the run
        "weights": kind,
        **({} if of_length is None or edit is not None else {"seconds": of_length}),
        **({} if edit is None else edit.settings),
        **own,
        "steps": sampling.steps,
        "solver": sampling.solver,
        "guidance": sampling.guidance_scale,
        "rescale": sampling.guidance_rescale,
        **({"loudness": asked["loudness"]} if "loudness" in asked else {}),
        **({"conditions": conditions} if conditions else {}),
    }
    output = _Output(encoding.upper(), asked.get("loudness"), settings)
    _generate(maker, takes, batch_size if edit is None else 1, output)


def _conditions(given: Sequence[str]) -> dict[str, str]:
    """Names and values of --condition.

    Raises:
        UserError: no name or no value, or a name that is given twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, _, value = (part.strip() for part in text.partition("="))
        if not name or not value or name in found:
            raise UserError(f"--condition {printable(text)}: hint: write NAME=VALUE, such as bpm=120, once a name")
        found[name] = value
    return found


def _checked(pipeline: Pipeline, conditions: dict[str, float | str]) -> dict[str, float | str]:
    """Conditions as the model takes them; what it was not trained on is printed."""
    config = pipeline.model.config
    values, notes = asked_values(getattr(config, "numbers", ()), getattr(config, "labels", ()), conditions)
    for note in notes:
        print(printable(f"note: {note}"), file=sys.stderr)
    return values


def _form(container: str, subtype: str) -> str:
    """The container, in small letters.

    Raises:
        UserError: one that is not written, or samples that it cannot hold.
    """
    form = container.lower()
    if form not in SUFFIXES:
        raise UserError(f"--format {container}: use one of {', '.join(SUFFIXES)}")
    if subtype.upper() not in SUBTYPES:
        raise UserError(f"--subtype {subtype}: use one of {', '.join(SUBTYPES)}")
    if form == "flac" and subtype.upper() == "FLOAT":
        raise UserError("--subtype FLOAT: flac holds whole numbers; hint: --subtype PCM_24, or --format wav")
    return form


def _of_sampling(asked: dict[str, Any]) -> dict[str, Any]:
    """What was asked for of the fields of `Sampling`."""
    names = {"steps": "steps", "solver": "solver", "guidance": "guidance_scale", "rescale": "guidance_rescale"}
    return {names[name]: value for name, value in asked.items() if name in names}


def _settings_of(path: Path) -> dict[str, Any]:
    """What --like names.

    Raises:
        UserError: no such file, or not one of ours.
    """
    if not path.is_file():
        raise UserError(f"--like {path}: no such file; hint: name a file that segue generate wrote")
    found = read_settings(path)
    fits = all(
        isinstance(found[name], (kind, int) if kind is float else kind) for name, kind in _KEPT.items() if name in found
    )
    if not found or not found["prompt"] or not fits:
        raise UserError(f"--like {path}: no settings of segue generate in it; hint: name a file that it wrote")
    return found | read_form(path)


def _generate(maker: Maker, takes: Sequence[_Take], batch_size: int, output: _Output) -> None:
    """Compute batch after batch, and write each before the next one begins; say how many are silent."""
    silent = 0
    total = maker.evaluations(len(takes), batch_size)
    done = 0
    unit = "sounds" if total is None else "evaluations"
    with Meter("generating", total or len(takes), unit=unit, first_line_sec=15) as bar:

        def advance() -> None:
            nonlocal done
            done += 1
            bar.update(first if total is None else done)

        for first in range(0, len(takes), batch_size):
            part = takes[first : first + batch_size]
            # Written at once: a killed command keeps what it has made.
            for take, wave in zip(
                part, maker.make([t.caption for t in part], [t.seed for t in part], [t.number for t in part], advance)
            ):
                silent += output.write(take, wave.numpy(), maker.pipeline.codec.sample_rate_hz)
                print(printable(str(take.path)), flush=True)
    if silent:
        print(
            f"note: {silent} of {len(takes)} sounds {'is' if silent == 1 else 'are'} silent; hint: a model that has "
            "seen few examples makes no sound yet; train it for longer",
            file=sys.stderr,
        )


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
