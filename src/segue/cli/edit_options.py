"""The part of `segue generate` that works on a recording: which options belong together, and what they do."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segue.audio.read import read_claim, read_sound
from segue.audio.resample import resample
from segue.audio.sound import BadAudio
from segue.cli.options import finite
from segue.editing import MOST_SECONDS
from segue.pipeline import Pipeline
from segue.types import UserError, printable

EDITING = {"from", "replace", "continue", "strength", "loop"}  # options, by the names of the metadata
_SIDES = {1: "mono", 2: "stereo"}


@dataclass(frozen=True)
class Edit:
    """What is done with a recording.

    Attributes:
        source: its file.
        method: of `Pipeline`: "vary", "replace", "extend" or "loop".
        options: of the method.
        settings: for the metadata of what is made.
    """

    source: Path
    method: str
    options: dict[str, Any]
    settings: dict[str, Any]

    def bound(self, pipeline: Pipeline) -> BoundEdit:
        """The edit of this recording by a pipeline; what had to be changed of the file is printed.

        Raises:
            UserError: a file that cannot be read, or a range outside it.
        """
        wave = read_recording(self.source, pipeline)
        length_sec = wave.shape[-1] / pipeline.codec.sample_rate_hz
        if self.method == "replace" and self.options["end_sec"] > length_sec + 1e-3:
            raise UserError(
                f"--replace {self.settings['replace']}: {self.source} lasts {length_sec:.3f} s; hint: give a range "
                "within it"
            )
        return BoundEdit(pipeline, wave, self.method, self.options)


@dataclass(frozen=True)
class BoundEdit:
    """An edit of one recording: `wave` [A, T] by `method` of `pipeline`."""

    pipeline: Pipeline
    wave: Tensor
    method: str
    options: dict[str, Any]

    def make(self, caption: str, **options: Any) -> Tensor:
        """Waves [1, A, T] of one take; see `segue.editing.Editor` for the options."""
        return getattr(self.pipeline, self.method)(self.wave, caption, **self.options, **options)


def how_kept(pipeline: Pipeline) -> str:
    """How the model is told what is known."""
    if pipeline.keeps_by == "training":
        return "the model was trained to continue what it is given (train.known_share)"
    return (
        "the model was not trained to continue what it is given, which is kept by replacement (RePaint): slower, and "
        "joints fit less well; hint: train with --set train.known_share=0.5"
    )


def edit_of(asked: dict[str, Any]) -> Edit | None:
    """The edit that options ask for; None where no recording is given.

    Args:
        asked: options that were given, by the names of the metadata: "from", "replace", "continue", "strength",
            "loop", "seconds".

    Raises:
        UserError: options that contradict each other, or that lack the recording.
    """
    kinds = [name for name in ("replace", "continue", "strength", "loop") if name in asked]
    if "from" not in asked:
        for name in kinds:
            if name != "loop":
                raise UserError(f"--{name}: of which recording? hint: add --from FILE")
        return None
    if len(kinds) != 1:
        which = " and ".join(f"--{name}" for name in kinds)
        raise UserError(
            f"--from {asked['from']}: {f'{which} at once; hint: one of them a command' if kinds else _WHAT_TO_DO}"
        )
    if "seconds" in asked:
        raise UserError("--seconds with --from: the recording has its length; hint: --continue SECONDS makes it longer")
    name = kinds[0]
    value = asked[name]
    if name == "replace":
        start_sec, end_sec = _range(value)
        method, options = "replace", {"start_sec": start_sec, "end_sec": end_sec}
    elif name == "continue":
        finite("--continue", value, 0.0, MOST_SECONDS, above=True)
        method, options = "extend", {"seconds": value}
    elif name == "strength":
        if not 0 < value <= 1:
            raise UserError(f"--strength {value:g}: hint: give more than 0, up to 1; 0.4 keeps what it sounds like")
        method, options = "vary", {"strength": value}
    else:
        method, options = "loop", {}
    return Edit(Path(asked["from"]), method, options, {"from": str(asked["from"]), name: value})


_WHAT_TO_DO = "and what is to be done with it? hint: add --replace 2.0-3.5, --continue 10, --strength 0.4 or --loop"


def _range(text: str) -> tuple[float, float]:
    """The seconds of START-END.

    Raises:
        UserError: it is none, or of no length.
    """
    first, dash, last = text.strip().removesuffix("s").partition("-")
    try:
        start_sec, end_sec = float(first), float(last)
    except ValueError:
        dash = ""
    if not dash:
        raise UserError(f"--replace {text}: hint: give START-END in seconds, such as 2.0-3.5")
    if not start_sec < end_sec < float("inf"):
        raise UserError(f"--replace {text}: a range of no length; hint: give a start before the end, such as 2.0-3.5")
    return start_sec, end_sec


def read_recording(path: Path, pipeline: Pipeline) -> Tensor:
    """A sound file as a pipeline takes it, [A, T] at the rate of its codec; what had to be changed is printed.

    Raises:
        UserError: no such file, or one that cannot be read.
    """
    rate_hz, channels = pipeline.codec.sample_rate_hz, pipeline.codec.audio_channels
    if not path.is_file():
        raise UserError(f"--from {path}: no such file; hint: name a wav, flac or mp3")
    try:
        claimed = read_claim(path).channels
        wave, own_hz = read_sound(path, channels)
    except BadAudio as error:
        raise UserError(f"--from {error}; hint: give another recording") from error
    before = (own_hz, _SIDES.get(claimed, f"{claimed} channels"))
    after = (rate_hz, _SIDES[channels])
    if before != after:
        words = (f"{hz / 1000:g} kHz {sides}" for hz, sides in (before, after))
        print(printable(f"note: {path}: {' becomes '.join(words)}, as the model has it"), file=sys.stderr)
    # soxr takes [n, channels].
    return torch.from_numpy(resample(wave.T, own_hz, rate_hz).T.copy())
