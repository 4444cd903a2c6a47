"""One file from narrow to wide: surveyed, planned, streamed through the model, written whole, reported."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segue.audio.analyse import BITS, Survey, survey
from segue.audio.chunks import Plan, cut, joined, make_plan
from segue.audio.read import read_blocks, read_claim
from segue.audio.resample import resampled
from segue.audio.sound import TOO_SHORT_SEC, BadAudio, Header
from segue.audio.stereo import MODES
from segue.audio.tags import read_tags
from segue.audio.write import Form, container_of, copy, form_of, is_plain, write_sound
from segue.types import UserError
from segue.upsampling.enhance import LOOK_SEC, Enhancer, Resolver
from segue.upsampling.jobs import Job
from segue.upsampling.memory import chunk_samples

FULL_SHARE = 0.85  # of half the output's rate
FULL_HZ = 19_000.0  # nobody hears what is missing above
_BESIDE = 0.05  # this far outside of what it was trained for, a model may be trusted
_OFFSET = 5e-3  # of full scale: worth a word
_BLOCK_SEC = 2.0


@dataclass(frozen=True)
class Settings:
    """What the user wants, the same for all files; None leaves it to the model or the input.

    Attributes:
        rate_hz: of the output, at most the model's.
        cutoff_hz: instead of the detected one.
        steps, seed: of the sampling.
        chunk_sec: length of a chunk's core; `math.inf`: one chunk.
        max_memory, in_use: bytes of the whole process, and bytes taken before the first chunk.
        stereo: one of `stereo.MODES`.
        container, subtype: of the output.
        overwrite, skip_existing: what to do about an output that is there already; else it is an error.
    """

    rate_hz: int
    cutoff_hz: float | None = None
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


@dataclass(frozen=True)
class Work:
    """What is to be done with one file; `action` is "upsample", "copy" or "skip"; `began` is when it was looked at."""

    job: Job
    action: str
    output: Path
    began: float
    header: Header | None = None
    survey: Survey | None = None
    cutoff_hz: float = 0.0
    found_by: str = ""
    form: Form | None = None
    plan: Plan | None = None
    notes: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """Of the output."""
        return round(self.header.frames * self.form.rate_hz / self.header.sample_rate_hz)


def prepare(job: Job, resolver: Resolver, settings: Settings, taken: Collection[Path] = ()) -> Work:
    """Look through a file and decide; writes nothing. `taken` are the outputs of other files.

    Raises:
        BadAudio: it cannot be used.
        UserError: its output is there already, or a setting does not fit it.
    """
    began = time.monotonic()
    if job.problem:
        raise BadAudio(job.source, job.problem)
    header = read_claim(job.source)
    settings = replace(settings, container=job.container or settings.container or container_of(header))
    output = job.output(settings.container)
    if output in taken:
        raise UserError(f"{job.source}: another input has the same name, and so has its output; hint: rename one")
    if output.exists() and settings.skip_existing:
        return Work(job, "skip", output, began, header, notes=("the output is there already",))
    if output.exists() and not settings.overwrite:
        raise UserError(f"{output}: exists already; hint: --overwrite, --skip-existing, or another output folder")
    if header.channels > 2:
        raise BadAudio(job.source, f"{header.channels} channels; hint: split it into mono or stereo files")
    found = survey(job.source, header)
    header = replace(header, frames=found.frames)
    if header.seconds < TOO_SHORT_SEC:
        raise BadAudio(job.source, f"too short: {header.frames} samples, {1000 * header.seconds:.1f} ms")
    cutoff_hz, found_by = found.bandwidth.cutoff_hz, found.bandwidth.found_by
    top_hz = min(header.sample_rate_hz, resolver.sample_rate_hz) / 2
    if settings.cutoff_hz is not None:
        if not 0 < settings.cutoff_hz < top_hz:
            raise UserError(
                f"--cutoff {settings.cutoff_hz:g}: {job.source} can hold sound up to {top_hz:g} Hz; hint: a lower one"
            )
        cutoff_hz, found_by = settings.cutoff_hz, "--cutoff"
    work = Work(job, "upsample", output, began, header, found, cutoff_hz, found_by, notes=_notes(header, found))
    if settings.cutoff_hz is None and cutoff_hz >= min(FULL_SHARE * settings.rate_hz / 2, FULL_HZ):
        return _as_copy(work, settings)
    lowest_hz, highest_hz = resolver.cutoffs_hz
    if not lowest_hz * (1 - _BESIDE) <= cutoff_hz <= highest_hz * (1 + _BESIDE):
        strange = f"ends at {cutoff_hz:,.0f} Hz; the model was trained for {lowest_hz:,.0f} to {highest_hz:,.0f} Hz"
        work = replace(work, notes=(*work.notes, strange))
    form = form_of(header, settings.container, settings.subtype, settings.rate_hz)
    return replace(work, form=form, plan=_plan(header, resolver, settings))


def _as_copy(work: Work, settings: Settings) -> Work:
    header = work.header
    note = f"full-band already: sound up to {work.cutoff_hz:,.0f} Hz, {settings.rate_hz:,} Hz can add nothing; copied"
    form = form_of(header, settings.container, settings.subtype, header.sample_rate_hz)
    return replace(work, action="copy", form=form, notes=(note, *work.notes))


def _plan(header: Header, resolver: Resolver, settings: Settings) -> Plan:
    rate_hz = resolver.sample_rate_hz
    total = round(header.frames * rate_hz / header.sample_rate_hz)
    context = max(resolver.context_samples, math.ceil(LOOK_SEC * rate_hz))
    core = chunk_samples(settings.max_memory, settings.in_use, context, header.channels, rate_hz)
    if settings.chunk_sec is not None:
        asked = None if math.isinf(settings.chunk_sec) else round(settings.chunk_sec * rate_hz)
        core = asked if settings.max_memory is None else min(core, asked or core)
    return make_plan(total, core, context, resolver.hop_samples, rate_hz)


def _notes(header: Header, found: Survey) -> tuple[str, ...]:
    notes = []
    if header.subtype in ("PCM_U8", "PCM_S8"):
        notes.append("8-bit samples: their hiss hides a quiet new band; --subtype PCM_16 keeps it")
    if np.abs(found.offset).max() > _OFFSET:
        notes.append(f"DC offset {float(found.offset[np.abs(found.offset).argmax()]):+.3f}, kept")
    if found.clipped and header.subtype in BITS:
        notes.append(f"{found.clipped:,} input samples at full scale")
    if found.bandwidth.found_by == "silence":
        notes.append("silent; nothing is added")
    return tuple(notes)


def carry_out(work: Work, resolver: Resolver, settings: Settings, on_progress: Callable[[float], None]) -> dict:
    """Do it, and report what was detected and done: plain data, one line of JSON.

    Args:
        on_progress: called with the seconds of sound that each step has brought.

    Raises:
        BadAudio: the file changed under our hands.
        UserError: the output cannot be written.
    """
    report = describe(work, settings, resolver)
    if work.action == "copy":
        _copy(work)
        on_progress(work.header.seconds)
    elif work.action == "upsample":
        report |= _upsample(work, resolver, settings, on_progress)
    took = time.monotonic() - work.began
    report["status"] = {"copy": "copied", "skip": "skipped", "upsample": "upsampled"}[work.action]
    return report | {"took_sec": round(took, 3), "real_time_factor": round(work.header.seconds / max(took, 1e-9), 2)}


def describe(work: Work, settings: Settings, resolver: Resolver) -> dict:
    """What was detected, and what is to be done."""
    header, found = work.header, work.survey
    report = {
        "input": str(work.job.source),
        "output": str(work.output),
        "status": f"would {work.action}",
        "input_rate_hz": header.sample_rate_hz,
        "channels": header.channels,
        "seconds": round(header.seconds, 3),
        "input_subtype": header.subtype,
    }
    if found is not None:
        report |= {
            "cutoff_hz": round(work.cutoff_hz, 1),
            "cutoff_found_by": work.found_by,
            "detected_cutoff_hz": round(found.bandwidth.cutoff_hz, 1),
            "input_peak": round(found.peak, 6),
            "input_rms_db": _db(found.rms),
            "input_clipped": found.clipped,
            "dc_offset": [round(float(x), 6) for x in found.offset],
            "rate_hz": work.form.rate_hz,
            "subtype": work.form.subtype,
        }
    if work.plan is not None:
        report |= {
            "steps": settings.steps or resolver.steps,
            "seed": settings.seed,
            "chunks": work.plan.count,
            "chunk_sec": round(work.plan.core / resolver.sample_rate_hz, 3),
            "context_sec": round(work.plan.context / resolver.sample_rate_hz, 3),
        }
        if header.channels == 2:
            report["stereo"] = settings.stereo
    return report | {"notes": list(work.notes)}


def _copy(work: Work) -> None:
    header, form = work.header, work.form
    same = container_of(header).upper() == header.format.replace("WAVEX", "WAV") == form.container.upper()
    if same and form.subtype == header.subtype and is_plain(work.job.source, header.frames):
        copy(work.job.source, work.output)
        return
    blocks = read_blocks(work.job.source)
    write_sound(work.output, blocks, form, header.frames, read_tags(work.job.source))


@dataclass
class _Meter:
    """What passes by on its way to the file."""

    full_scale: float | None
    peak: float = 0.0
    clipped: int = 0
    squares: float = 0.0
    values: int = 0

    def watch(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            magnitude = np.abs(block)
            self.peak = max(self.peak, float(magnitude.max(initial=0.0)))
            if self.full_scale is not None:
                self.clipped += int((magnitude > self.full_scale).sum())
            self.squares += float(np.square(block, dtype=np.float64).sum())
            self.values += block.size
            yield block


def _upsample(work: Work, resolver: Resolver, settings: Settings, on_progress: Callable[[float], None]) -> dict:
    header, form, plan, source = work.header, work.form, work.plan, work.job.source
    sampling = {"steps": settings.steps or resolver.steps, "seed": settings.seed, "stereo": settings.stereo}
    enhance = Enhancer(resolver, work.survey, work.cutoff_hz, **sampling)
    blocks = read_blocks(source, round(header.sample_rate_hz * _BLOCK_SEC))
    low = resampled(blocks, header.sample_rate_hz, resolver.sample_rate_hz, header.channels, plan.total)

    def pieces():
        for window, samples in cut(low, plan):
            wide = enhance(samples, window.start)
            yield window, wide[window.first - window.start : window.last - window.start]
            on_progress((window.last - window.first) / resolver.sample_rate_hz)

    out = resampled(joined(pieces(), plan), resolver.sample_rate_hz, form.rate_hz, header.channels, work.samples)
    meter = _Meter(form.full_scale)
    write_sound(work.output, meter.watch(out), form, work.samples, read_tags(source))
    tally = enhance.tally
    offset = float(np.square(work.survey.offset).mean())
    notes = list(work.notes)
    if meter.clipped:
        notes.append(f"{meter.clipped:,} output samples clipped; hint: --subtype FLOAT keeps them")
    if header.sample_rate_hz > form.rate_hz:
        notes.append(
            f"{header.sample_rate_hz:,} Hz held nothing above {work.cutoff_hz:,.0f} Hz; now {form.rate_hz:,} Hz"
        )
    return {
        "output_peak": round(meter.peak, 6),
        "output_rms_db": _db(math.sqrt(max(0.0, meter.squares / max(1, meter.values) - offset))),
        "output_clipped": meter.clipped,
        "silent_share": round(tally.silent / max(1, tally.samples), 4),
        "held_back_share": round(tally.limited / max(1, tally.samples), 6),
        "notes": notes,
    }


def _db(amplitude: float) -> float | None:
    return round(20.0 * math.log10(amplitude), 2) if amplitude > 1e-12 else None
