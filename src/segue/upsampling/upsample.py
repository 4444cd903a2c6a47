"""One file from narrow to wide: streamed through the model as `prepare` has planned it, written whole, reported."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from segue.audio.chunks import cut, joined
from segue.audio.interpolate import interpolated
from segue.audio.read import read_blocks
from segue.audio.resample import resampled
from segue.audio.tags import read_tags
from segue.audio.write import container_of, copy, is_plain, write_sound
from segue.upsampling.enhance import Enhancer, Resolver
from segue.upsampling.prepare import Copying, Settings, Upsampling, Work

_BLOCK_SEC = 2.0


def carry_out(work: Work, resolver: Resolver, settings: Settings, on_progress: Callable[[float], None]) -> dict:
    """Do it, and report what was detected and done: plain data, one line of JSON.

    Args:
        on_progress: called with the seconds of sound that each step has brought.

    Raises:
        BadAudio: the file changed under our hands.
        UserError: the output cannot be written.
    """
    report = describe(work, settings, resolver)
    if isinstance(work, Upsampling):
        report |= _upsample(work, resolver, settings, on_progress)
    elif isinstance(work, Copying):
        _copy(work)
        on_progress(work.header.seconds)
    took = time.monotonic() - work.began
    # The status is set last: what is reported as done has been done.
    report["status"] = _action(work)[1]
    return report | {"took_sec": round(took, 3), "real_time_factor": round(work.header.seconds / max(took, 1e-9), 2)}


def describe(work: Work, settings: Settings, resolver: Resolver) -> dict:
    """What was detected, and what is to be done."""
    header = work.header
    report: dict = {
        "input": str(work.job.source),
        "output": str(work.output),
        "status": f"would {_action(work)[0]}",
        "input_rate_hz": header.sample_rate_hz,
        "channels": header.channels,
        "seconds": round(header.seconds, 3),
        "input_subtype": header.subtype,
    }
    # Whatever was analysed.
    if isinstance(work, Copying):
        found = work.analysis
        report |= {
            "cutoff_hz": round(work.cutoff_hz, 1),
            "cutoff_found_by": work.found_by,
            "detected_cutoff_hz": round(found.bandwidth.cutoff_hz, 1),
            "input_peak": round(found.peak, 6),
            "input_rms_db": _db(found.rms),
            "input_clipped": found.clipped,
            "dc_offset": [round(float(x), 6) for x in found.offset],
            "rate_hz": work.format.rate_hz,
            "subtype": work.format.subtype,
        }
    # Whatever goes through the model.
    if isinstance(work, Upsampling):
        report |= {
            "source": work.treatment.source,
            "low_hz": work.treatment.low_hz,
            "steps": resolver.steps if settings.steps is None else settings.steps,
            "seed": settings.seed,
            "chunks": work.plan.count,
            "chunk_sec": round(work.plan.core / resolver.sample_rate_hz, 3),
            "context_sec": round(work.plan.context / resolver.sample_rate_hz, 3),
        }
        if header.channels == 2:
            report["stereo"] = settings.stereo
    return report | {"notes": list(work.notes)}


def _action(work: Work) -> tuple[str, str]:
    """What is done with a file, and what has been done."""
    if isinstance(work, Upsampling):
        return "upsample", "upsampled"
    return ("copy", "copied") if isinstance(work, Copying) else ("skip", "skipped")


def _copy(work: Copying) -> None:
    header = work.header
    form = work.format
    # A copy of the bytes keeps what a new file would lose; only a plain file of the same kind may be one.
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


def _upsample(work: Upsampling, resolver: Resolver, settings: Settings, on_progress: Callable[[float], None]) -> dict:
    header = work.header
    form = work.format
    plan = work.plan
    source = work.job.source
    steps = resolver.steps if settings.steps is None else settings.steps
    enhance = Enhancer(
        resolver,
        work.analysis,
        work.cutoff_hz,
        steps=steps,
        seed=settings.seed,
        stereo=settings.stereo,
        treatment=work.treatment,
    )
    blocks = read_blocks(source, round(header.sample_rate_hz * _BLOCK_SEC))
    # Exact up to half the input's rate: what a resampler's droop takes there, nothing would bring back.
    low = interpolated(blocks, header.sample_rate_hz, resolver.sample_rate_hz, header.channels, plan.total)

    def pieces():
        for window, samples in cut(low, plan):
            wide = enhance(samples, window.start)
            yield window, wide[window.first - window.start : window.last - window.start]
            on_progress((window.last - window.first) / resolver.sample_rate_hz)

    # One stream from file to file: nothing is held but a window of it.
    # The model's rate to the output's; a file that was brought up for the model goes back.
    out = resampled(joined(pieces(), plan), resolver.sample_rate_hz, form.rate_hz, header.channels, work.samples)
    meter = _Meter(form.full_scale)
    write_sound(work.output, meter.watch(out), form, work.samples, read_tags(source))
    # Figures of what was written.
    tally = enhance.tally
    offset = float(np.square(work.analysis.offset).mean())
    notes = list(work.notes)
    if meter.clipped:
        notes.append(f"{meter.clipped:,} output samples clipped; hint: --subtype FLOAT keeps them")
    if header.sample_rate_hz > form.rate_hz:
        notes.append(
            f"{header.sample_rate_hz:,} Hz held nothing above {work.cutoff_hz:,.0f} Hz; now {form.rate_hz:,} Hz"
        )
    return {
        "output_peak": round(meter.peak, 6),
        # Without the offset, as the input's figure is.
        "output_rms_db": _db(math.sqrt(max(0.0, meter.squares / max(1, meter.values) - offset))),
        "output_clipped": meter.clipped,
        "silent_share": round(tally.silent / max(1, tally.samples), 4),
        "held_back_share": round(tally.limited / max(1, tally.samples), 6),
        "notes": notes,
    }


def _db(amplitude: float) -> float | None:
    return round(20.0 * math.log10(amplitude), 2) if amplitude > 1e-12 else None
