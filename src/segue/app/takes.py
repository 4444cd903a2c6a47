"""Sounds from prompts, and sounds changed by them: what stands behind the tabs Generate and Edit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segue import Pipeline, Sampling, UserError, __version__
from segue.app.sessions import Stopped
from segue.audio.read import read_header, read_sound
from segue.audio.resample import resample
from segue.audio.write import write_wav
from segue.report import spectrogram_png

MOST_TAKES = 6
MOST_SECONDS = 300.0  # of a generated sound: a page is no place for longer work
MOST_UPLOAD_SEC = 600.0
WAYS = ("vary", "replace", "extend", "loop")
_PICTURE_SEC = 60.0  # of a long sound, its beginning is drawn


@dataclass(frozen=True)
class Ask:
    """What a visitor wants.

    Attributes:
        prompt, negative: what to follow, and what to keep away from; "" = nothing.
        seconds: length; 0 = that of the training clips.
        steps: solver steps; 0 = the model's own.
        guidance: of classifier-free guidance.
        seed: of the first take; further takes have the seeds after it.
        takes: how many.
        loop: whether the end of each take meets its beginning.
    """

    prompt: str
    negative: str = ""
    seconds: float = 0.0
    steps: int = 0
    guidance: float = 2.0
    seed: int = 0
    takes: int = 1
    loop: bool = False

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise UserError('an empty prompt; say what to generate, for example "a soft violin playing C 5"')
        if not 0 <= self.seconds <= MOST_SECONDS:
            raise UserError(f"{self.seconds:g} s: give at most {MOST_SECONDS:g}; segue generate makes longer ones")
        if not 1 <= self.takes <= MOST_TAKES:
            raise UserError(f"{self.takes} takes: give 1 to {MOST_TAKES}")
        if not -(2**53) < self.seed < 2**53:
            raise UserError(f"seed {self.seed}: give a whole number of at most 15 digits")

    def sampling(self, pipeline: Pipeline) -> Sampling:
        """As the model samples, with what was asked for."""
        own = pipeline.own_sampling
        return replace(own, steps=self.steps or own.steps, guidance_scale=self.guidance)


@dataclass(frozen=True)
class Edit:
    """How an uploaded sound is changed.

    Attributes:
        way: "vary" (all of it, by `strength`), "replace" (from `start_sec` to `end_sec`), "extend" (by `seconds`) or
            "loop" (its joint).
        strength: 0 leaves it as it is, 1 keeps nothing.
    """

    way: str
    strength: float = 0.5
    start_sec: float = 0.0
    end_sec: float = 0.0
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise UserError(f"{self.way}: choose one of {', '.join(WAYS)}")
        if self.way == "replace" and not 0 <= self.start_sec < self.end_sec:
            raise UserError("no range is marked; hint: click on the waveform where it begins, and where it ends")
        if self.way == "vary" and not 0 < self.strength <= 1:
            raise UserError(f"strength {self.strength:g}: give a number above 0, up to 1")
        if self.way == "extend" and not 0 < self.seconds <= MOST_SECONDS:
            raise UserError(f"{self.seconds:g} seconds: give at most {MOST_SECONDS:g}")


@dataclass(frozen=True)
class Take:
    """One sound that was made: its file, its picture and its seed."""

    path: Path
    picture: Path
    seed: int


def generate(
    pipeline: Pipeline, ask: Ask, run: str, folder: Path, stop: Event, on_step: Callable[[int, int], None]
) -> Iterator[Take]:
    """Takes one after the other, each as soon as it is made; after a stop those that were finished.

    Each equals what `segue generate RUN PROMPT --seed SEED` writes, and carries the same settings.

    Args:
        run: of the model, for the metadata.
        folder: for the files.
        on_step: called with evaluations done and evaluations in all.

    Raises:
        UserError: settings that the model cannot meet.
    """
    sampling = ask.sampling(pipeline)
    samples = pipeline.samples_of(ask.seconds or None)
    seconds = samples / pipeline.codec.sample_rate_hz
    count = _Count(stop, on_step, ask.takes * pipeline.evaluations(samples, sampling, ask.loop))
    options: dict[str, Any] = {"negative": ask.negative.strip(), "loop": ask.loop}
    for seed in range(ask.seed, ask.seed + ask.takes):
        try:
            wave = pipeline.generate(
                [ask.prompt], seconds=seconds, seed=seed, sampling=sampling, on_step=count, **options
            )[0]
        except Stopped:
            return
        # As `segue generate` keeps them: what was not asked for is left out.
        about = _settings(run, sampling, seed) | {"seconds": seconds} | {k: v for k, v in options.items() if v}
        yield _written(pipeline, wave, folder, ask.prompt, seed, about)


def edit(
    pipeline: Pipeline,
    upload: Path,
    change: Edit,
    ask: Ask,
    run: str,
    folder: Path,
    stop: Event,
    on_step: Callable[[int, int], None],
) -> Take | None:
    """The uploaded sound, changed; None after a stop.

    Raises:
        UserError: a sound or a range that cannot be used.
        BadAudio: an upload that is no sound.
    """
    wave = read_upload(upload, pipeline)
    sampling = ask.sampling(pipeline)
    # What is kept costs evaluations of its own, as many as it costs to close a loop.
    plain, looped = (pipeline.evaluations(wave.shape[-1], sampling, loop) for loop in (False, True))
    total = round(change.strength * sampling.steps) if change.way == "vary" else looped - plain
    count = _Count(stop, on_step, max(1, total))
    options: dict[str, Any] = {
        "seed": ask.seed, "sampling": sampling, "negative": ask.negative.strip(), "on_step": count
    }  # fmt: skip
    try:
        if change.way == "vary":
            made = pipeline.vary(wave, ask.prompt, strength=change.strength, **options)
        elif change.way == "replace":
            end = min(change.end_sec, wave.shape[-1] / pipeline.codec.sample_rate_hz)
            made = pipeline.replace(wave, ask.prompt, start_sec=change.start_sec, end_sec=end, **options)
        elif change.way == "extend":
            made = pipeline.extend(wave, ask.prompt, seconds=change.seconds, **options)
        else:
            made = pipeline.loop(wave, ask.prompt, **options)
    except Stopped:
        return None
    about = _settings(run, sampling, ask.seed) | {"edit": change.way}
    return _written(pipeline, made[0], folder, f"{change.way} {ask.prompt}", ask.seed, about)


def read_upload(path: Path, pipeline: Pipeline) -> Tensor:
    """An uploaded sound as the model's codec takes it: [A, T] at its rate.

    Raises:
        BadAudio: no sound.
        UserError: too long.
    """
    refuse_long(path)
    codec = pipeline.codec
    wave, rate_hz = read_sound(path, codec.audio_channels)
    return torch.from_numpy(np.ascontiguousarray(resample(wave.T, rate_hz, codec.sample_rate_hz).T))


def refuse_long(path: Path) -> None:
    """
    Raises:
        BadAudio: no sound.
        UserError: longer than a page takes.
    """
    seconds = read_header(path).seconds
    if seconds > MOST_UPLOAD_SEC:
        raise UserError(f"{path.name}: {seconds:.0f} s; give a sound of at most {MOST_UPLOAD_SEC:.0f} s here")


def draw(wave: np.ndarray, sample_rate_hz: int, path: Path) -> Path:
    """Write the spectrogram of a sound [A, T], of its first minute; returns its path."""
    first = wave[..., : round(_PICTURE_SEC * sample_rate_hz)]
    path.write_bytes(spectrogram_png(first, sample_rate_hz))
    return path


class _Count:
    """Counts evaluations, tells them, and ends the work where a stop was asked for."""

    def __init__(self, stop: Event, on_step: Callable[[int, int], None], total: int) -> None:
        self._stop, self._on_step, self._total, self._done = stop, on_step, total, 0

    def __call__(self) -> None:
        if self._stop.is_set():
            raise Stopped
        self._done += 1
        # Some solvers evaluate more often than once a step.
        self._on_step(min(self._done, self._total), self._total)


def _settings(run: str, sampling: Sampling, seed: int) -> dict[str, Any]:
    """As `segue generate` keeps them in its files, so that --like reads them."""
    return {
        "segue": __version__,
        "seed": seed,
        "number": 0,
        "run": run,
        "weights": "ema",
        "steps": sampling.steps,
        "solver": sampling.solver,
        "guidance": sampling.guidance_scale,
        "rescale": sampling.guidance_rescale,
    }


def _written(pipeline: Pipeline, wave: Tensor, folder: Path, title: str, seed: int, about: dict) -> Take:
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "sound"
    path = folder / f"{slug}-seed{seed}.wav"
    rate_hz = pipeline.codec.sample_rate_hz
    write_wav(path, wave.numpy(), rate_hz, title, json.dumps(about, ensure_ascii=False))
    return Take(path, draw(wave.numpy(), rate_hz, path.with_suffix(".png")), seed)
