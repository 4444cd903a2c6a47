"""What is to be done with a file: it is read through once, and the work is planned; nothing is written."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segue.audio.analyse import BITS, Analysis, analyse
from segue.audio.chunks import Plan, make_plan
from segue.audio.read import read_claim
from segue.audio.sound import TOO_SHORT_SEC, BadAudio, Header
from segue.audio.stereo import MODES
from segue.audio.write import OutputFormat, container_of, output_format
from segue.types import UserError
from segue.upsampling.chunk_length import chunk_samples
from segue.upsampling.enhance import LOOK_SEC, Resolver
from segue.upsampling.io_paths import Job
from segue.upsampling.source import Treatment, treatment_of

FULL_SHARE = 0.85  # of half the output's rate
FULL_HZ = 19_000.0  # nobody can tell what is missing above
_BESIDE = 0.05  # this far outside of what it was trained for, a model may be trusted
_OFFSET = 5e-3  # of full scale: worth a word
_OTHER = 0.02  # a cutoff that is given and lies further from the detected one is worth a word


@dataclass(frozen=True)
class Settings:
    """What the user wants, the same for all files; None leaves it to the model or the input.

    Attributes:
        rate_hz: of the output, at most the model's.
        cutoff_hz: instead of the detected one.
        source: what the files have been through, one of `source.SOURCES`; None: nothing is done about it.
        low: whether a missing low end is restored.
        steps, seed: of the sampling.
        chunk_sec: length of a chunk's core; `math.inf`: one chunk.
        max_memory, in_use: bytes of the whole process, and bytes taken before the first chunk.
        stereo: one of `stereo.MODES`.
        container, subtype: of the output.
        overwrite, skip_existing: what to do about an output that is there already; else it is an error.
        wider_hz: rate of another model that a file whose band is full already is advised to take; 0: there is none.
    """

    rate_hz: int
    cutoff_hz: float | None = None
    source: str | None = None
    low: bool = False
    steps: int | None = None
    seed: int = 0
    chunk_sec: float | None = None
    max_memory: int | None = None
    in_use: int = 0
    stereo: str = MODES[0]
    container: str | None = None
    subtype: str | None = None
    overwrite: bool = False
    skip_existing: bool = False
    wider_hz: int = 0


@dataclass(frozen=True)
class Work:
    """What is to be done with one file: this itself leaves it alone, since its output is there already.

    Attributes:
        header: of the input, as the file says it; counted where the file was analysed.
        began: when it was looked at, in seconds of the monotonic clock.
    """

    job: Job
    output: Path
    began: float
    header: Header
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Copying(Work):
    """A file whose band is full already.

    Attributes:
        cutoff_hz, found_by: where its band ends, and how that was found ("--cutoff": it was told).
    """

    analysis: Analysis
    cutoff_hz: float
    found_by: str
    format: OutputFormat


@dataclass(frozen=True)
class Upsampling(Copying):
    """A file that gets a new upper band, in the chunks of `plan`, and what `treatment` says beside."""

    plan: Plan
    treatment: Treatment

    @property
    def samples(self) -> int:
        """Of the output."""
        return round(self.header.frames * self.format.rate_hz / self.header.sample_rate_hz)


def prepare(job: Job, resolver: Resolver, settings: Settings, taken: Collection[Path] = ()) -> Work:
    """Look through a file and decide; writes nothing. `taken` are the outputs of other files.

    Raises:
        BadAudio: it cannot be used.
        UserError: its output is there already, or a setting does not fit it.
    """
    began = time.monotonic()
    if job.problem:
        raise BadAudio(job.source, job.problem)
    # Where it goes, and whether that is free.
    claim = read_claim(job.source)
    container = job.container or settings.container or container_of(claim)
    output = job.output(container)
    # Planned before anything runs, so that two files cannot overwrite each other halfway.
    if output in taken:
        raise UserError(f"{job.source}: another input has the same name, and so has its output; hint: rename one")
    if output.exists() and settings.skip_existing:
        return Work(job, output, began, claim, ("the output is there already",))
    if output.exists() and not settings.overwrite:
        raise UserError(f"{output}: exists already; hint: --overwrite, --skip-existing, or another output folder")
    if claim.channels > 2:
        raise BadAudio(job.source, f"{claim.channels} channels; hint: split it into mono or stereo files")

    # What it holds.
    analysis = analyse(job.source, claim)
    header = replace(claim, frames=analysis.frames)
    if header.seconds < TOO_SHORT_SEC:
        raise BadAudio(job.source, f"too short: {header.frames} samples, {1000 * header.seconds:.1f} ms")
    treatment = treatment_of(settings.source, settings.low, header, analysis)
    cutoff_hz, found_by = _cutoff(job, header, treatment, resolver, settings)
    notes = _notes(header, analysis)

    # What comes of it.
    rate_hz = settings.rate_hz
    # A cutoff that the user gives is followed even where the band looks full.
    if settings.cutoff_hz is None and cutoff_hz >= min(FULL_SHARE * rate_hz / 2, FULL_HZ):
        full = f"full-band already: sound up to {cutoff_hz:,.0f} Hz, {rate_hz:,} Hz can add nothing; copied"
        if cutoff_hz < FULL_HZ and settings.wider_hz:
            full += f"; hint: --rate {settings.wider_hz}"
        same = output_format(header, container, settings.subtype, header.sample_rate_hz)
        return Copying(job, output, began, header, (full, *notes), analysis, cutoff_hz, found_by, same)
    notes = (*treatment.notes, *notes)
    given_hz = settings.cutoff_hz
    if given_hz is not None and abs(given_hz - treatment.cutoff_hz) > _OTHER * treatment.cutoff_hz:
        found = f"{treatment.cutoff_hz:,.0f} Hz was detected ({treatment.found_by})"
        notes = (*notes, f"--cutoff {given_hz:,.0f} Hz is followed; {found}")
    lowest_hz, highest_hz = resolver.cutoffs_hz
    if not lowest_hz * (1 - _BESIDE) <= cutoff_hz <= highest_hz * (1 + _BESIDE):
        notes = (
            *notes,
            f"ends at {cutoff_hz:,.0f} Hz; the model was trained for {lowest_hz:,.0f} to {highest_hz:,.0f} Hz",
        )
    wide = output_format(header, container, settings.subtype, rate_hz)
    plan = _plan(header, resolver, settings)
    return Upsampling(job, output, began, header, notes, analysis, cutoff_hz, found_by, wide, plan, treatment)


def _cutoff(job: Job, header: Header, found: Treatment, resolver: Resolver, settings: Settings) -> tuple[float, str]:
    """Where the band ends, and how that was found."""
    if settings.cutoff_hz is None:
        return found.cutoff_hz, found.found_by
    # Half the input's rate is where a file ends that fills it; at half the model's nothing would be missing.
    top_hz = min(header.sample_rate_hz, resolver.sample_rate_hz) / 2
    is_open = settings.cutoff_hz == top_hz and header.sample_rate_hz < resolver.sample_rate_hz
    if not (0 < settings.cutoff_hz < top_hz or is_open):
        raise UserError(
            f"--cutoff {settings.cutoff_hz:g}: {job.source} can hold sound up to {top_hz:g} Hz; hint: a lower one"
        )
    return settings.cutoff_hz, "--cutoff"


def _plan(header: Header, resolver: Resolver, settings: Settings) -> Plan:
    rate_hz = resolver.sample_rate_hz
    total = round(header.frames * rate_hz / header.sample_rate_hz)
    # The model's own view, or what gate and limiter look at, whichever is wider.
    context = max(resolver.context_samples, math.ceil(LOOK_SEC * rate_hz))
    # A stereo model computes both sides of each channel.
    channels = header.channels * resolver.audio_channels
    core = chunk_samples(settings.max_memory, settings.in_use, context, channels, rate_hz)
    if settings.chunk_sec is not None:
        asked = total if math.isinf(settings.chunk_sec) else round(settings.chunk_sec * rate_hz)
        # The memory limit still binds where a chunk length was asked for.
        core = asked if settings.max_memory is None else min(core, asked)
    return make_plan(total, core, context, resolver.hop_samples, rate_hz)


def _notes(header: Header, analysis: Analysis) -> tuple[str, ...]:
    notes = []
    if header.subtype in ("PCM_U8", "PCM_S8"):
        notes.append("8-bit samples: their hiss hides a quiet new band; --subtype PCM_16 keeps it")
    if np.abs(analysis.offset).max() > _OFFSET:
        notes.append(f"DC offset {float(analysis.offset[np.abs(analysis.offset).argmax()]):+.3f}, kept")
    # At full scale only integers clip: floats may pass beyond it.
    if analysis.clipped and header.subtype in BITS:
        notes.append(f"{analysis.clipped:,} input samples at full scale")
    if analysis.bandwidth.found_by == "silence":
        notes.append("silent; nothing is added")
    return tuple(notes)
