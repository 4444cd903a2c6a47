"""The folders that a page may use, and what lies in them: everything else is refused, whatever a browser sends."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from segue.types import UserError

_DEPTH = 4  # folders below the ones that were given, in which runs and caches are looked for
_MOST = 500
# Folders of a run, and of environments, in which there is no other run.
_PASSED_OVER = ("checkpoints", "samples", "evaluation", "tensorboard", "wandb", "node_modules", "__pycache__")


@dataclass(frozen=True)
class Folders:
    """Folders given at the start.

    Attributes:
        roots: with links resolved; new runs and caches go into the first.
    """

    roots: tuple[Path, ...]

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Folders:
        """
        Raises:
            UserError: one of them is no folder.
        """
        for path in paths:
            if not path.is_dir():
                raise UserError(f"{path}: no such folder; hint: segue app FOLDER, with runs or sounds in it")
        return cls(tuple(dict.fromkeys(path.resolve() for path in paths)))

    def inside(self, text: str | Path) -> Path:
        """A path as a page names it: absolute, or as `name` shows it.

        Raises:
            UserError: it leads out of the folders, also by way of a link, or it is empty.
        """
        if not str(text).strip() or "\0" in str(text):
            raise UserError("no folder is named; hint: choose one of the list")
        given = Path(str(text).strip())
        tries = [given] if given.is_absolute() else [base / given for base in self._bases()]
        allowed = [path for path in (path.resolve() for path in tries) if self._holds(path)]
        if not allowed:
            raise UserError(
                f"{text}: not in the folders of this page ({', '.join(root.name for root in self.roots)}); hint: start "
                "it as segue app FOLDER, with the folder that this lies in"
            )
        # What exists comes first: a name may fit into several of the folders.
        return next((path for path in allowed if path.exists()), allowed[0])

    def name(self, path: Path) -> str:
        """A path as it is shown: from the name of its folder on, or whole where two folders have the same name."""
        for root in self.roots:
            if path == root or root in path.parents:
                alone = sum(other.name == root.name for other in self.roots) == 1
                return str(path.relative_to(root.parent)) if alone else str(path)
        return str(path)

    def runs(self, task: str | None = None) -> list[Path]:
        """Run folders, the newest first; of one task where it is named, and then only those with a checkpoint."""
        found = [path for path in self._walk() if (of := task_of(path)) and (task is None or of == task)]
        if task is not None:
            found = [path for path in found if any(path.glob("checkpoints/*/model.safetensors"))]
        return sorted(found, key=_changed, reverse=True)

    def _bases(self) -> Iterator[Path]:
        for root in self.roots:
            yield root.parent
            yield root

    def _holds(self, path: Path) -> bool:
        return any(path == root or root in path.parents for root in self.roots)

    def _walk(self) -> Iterable[Path]:
        """Folders that hold a config.json; links are not followed, and what lies in a run is passed over."""
        found: dict[Path, None] = {}
        for root in self.roots:
            for place, folders, files in os.walk(root):
                path = Path(place)
                deep = len(path.relative_to(root).parts)
                if "config.json" in files:
                    found[path] = None
                folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in _PASSED_OVER)
                if deep >= _DEPTH or ("config.json" in files and deep):
                    folders.clear()
                if len(found) >= _MOST:
                    return found
        return found


def task_of(run: Path) -> str | None:
    """The task of a run folder; None of a folder that is no run."""
    try:
        stored = json.loads((run / "config.json").read_text(encoding="utf-8"))
        return str(stored["run"].get("train", {}).get("task", "generation"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_cache(path: Path) -> bool:
    """Whether a folder is a latent cache."""
    return (path / "meta.json").is_file()


def _changed(run: Path) -> float:
    log = run / "log.jsonl"
    return (log if log.is_file() else run / "config.json").stat().st_mtime
