"""Sounds to train a codec or a teacher on: which files a folder holds, decoded into memory, and crops drawn of them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from segue.types import UserError

MIN_TRAIN_SEC = 60
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"}


@dataclass(frozen=True)
class Sound:
    """One file of a source: where it is, its split (train, valid, test) and its kind (for the report)."""

    path: Path
    split: str
    kind: str


class Sounds:
    """Decoded sounds, mono 16-bit in memory: 115 MB an hour at 16 kHz.

    Attributes:
        resampled: rate in Hz -> how many of the files came at it, where it is not the rate asked for.
    """

    def __init__(self, waves: list[np.ndarray], resampled: dict[int, int] | None = None) -> None:
        self.resampled = resampled or {}
        self.starts = np.cumsum([0] + [len(w) for w in waves])
        self.data = torch.from_numpy(np.concatenate(waves)) if waves else torch.zeros(0, dtype=torch.int16)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def wave(self, index: int) -> Tensor:
        """[T] float32."""
        return self.data[self.starts[index] : self.starts[index + 1]].float() / 32768

    def crop(self, index: int, samples: int, generator: torch.Generator) -> Tensor:
        """[samples]: half of the crops straddle the sound's start, where attacks are; the rest fall anywhere in it."""
        length = int(self.starts[index + 1] - self.starts[index])
        low, high = (-samples // 4, samples // 16) if _uniform(generator) < 0.5 else (0, max(1, length - samples))
        start = int(low + (high - low) * _uniform(generator))
        begin, end = max(0, start), min(length, start + samples)
        out = torch.zeros(samples)
        if begin < end:
            out[begin - start : end - start] = (
                self.data[self.starts[index] + begin : self.starts[index] + end].float() / 32768
            )
        return out


def list_sounds(source: Path) -> list[Sound]:
    """The files of a folder: by its manifest.jsonl (path, split, kind), else all audio below it, ~5 % of it valid.

    Raises:
        UserError: no such folder, a malformed manifest, a path that climbs out of the folder, or no audio.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; mend: name a folder that holds audio files")
    manifest = source / "manifest.jsonl"
    if manifest.is_file():
        sounds = list(_manifest_sounds(source, manifest))
    else:
        paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
        sounds = [Sound(p, _split_of(p.relative_to(source)), _kind_of(p.relative_to(source))) for p in paths]
    if not sounds:
        raise UserError(
            f"{source}: no audio files ({', '.join(sorted(AUDIO_SUFFIXES))}); mend: name a folder that holds some"
        )
    return sounds


def _manifest_sounds(source: Path, manifest: Path) -> Iterator[Sound]:
    root = source.resolve()
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            path = source / row["path"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{manifest} line {number}: not a JSON object with a path; mend that line") from error
        if not path.resolve().is_relative_to(root):
            raise UserError(f"{manifest} line {number}: {row['path']} lies outside {source}; mend: keep audio below it")
        yield Sound(path, row.get("split", _split_of(Path(row["path"]))), row.get("kind", "sound"))


def _split_of(path: Path) -> str:
    return "valid" if int(hashlib.sha256(path.as_posix().encode()).hexdigest()[:8], 16) % 20 == 0 else "train"


def _kind_of(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else "sound"


def read_sounds(sounds: list[Sound], sample_rate_hz: int) -> Sounds:
    """Decode, mix down and resample.

    Raises:
        UserError: a file that cannot be decoded, is empty or has non-finite samples.
    """
    waves, resampled = [], {}
    for sound in sounds:
        try:
            wave, rate_hz = soundfile.read(sound.path, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError) as error:
            raise UserError(
                f"{sound.path}: cannot be decoded ({error}); mend: segue data check lists such files"
            ) from error
        wave = wave.mean(axis=1)
        if rate_hz != sample_rate_hz:
            wave = soxr.resample(wave, rate_hz, sample_rate_hz)
            resampled[rate_hz] = resampled.get(rate_hz, 0) + 1
        if not len(wave) or not np.isfinite(wave).all():
            raise UserError(f"{sound.path}: empty or non-finite samples; mend: segue data check lists such files")
        waves.append((np.clip(wave, -1, 32767 / 32768) * 32768).round().astype(np.int16))
    return Sounds(waves, resampled)


def resampling_note(source: object, resampled: dict[int, int], sample_rate_hz: int) -> str:
    """One line on sounds of other rates; slower ones leave the top of the band empty, which a codec learns too."""
    counts = ", ".join(f"{count:,} at {rate_hz:,} Hz" for rate_hz, count in sorted(resampled.items()))
    low = min(resampled)
    empty = f"; those at {low:,} Hz hold nothing above {low // 2:,} Hz" if low < sample_rate_hz else ""
    return f"{source}: files resampled to {sample_rate_hz:,} Hz: {counts}{empty}"


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()


def draw_crops(
    notes: Sounds, extra: Sounds, extra_share: float, count: int, samples: int, generator: torch.Generator
) -> Tensor:
    """[count, samples] crops with random gain and sign, now and then the sum of two; `extra_share` of them of extra."""
    return torch.stack([_draw(notes, extra, extra_share, samples, generator) for _ in range(count)])


def _draw(notes: Sounds, extra: Sounds, extra_share: float, samples: int, generator: torch.Generator) -> Tensor:
    pool = extra if len(extra) and _uniform(generator) < extra_share else notes
    wave = torch.zeros(samples)
    for _ in range(2 if _uniform(generator) < 0.15 else 1):
        gain = 10 ** (_uniform(generator) * 24 / 20 - 18 / 20)  # -18 to +6 dB
        sign = 1 if _uniform(generator) < 0.5 else -1
        wave += sign * gain * pool.crop(int(_uniform(generator) * len(pool)), samples, generator)
    return wave / wave.abs().max().clamp_min(1)


@dataclass(frozen=True)
class Material:
    """Decoded sounds of a run: split "train" of the source and of the extras, some whole sounds of split "valid"."""

    training: Sounds
    others: Sounds
    valid_waves: list[Tensor]

    def hours(self, sample_rate_hz: int) -> dict[str, float]:
        """For the log."""
        pairs = {"train_hours": self.training, "extra_hours": self.others}
        return {k: round(len(s.data) / sample_rate_hz / 3600, 3) for k, s in pairs.items()}


def read_material(source: Path, extra: tuple[Path, ...], sample_rate_hz: int) -> Material:
    """Read what a codec or a teacher trains on.

    Raises:
        UserError: unusable sounds, or less than a minute of them.
    """
    sounds, extras = list_sounds(source), [s for folder in extra for s in list_sounds(folder)]
    training = read_sounds([s for s in sounds if s.split == "train"], sample_rate_hz)
    seconds = len(training.data) / sample_rate_hz
    if seconds < MIN_TRAIN_SEC:
        raise UserError(
            f"{source}: {seconds:.0f} s of sound in split train, too little to train on; "
            f"mend: add sounds until there are {MIN_TRAIN_SEC} s (hours are better)"
        )
    others = read_sounds([s for s in extras if s.split == "train"], sample_rate_hz)
    held = [s for s in sounds if s.split == "valid"] or [s for s in sounds if s.split == "train"]
    valid = read_sounds(held[:: max(1, len(held) // 48)], sample_rate_hz)
    for folder, pool in ((source, training), (extra, others)):
        if pool.resampled:
            print(f"note: {resampling_note(folder, pool.resampled, sample_rate_hz)}", file=sys.stderr)
    return Material(training, others, [valid.wave(i)[: 10 * sample_rate_hz] for i in range(len(valid))])
