"""Where the numbers and sounds of a run go besides log.jsonl: TensorBoard files, or Weights & Biases. Off unless named.

A run outlives its trackers: what fails in one is a line for people, and the run goes on without it. W&B is reached
through accelerate; its own environment variables hold (WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY).
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from segue.files import write_text
from segue.provenance import command, commit, machine
from segue.training.config import RunConfig, override, to_json
from segue.types import UserError, import_extra

TRACKERS = ("tensorboard", "wandb", "none")
MAIN_FIGURE = "validation/loss"  # what TensorBoard's table of settings shows beside them


class Tracker(Protocol):
    """What the log needs of a tracker. Any method may raise anything: the log then goes on without it.

    Attributes:
        title: its name in messages.
    """

    title: str

    def begin(self, settings: Mapping[str, Any], about: str) -> None:
        """The settings by dotted name, and a text on where the run comes from (Markdown)."""

    def numbers(self, values: Mapping[str, float], seen: int) -> None:
        """Numbers by "event/name", at so many examples."""

    def sound(self, title: str, wave: Tensor, sample_rate_hz: int, picture: bytes, seen: int) -> None:
        """A sound [T] and its picture (PNG)."""

    def close(self) -> None:
        """Write what is still in memory."""


class TensorBoardFiles:
    """Event files in the run folder: scalars, sounds, pictures, text, and settings as hyperparameters."""

    title = "TensorBoard"

    def __init__(self, folder: Path, examples_seen: int) -> None:
        """
        Args:
            examples_seen: where a continued run goes on: what was written of later examples is dropped.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._first = not examples_seen
        self._writer: Any = SummaryWriter(str(folder), purge_step=examples_seen or None)

    def begin(self, settings: Mapping[str, Any], about: str) -> None:
        """Written once, at the start of a run: the settings as hyperparameters, and where it comes from as text."""
        if not self._first:
            return
        from torch.utils.tensorboard.summary import hparams

        self._writer.add_text("run", about, 0)
        known = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in settings.items()}
        # The three summaries by hand: add_hparams would open a second file, and count as another run.
        for summary in hparams(known, {MAIN_FIGURE: 0.0}):
            self._writer._get_file_writer().add_summary(summary)

    def numbers(self, values: Mapping[str, float], seen: int) -> None:
        """One scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, seen)

    def sound(self, title: str, wave: Tensor, sample_rate_hz: int, picture: bytes, seen: int) -> None:
        """As "sounds/..." and "spectrograms/..."."""
        self._writer.add_audio(f"sounds/{title}", wave[None], seen, sample_rate_hz)
        self._writer.add_image(f"spectrograms/{title}", _pixels(picture), seen, dataformats="HWC")

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases; a continued run goes on under its id, which stands in wandb.json of the run folder."""

    title = "W&B"

    def __init__(self, run_dir: Path) -> None:
        """
        Raises:
            UserError: wandb is not installed.
        """
        from accelerate.tracking import WandBTracker

        self._wandb = import_extra("wandb", "wandb")
        project = os.environ.get("WANDB_PROJECT", "segue")
        self._run = WandBTracker(
            project, name=run_dir.resolve().name, dir=str(run_dir), id=_wandb_id(run_dir), resume="allow"
        )
        # Earlier versions of accelerate start in __init__.
        start = getattr(self._run, "start", None)
        if start is not None:
            start()

    def begin(self, settings: Mapping[str, Any], about: str) -> None:
        """The settings as the run's config."""
        self._run.store_init_configuration(dict(settings) | {"about": about})

    def numbers(self, values: Mapping[str, float], seen: int) -> None:
        """At the step of that many examples."""
        self._run.log(dict(values), step=seen)

    def sound(self, title: str, wave: Tensor, sample_rate_hz: int, picture: bytes, seen: int) -> None:
        """As "sounds/..." and "spectrograms/..."."""
        sound = self._wandb.Audio(wave.numpy(), sample_rate=sample_rate_hz, caption=title)
        self._run.log({f"sounds/{title}": sound}, step=seen)
        self._run.log_images({f"spectrograms/{title}": [_pixels(picture)]}, step=seen)

    def close(self) -> None:
        """Send or store what is left."""
        self._run.finish()


def with_tracker(config: RunConfig, name: str) -> RunConfig:
    """The config with one of `TRACKERS` in place of those that it names.

    Raises:
        UserError: no such tracker.
    """
    if name not in TRACKERS:
        raise UserError(f"--tracker {name}: use one of {', '.join(TRACKERS)}")
    on = {"train.tensorboard": name == "tensorboard", "train.wandb": name == "wandb"}
    return override(config, [f"{key}={str(value).lower()}" for key, value in on.items()])


def check_trackers(config: RunConfig) -> None:
    """Before a run begins.

    Raises:
        UserError: a tracker that the config names is not installed.
    """
    if config.train.tensorboard:
        import_extra("tensorboard", "train")
    if config.train.wandb:
        import_extra("wandb", "wandb")


def start_tracker(name: str, run_dir: Path, examples_seen: int) -> Tracker:
    """Start a tracker by its name; what cannot be started raises whatever it raises."""
    return TensorBoardFiles(run_dir / "tensorboard", examples_seen) if name == "tensorboard" else WandB(run_dir)


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The settings of a run by dotted name."""
    return dict(_flat(to_json(config), ""))


def about_run(run_dir: Path) -> str:
    """Where a run comes from, as Markdown."""
    facts = {"folder": str(run_dir), "command": command(), "commit": commit(), "machine": machine()}
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | `{value}` |" for name, value in facts.items())])


def _flat(data: Mapping, before: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in data.items():
        inner = isinstance(value, Mapping)
        found += _flat(value, f"{before}{name}.") if inner else [(f"{before}{name}", value)]
    return found


def _pixels(png: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(BytesIO(png)).convert("RGB"))


def _wandb_id(run_dir: Path) -> str:
    path = run_dir / "wandb.json"
    if not path.is_file():
        write_text(path, json.dumps({"id": uuid.uuid4().hex[:12]}) + "\n")
    return str(json.loads(path.read_text(encoding="utf-8"))["id"])
