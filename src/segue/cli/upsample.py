"""`segue upsample`: narrow sound files in, wide ones out."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from segue.audio.sound import BadAudio
from segue.audio.stereo import MODES
from segue.audio.write import SUBTYPES, SUFFIXES
from segue.cli.options import Device, finite
from segue.devices import announced_device
from segue.memory import peak_bytes
from segue.progress import Meter
from segue.types import UserError, first_line, printable
from segue.upsampling.chunk_length import parse_memory
from segue.upsampling.enhance import Resolver
from segue.upsampling.io_paths import Job, claimed_seconds, find_jobs
from segue.upsampling.load import WIDEST_HZ, load_resolver
from segue.upsampling.prepare import Settings, prepare
from segue.upsampling.source import SOURCES
from segue.upsampling.upsample import carry_out, describe

_MOST_FAILURES = 125  # what an exit code can count; the shell takes the ones above


def upsample(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] IN OUT",
            help="RUN: folder of a predictor or of a run, checkpoint or model.safetensors; left out or 'default': a "
            "shipped model. "
            "IN: a sound file, a folder, or a .txt list of files. OUT: a .wav or .flac file, or a folder.",
        ),
    ],
    rate: Annotated[
        int | None,
        typer.Option(
            help="Sample rate of the output in Hz, up to 48000 by the shipped models; default: the model's own, or "
            "16000."
        ),
    ] = None,
    cutoff: Annotated[
        float | None, typer.Option(help="Frequency in Hz where the inputs' band ends; default: detected in each file.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="Where the recordings come from: telephone (low edge raised, hole above the band filled), mp3 (holes "
            "filled), tape (hiss above the sound replaced) or auto (detected in each file); default: nothing is done."
        ),
    ] = None,
    low: Annotated[
        bool, typer.Option("--low", help="Add low harmonics from 50 Hz on, where a file's low end is missing.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Number of solver steps of a diffusion model; of 'default', 0 is the one-pass predictor (default), "
            "more the shipped diffusion model, to 16 kHz.",
            min=0,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise; the same seed gives the same bytes.")] = 0,
    max_memory: Annotated[
        str | None, typer.Option(help="Memory that the whole process may take, such as 1.5GB; default: no limit.")
    ] = None,
    chunk_seconds: Annotated[
        float | None,
        typer.Option(
            help="Length in seconds that is computed at once; 0: each file in one piece; default: 10, or less by "
            "--max-memory."
        ),
    ] = None,
    stereo: Annotated[
        str, typer.Option(help="Form in which the model takes two channels: mid-side or left-right.")
    ] = MODES[0],
    container: Annotated[
        str | None, typer.Option("--format", help="Format of the output: wav or flac; default: as the input.")
    ] = None,
    subtype: Annotated[
        str | None, typer.Option(help="Encoding of the output's samples, such as PCM_24; default: as the input.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Skip inputs whose output exists.")] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Take files that links lead to outside of the folder, too.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Do not count files that cannot be used as failures.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done; write nothing.")] = False,
    weights: Annotated[str, typer.Option(help="Weights to use: ema (averaged) or model (as trained).")] = "ema",
    device: Device = "auto",
) -> int:
    """Add the missing upper band to sound files. Loudness, length, channels and tags stay.

    Standard output gets one line of JSON a file; the exit code is the number of files that failed.
    """
    if len(places) not in (2, 3):
        raise UserError("give IN and OUT, or RUN, IN and OUT; for example: segue upsample default old new")
    # RUN is left out in most calls, so that places are counted from the end.
    run, given, out = ("default", *places)[-3:]
    jobs = find_jobs(Path(given), Path(out), follow_links)
    settings = _settings(rate, cutoff, source, low, steps, seed, max_memory, chunk_seconds, stereo, container,
                         subtype, overwrite, skip_existing)  # fmt: skip
    # The model is loaded once; settings that it cannot meet are refused before the first file.
    resolver = load_resolver(run, weights, announced_device(device), steps, rate)
    if run == "default" and not steps and resolver.sample_rate_hz < WIDEST_HZ:
        settings = replace(settings, wider_hz=WIDEST_HZ)
    # What the model can do is known only now.
    settings = _fitted(settings, resolver)
    failures = 0
    taken: set[Path] = set()
    done = 0.0

    def advance(seconds: float) -> None:
        nonlocal done
        done += seconds
        meter.update(done)

    # The total counts what headers claim: it is for the meter alone.
    total_sec = sum(claimed_seconds(job.source) for job in jobs)
    with Meter("upsampling", total_sec, unit="s of sound", rate_as="{:.1f} times real time") as meter:
        for job in jobs:
            # A file that fails is a line of its own, and the others are done.
            line = _one(job, resolver, settings, dry_run, skip_bad, taken, advance)
            failures += line["status"] == "failed"
            print(_json(line), flush=True)
    if failures and len(jobs) > 1:
        print(f"{failures} of {len(jobs)} files failed", file=sys.stderr)
    # A shell takes an exit code above 125 for a signal or a command that it could not run.
    return min(failures, _MOST_FAILURES)


def _settings(
    rate, cutoff, source, low, steps, seed, max_memory, chunk_seconds, stereo, container, subtype, overwrite, skip
) -> Settings:
    finite("--chunk-seconds", chunk_seconds, 0.0)
    if rate is not None and rate < 1000:
        raise UserError(f"--rate {rate}: give at least 1000 Hz (the rate is in Hz, not kHz)")
    if source is not None and source not in SOURCES:
        raise UserError(f"--source {source}: use one of {', '.join(SOURCES)}")
    if stereo not in MODES:
        raise UserError(f"--stereo {stereo}: use one of {', '.join(MODES)}")
    if container is not None and container.lower() not in SUFFIXES:
        raise UserError(f"--format {container}: use one of {', '.join(SUFFIXES)}")
    if subtype is not None and subtype.upper() not in SUBTYPES:
        raise UserError(f"--subtype {subtype}: use one of {', '.join(SUBTYPES)}")
    return Settings(
        # 0 stands for the model's rate, which is not known before it is loaded.
        rate_hz=rate or 0,
        cutoff_hz=cutoff,
        source=source,
        low=low,
        steps=steps,
        seed=seed,
        chunk_sec=math.inf if chunk_seconds == 0 else chunk_seconds,
        max_memory=None if max_memory is None else parse_memory(max_memory),
        stereo=stereo,
        container=container and container.lower(),
        subtype=subtype and subtype.upper(),
        overwrite=overwrite,
        skip_existing=skip,
    )


def _fitted(settings: Settings, resolver: Resolver) -> Settings:
    """The settings for this model.

    Raises:
        UserError: it cannot make the rate that is asked for.
    """
    model_hz = resolver.sample_rate_hz
    rate_hz = settings.rate_hz or resolver.sample_rate_hz
    if rate_hz > model_hz:
        raise UserError(
            f"--rate {rate_hz}: this model makes {model_hz} Hz, and more would hold nothing more; hint: --rate "
            f"{model_hz} or less, or a model trained at {rate_hz} Hz"
        )
    # The peak after loading the model: what a memory limit has left for chunks.
    return replace(settings, rate_hz=rate_hz, in_use=peak_bytes())


def _one(
    job: Job,
    resolver: Resolver,
    settings: Settings,
    dry_run: bool,
    skip_bad: bool,
    taken: set[Path],
    advance: Callable[[float], None],
) -> dict:
    """A file's line of JSON; what is wrong with it goes to standard error, too. Adds its output to `taken`."""
    status = "failed"
    try:
        work = prepare(job, resolver, settings, taken)
        # Taken also in a dry run, which then shows that two outputs would have one name.
        taken.add(work.output)
        line = describe(work, settings, resolver) if dry_run else carry_out(work, resolver, settings, advance)
    except BadAudio as error:
        status = "left out" if skip_bad else "failed"
        reason = " ".join(str(error).split())
    except UserError as error:
        reason = " ".join(str(error).split())
    except OSError as error:  # such as a name that is too long with the output's suffix
        reason = f"{job.source}: {error.strerror or error}; hint: rename it, or see that its folder can be read"
    except (MemoryError, RuntimeError) as error:
        # Other RuntimeErrors are our own faults, and must show as such.
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        reason = f"{job.source}: out of memory ({first_line(error)}); hint: a lower --max-memory or --chunk-seconds"
    else:
        for note in line["notes"]:
            _say(f"{job.source}: {note}")
        return line
    _say(f"{'left out' if status == 'left out' else 'segue:'} {reason}")
    return {"input": str(job.source), "status": status, "reason": reason, "notes": []}


def _json(line: dict) -> str:
    """One line of JSON; names that are no text come through as what json reads back to the same name."""
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    try:
        # A name of bytes that are no UTF-8 is written in escapes, from which json reads it back.
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(line, allow_nan=False)
    return text


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)
