"""The run's log: one JSON object per line of log.jsonl, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from segue.files import cannot_write, write_text
from segue.types import first_line


class RunLog:
    """Appends events to log.jsonl. On resume, lines of steps that will be repeated are removed first."""

    def __init__(
        self, run_dir: Path, *, examples_seen: int = 0, tensorboard: bool = False, active: bool = True
    ) -> None:
        """Open the log of a run that is at `examples_seen`; where not `active` (another rank), nothing is written."""
        self.path = run_dir / "log.jsonl"
        self._file: IO[str] | None = None
        self._board: Any = None
        if not active:
            return
        _keep_until(self.path, examples_seen)
        try:
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._board = _open_board(run_dir / "tensorboard", examples_seen) if tensorboard else None

    def write(self, event: str, examples_seen: int, **numbers) -> None:
        """Append a line; TensorBoard gets nested numbers as event/name/key. If it cannot be written, it is given up.

        Raises:
            UserError: the line cannot be written (nor could a checkpoint on the same disk).
        """
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"event": event, "examples_seen": examples_seen, **numbers}) + "\n")
            # Line by line, so that a kill costs one line at most.
            self._file.flush()
        except OSError as error:
            raise cannot_write(self.path, error) from error
        try:
            self._show(event, examples_seen, numbers)
        except Exception as error:  # the writer's own thread fails in its own ways, and a run outlives its tracker
            self._board = None
            _without_board(error)

    def _show(self, event: str, examples_seen: int, numbers: dict) -> None:
        if self._board is None:
            return
        for name, value in numbers.items():
            for key, number in value.items() if isinstance(value, dict) else [("", value)]:
                # To Python a bool is an int, but it is no curve.
                if isinstance(number, (int, float)) and not isinstance(number, bool):
                    self._board.add_scalar("/".join(filter(None, (event, name, key))), number, examples_seen)

    def show_sound(self, title: str, wave: Tensor, sample_rate_hz: int, picture: bytes, examples_seen: int) -> None:
        """A sound [T] and its picture (PNG) for TensorBoard, where it is on."""
        if self._board is None:
            return
        try:
            from PIL import Image

            self._board.add_audio(f"sounds/{title}", wave[None], examples_seen, sample_rate_hz)
            pixels = np.asarray(Image.open(BytesIO(picture)).convert("RGB"))
            self._board.add_image(f"spectrograms/{title}", pixels, examples_seen, dataformats="HWC")
        except Exception as error:  # as in `write`: a run outlives its tracker
            self._board = None
            _without_board(error)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close."""
        with suppress(OSError):  # `write` has raised this error already
            if self._file is not None:
                self._file.close()
        try:
            if self._board is not None:
                self._board.close()
        except Exception as error:
            _without_board(error)


def read_log(path: Path) -> list[dict]:
    """The complete lines of a log; a line that a kill cut short is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def _keep_until(path: Path, examples_seen: int) -> None:
    """Keep the lines before the checkpoint; a step is logged before its checkpoint, a validation after it."""
    kept = [e for e in read_log(path) if (e["examples_seen"], e["event"] != "train") <= (examples_seen, False)]
    write_text(path, "".join(json.dumps(e) + "\n" for e in kept if examples_seen))


def _open_board(folder: Path, examples_seen: int):
    """A TensorBoard writer, or None where tensorboard is not installed: the JSON log has every number."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    try:
        return SummaryWriter(str(folder), purge_step=examples_seen or None)
    except OSError as error:
        return _without_board(error)


def _without_board(error: Exception) -> None:
    print(f"TensorBoard cannot be written ({first_line(error)}); the run goes on with log.jsonl alone", file=sys.stderr)
