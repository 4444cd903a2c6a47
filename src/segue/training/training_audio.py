"""Sounds that a codec or a teacher trains on: a data set decoded into memory, once, and crops drawn of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segue.audio.read import Stretches, read_header, read_sound
from segue.audio.resample import resample
from segue.audio.sound import TOO_SHORT_SEC, BadAudio, Header
from segue.data.clip import Clip
from segue.data.manifest import load_manifest
from segue.data.reading import DataSource
from segue.progress import track
from segue.types import UserError, printable

MIN_TRAIN_SEC = 60
VALID_SEC = 10
MOST_VALID = 48
MOST_NAMED = 10  # bad files in one complaint
_LONG_CROPS = 16  # a sound of as many crops is a long one


@dataclass(frozen=True)
class Decoded:
    """Sounds and what reading them showed.

    Attributes:
        sounds: the ones that could be read.
        clips: of which each of them is.
        bad: (file, reason) of the others.
        resampled: rate in Hz -> how many of the files came at it, where it is not the rate asked for.
    """

    sounds: Sounds
    clips: list[Clip]
    bad: list[tuple[Path, str]]
    resampled: dict[int, int]


class Sounds:
    """Decoded sounds, 16-bit in memory: 115 MB an hour at 16 kHz mono, 635 MB at 44.1 kHz stereo.

    Args:
        waves: of each sound int16 [T], or [2, T] of all of them.
    """

    def __init__(self, waves: list[np.ndarray]) -> None:
        lengths = [w.shape[-1] for w in waves]
        self.starts = np.cumsum([0, *lengths])
        self.data = torch.from_numpy(np.concatenate(waves, axis=-1)) if waves else torch.zeros(0, dtype=torch.int16)
        # A sound is drawn by the root of its length: long ones more often, short ones still.
        self._shares = np.cumsum(np.sqrt(np.array(lengths, dtype=np.float64))) if waves else np.zeros(0)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def wave(self, index: int) -> Tensor:
        """[T] or [2, T] float32."""
        return self.data[..., self.starts[index] : self.starts[index + 1]].float() / 32768

    def draw(self, generator: torch.Generator) -> int:
        """The index of a sound, drawn by the root of its length."""
        at = np.searchsorted(self._shares, _uniform(generator) * self._shares[-1], side="right")
        return min(int(at), len(self) - 1)

    def crop(self, index: int, samples: int, generator: torch.Generator) -> Tensor:
        """[samples] or [2, samples], silent where the sound is not.

        Half of the crops of short sounds straddle the start, where attacks are; of long ones a tenth.
        """
        length = int(self.starts[index + 1] - self.starts[index])
        at_start = _uniform(generator) < (0.5 if length < _LONG_CROPS * samples else 0.1)
        low, high = (-samples // 4, samples // 16) if at_start else (0, max(1, length - samples))
        start = int(low + (high - low) * _uniform(generator))
        begin, end = max(0, start), min(length, start + samples)
        out = torch.zeros(*self.data.shape[:-1], samples)
        if begin < end:
            out[..., begin - start : end - start] = (
                self.data[..., self.starts[index] + begin : self.starts[index] + end].float() / 32768
            )
        return out


@dataclass(frozen=True)
class TrainingAudio:
    """Decoded sounds of a run: split "train" of the source and of the extras, some whole sounds of split "valid"."""

    training: Sounds
    others: Sounds
    valid_waves: list[Tensor]

    def hours(self, sample_rate_hz: int) -> dict[str, float]:
        """For the log."""
        pairs = {"train_hours": self.training, "extra_hours": self.others}
        return {k: round(s.data.shape[-1] / sample_rate_hz / 3600, 3) for k, s in pairs.items()}


def clips_of(source: Path | DataSource, skip_bad: bool = False) -> list[Clip]:
    """The clips of a data set, with splits as `segue encode` makes them; captions are not asked for.

    Args:
        skip_bad: leave out entries of a list that give no clip, instead of refusing.

    Raises:
        UserError: no such data set, or a malformed one.
    """
    return load_manifest(source, "none", skip_bad=skip_bad)


def kind_of(clip: Clip) -> str:
    """What a report counts a clip among: the field "kind" of its list, else the uppermost folder of its id."""
    parts = clip.id.split("/")
    return str(clip.fields.get("kind") or (parts[0] if len(parts) > 1 else "sound"))


def decode(clips: Sequence[Clip], sample_rate_hz: int, channels: int = 1) -> Decoded:
    """Read clips whole and resampled, each file once. A clip is bad where `segue data check` says so.

    Args:
        channels: 1 mixes down to [T]; 2 gives [2, T], where the two sides of a mono sound are the same.
    """
    waves, kept, bad = [], [], []
    resampled: dict[int, int] = {}
    with _Reader(sample_rate_hz, channels) as reader:
        for clip in track(clips, len(clips), "reading sounds", "files"):
            try:
                wave, rate_hz = reader.read(clip)
            except BadAudio as error:
                bad.append((clip.path, error.reason))
                continue
            if rate_hz != sample_rate_hz:
                resampled[rate_hz] = resampled.get(rate_hz, 0) + 1
            waves.append(_sixteen_bits(wave))
            kept.append(clip)
    return Decoded(Sounds(waves), kept, bad, resampled)


def read_sounds(clips: Sequence[Clip], sample_rate_hz: int, skip_bad: bool = False, channels: int = 1) -> Sounds:
    """The sounds of clips: every one of them, or those that can be used.

    Raises:
        UserError: a file that cannot be used; none that can.
    """
    return read_clips(clips, sample_rate_hz, skip_bad, channels).sounds


def read_clips(clips: Sequence[Clip], sample_rate_hz: int, skip_bad: bool = False, channels: int = 1) -> Decoded:
    """As `read_sounds`, with the clips that they are of."""
    decoded = decode(clips, sample_rate_hz, channels)
    refuse_bad(decoded.bad, skip_bad)
    if clips and not decoded.clips:
        raise UserError(f"{clips[0].path}: this and all other sounds cannot be used; hint: segue data check names why")
    return decoded


def refuse_bad(bad: Sequence[tuple[Path, str]], skip_bad: bool) -> None:
    """Name files that cannot be used, on stderr where they are to be left out.

    Raises:
        UserError: there are some, and they are not to be left out.
    """
    if bad and not skip_bad:
        named = "; ".join(f"{path}: {reason}" for path, reason in bad[:MOST_NAMED])
        more = f"; and {len(bad) - MOST_NAMED} more" if len(bad) > MOST_NAMED else ""
        raise UserError(
            f"{len(bad)} files cannot be used ({named}{more}); hint: repair them, or --skip-bad to go on without them"
        )
    for path, reason in bad:
        print(printable(f"left out {path}: {reason}"), file=sys.stderr)


def read_training_audio(
    source: Path | DataSource, extra: Iterable[Path], sample_rate_hz: int, skip_bad: bool = False, channels: int = 1
) -> TrainingAudio:
    """Read what a codec or a teacher trains on.

    Args:
        extra: further data sets that are mixed in; their held-out clips are left alone.
        skip_bad: leave files out that cannot be used, instead of refusing.
        channels: see `decode`.

    Raises:
        UserError: unusable sounds, or less than a minute of them.
    """
    clips = clips_of(source, skip_bad)
    training = decode([c for c in clips if c.split == "train"], sample_rate_hz, channels)
    mixed_in = [c for folder in extra for c in clips_of(folder, skip_bad) if c.split == "train"]
    others = decode(mixed_in, sample_rate_hz, channels)
    held = [c for c in clips if c.split == "valid"] or [c for c in clips if c.split == "train"]
    valid = decode(held[:: max(1, len(held) // MOST_VALID)], sample_rate_hz, channels)
    # One complaint for all three, so that no second one follows once the first is dealt with.
    refuse_bad([*training.bad, *others.bad, *valid.bad], skip_bad)

    seconds = training.sounds.data.shape[-1] / sample_rate_hz
    if seconds < MIN_TRAIN_SEC:
        raise UserError(
            f"{source}: {seconds:.0f} s of sound in split train, too little to train on; "
            f"hint: add sounds until there are {MIN_TRAIN_SEC} s (hours are better)"
        )
    if not len(valid.sounds):
        raise UserError(f"{source}: no held-out sound can be used; hint: repair one, or name some 'valid' in a list")
    for name, decoded in ((str(source), training), (", ".join(map(str, extra)), others)):
        if decoded.resampled:
            print(f"note: {resampling_note(name, decoded.resampled, sample_rate_hz)}", file=sys.stderr)
    waves = [valid.sounds.wave(i)[..., : VALID_SEC * sample_rate_hz] for i in range(len(valid.sounds))]
    return TrainingAudio(training.sounds, others.sounds, waves)


def resampling_note(source: str, resampled: dict[int, int], sample_rate_hz: int) -> str:
    """One line on sounds of other rates; slower ones leave the top of the band empty, which a codec learns too."""
    counts = ", ".join(f"{count:,} at {rate_hz:,} Hz" for rate_hz, count in sorted(resampled.items()))
    low = min(resampled)
    empty = f"; those at {low:,} Hz hold nothing above {low // 2:,} Hz" if low < sample_rate_hz else ""
    return f"{source}: files resampled to {sample_rate_hz:,} Hz: {counts}{empty}"


def draw_crops(
    notes: Sounds, extra: Sounds, extra_share: float, count: int, samples: int, generator: torch.Generator
) -> Tensor:
    """[count, samples] or [count, 2, samples] crops; `extra_share` of them of extra.

    With random gain and sign, now and then the sum of two; stereo ones now and then with their sides swapped, at
    another balance, or mixed down.
    """
    return torch.stack([_draw(notes, extra, extra_share, samples, generator) for _ in range(count)])


class _Reader:
    """Reads clips: whole files, or the stretches of files that a list names; those of one file in one pass over it."""

    def __init__(self, sample_rate_hz: int, channels: int) -> None:
        self._sample_rate_hz = sample_rate_hz
        self._channels = channels
        self._open: tuple[Path, Header, Stretches] | None = None

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_) -> None:
        if self._open is not None:
            self._open[2].close()

    def read(self, clip: Clip) -> tuple[np.ndarray, int]:
        """[T] or [2, T] at our rate, and the file's own rate in Hz."""
        if clip.is_whole:
            sound, rate_hz = read_sound(clip.path, self._channels)
            if sound.shape[1] < TOO_SHORT_SEC * rate_hz:
                raise BadAudio(clip.path, f"too short: {sound.shape[1]} samples")
            return self._shaped(resample(sound.T, rate_hz, self._sample_rate_hz).T), rate_hz
        header, stretches = self._opened(clip.path)
        problem = clip.stretch_problem(header.seconds)
        if problem is not None:
            raise BadAudio(clip.path, problem)
        piece = stretches.read(clip.start_sec, clip.seconds(header.seconds))[0]
        return self._shaped(piece), header.sample_rate_hz

    def _shaped(self, sound: np.ndarray) -> np.ndarray:
        return sound[0] if self._channels == 1 else sound

    def _opened(self, path: Path) -> tuple[Header, Stretches]:
        if self._open is None or self._open[0] != path:
            self.__exit__()
            header = read_header(path)
            self._open = path, header, Stretches(path, header, (self._sample_rate_hz,), self._channels)
        return self._open[1:]


