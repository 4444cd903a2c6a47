"""Models that are loaded once for all visitors; the ones used last stay in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from threading import Lock
from typing import Any

from segue import Pipeline, UserError, pipeline
from segue.app.folders import Folders
from segue.upsampling.enhance import Resolver
from segue.upsampling.load import WIDEST_HZ, load_resolver

SHIPPED = "the shipped model"
SHIPPED_WIDE = f"the shipped model, to {WIDEST_HZ // 1000} kHz"  # of super-resolution
_MOST = 2


def model_list(folders: Folders, task: str) -> list[str]:
    """Names of the runs of a task that have a checkpoint, the newest first, and the models that are shipped for it."""
    shipped = [SHIPPED, SHIPPED_WIDE] if task == "super-resolution" else [SHIPPED] if pipeline.SHIPPED.is_file() else []
    return [folders.name(run) for run in folders.runs(task)] + shipped


def run_of(folders: Folders, name: str | None) -> Path | None:
    """The run that a name of `model_list` stands for; None: the shipped model.

    Raises:
        UserError: it leads out of the folders, or nothing is named.
    """
    if not name:
        raise UserError("no model is chosen; hint: choose one of the list, or train one in the tab Train")
    return None if name == SHIPPED else folders.inside(name)


class Models:
    """Loads pipelines and super-resolution models by their run folder; a run that has a newer checkpoint is loaded
    again."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._loaded: OrderedDict[tuple, Any] = OrderedDict()
        self._lock = Lock()

    def pipeline(self, run: Path | None) -> Pipeline:
        """The text-to-audio model of a run; None: the shipped one.

        Raises:
            UserError: nothing to load there, or a model for another task.
        """
        given: dict[str, Any] = {} if run is None else {"run": run}
        return self._get("generation", run, lambda: Pipeline.load(**given, device=self._device))

    def resolver(self, folders: Folders, name: str | None, steps: int | None = None) -> Resolver:
        """The super-resolution model that a name of `model_list` stands for.

        Args:
            steps: that it is going to be asked for; None: its own. With steps, the shipped model is one of diffusion.

        Raises:
            UserError: nothing to load there, a model for another task, or one that cannot do so many steps.
        """
        wide = name == SHIPPED_WIDE
        run = run_of(folders, SHIPPED if wide else name)
        place = "default" if run is None else str(run)
        rate_hz = WIDEST_HZ if wide else None
        # The shipped models are three: two predictors, and with steps the diffusion model.
        kind = ("super-resolution", wide, bool(steps))
        return self._get(kind, run, lambda: load_resolver(place, device=self._device, steps=steps, rate_hz=rate_hz))

    def _get(self, kind: Hashable, run: Path | None, load: Callable[[], Any]) -> Any:
        newest = max(run.glob("checkpoints/*/model.safetensors"), default=None) if run is not None else None
        key = (kind, run, newest)
        # One at a time: two visitors who ask for the same model wait for one load.
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = load()
                while len(self._loaded) > _MOST:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(key)
            return self._loaded[key]
