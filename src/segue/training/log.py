"""The run's log: one JSON object a line in log.jsonl, and the same for TensorBoard. The only room with trackers."""

from __future__ import annotations

import json
from pathlib import Path

from segue.files import write_text


class RunLog:
    """Appends events to log.jsonl. On resume, what the loop will do again is dropped first, so no line stands twice."""

    def __init__(
        self, run_dir: Path, *, examples_seen: int = 0, tensorboard: bool = False, active: bool = True
    ) -> None:
        """Open the log of a run that stands at `examples_seen`; one that is not `active` (of another rank) is mute."""
        self.path = run_dir / "log.jsonl"
        self._file = self._board = None
        if not active:
            return
        _keep_until(self.path, examples_seen)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = _open_board(run_dir / "tensorboard", examples_seen) if tensorboard else None

    def write(self, event: str, examples_seen: int, **numbers) -> None:
        """One line; nested numbers reach TensorBoard as event/name/key."""
        if self._file is None:
            return
        self._file.write(json.dumps({"event": event, "examples_seen": examples_seen, **numbers}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in numbers.items():
                for key, number in value.items() if isinstance(value, dict) else [("", value)]:
                    if isinstance(number, (int, float)) and not isinstance(number, bool):
                        self._board.add_scalar("/".join(filter(None, (event, name, key))), number, examples_seen)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def read_log(path: Path) -> list[dict]:
    """The whole lines of a log; a line that a kill cut short is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def _keep_until(path: Path, examples_seen: int) -> None:
    """Keep what came before the checkpoint; a step is logged before its checkpoint, a validation after it."""
    kept = [e for e in read_log(path) if (e["examples_seen"], e["event"] != "train") <= (examples_seen, False)]
    write_text(path, "".join(json.dumps(e) + "\n" for e in kept if examples_seen))


def _open_board(folder: Path, examples_seen: int):
    """A TensorBoard writer, or None where tensorboard is not installed: the JSON log has every number."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=examples_seen or None)