def _sixteen_bits(wave: np.ndarray) -> np.ndarray:
    """The same shape in int16; a wave beyond full scale is scaled to it, since a clipped sound would be another one."""
    scaled = wave / max(1.0, float(np.abs(wave).max(initial=0.0)))
    return np.clip((scaled * 32768).round(), -32768, 32767).astype(np.int16)


def _draw(notes: Sounds, extra: Sounds, extra_share: float, samples: int, generator: torch.Generator) -> Tensor:
    pool = extra if len(extra) and _uniform(generator) < extra_share else notes
    wave = torch.zeros(*pool.data.shape[:-1], samples)
    for _ in range(2 if _uniform(generator) < 0.15 else 1):
        gain = 10 ** (_uniform(generator) * 24 / 20 - 18 / 20)  # -18 to +6 dB
        sign = 1 if _uniform(generator) < 0.5 else -1
        crop = pool.crop(pool.draw(generator), samples, generator)
        wave += sign * gain * (_moved(crop, generator) if wave.ndim == 2 else crop)
    # Gain, and the sum of two, may exceed full scale.
    return wave / wave.abs().max().clamp_min(1)


def _moved(crop: Tensor, generator: torch.Generator) -> Tensor:
    """[2, samples]: half of the crops with their sides swapped, a tenth mixed down, a fifth at another balance."""
    if _uniform(generator) < 0.5:
        crop = crop.flip(0)
    what = _uniform(generator)
    if what < 0.1:
        return crop.mean(0, keepdim=True).expand(2, -1)
    if what < 0.3:
        # Gains of constant power, from hard left to hard right.
        angle = torch.tensor(_uniform(generator) * torch.pi / 2)
        return crop * torch.stack([angle.cos(), angle.sin()])[:, None] * 2**0.5
    return crop


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()
