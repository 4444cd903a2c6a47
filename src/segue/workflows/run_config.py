"""Continue a run: with its own data, wherever that is now, and for longer where that is asked for."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from segue._version import __version__
from segue.data.cache import LatentCache
from segue.data.identity import identity, refuse_other_contents
from segue.data.open_cache import open_cache
from segue.data.tars import is_address, located
from segue.files import write_text
from segue.models.presets import parameters_of
from segue.provenance import command, commit, machine
from segue.training.build import model_shape, peak_learning_rate
from segue.training.checkpoint import list_checkpoints
from segue.training.config import RunConfig, from_json, intervals, to_json
from segue.types import UserError


def write_config(run_dir: Path, config: RunConfig, cache: LatentCache, origin: dict | None = None) -> None:
    """config.json of a run: all that decides it, where its data is, and what tells that from other data.

    For people it also says where the run comes from, and which values its automatic settings took.

    Args:
        origin: of a run that goes on: where it came from; None: from the command of this process.
    """
    stored = {
        "segue": __version__,
        "cache": _place(cache),
        "data": identity(cache),
        "run": to_json(config),
        "origin": origin or {"command": command(), "commit": commit(), "machine": machine()},
        "resolved": resolved_settings(config, cache),
    }
    write_text(run_dir / "config.json", json.dumps(stored, indent=1))


def resolved_settings(config: RunConfig, cache: LatentCache) -> dict[str, object]:
    """Settings that a run finds when it begins, by dotted name, and the number of its parameters."""
    shape = model_shape(config, cache)
    every = intervals(config.train)
    return {
        "optim.learning_rate": peak_learning_rate(config, shape.width),
        "model.patch_frames": shape.patch_frames,
        "model.predicts": shape.predicts,
        "train.log_every": every.log,
        "train.validate_every": every.validation,
        "train.checkpoint_every": every.checkpoint,
        "train.sample_every": every.sounds,
        "parameters": parameters_of(shape),
    }


def resumed(run_dir: Path, data: str | None, examples: int | None) -> tuple[RunConfig, Path | str]:
    """The config and the cache of a run that is continued.

    Args:
        data: where the run's cache is now, if it has been moved.
        examples: how long the run is to be now; its schedules follow, and a line on stderr says so.

    Raises:
        UserError: no run there, another cache, or a length that the run has passed.
    """
    stored = _read(run_dir)
    config = from_json(stored["run"])
    # --data wins over the stored place, which may hold another cache by now.
    place = located(stored["cache"] if data is None else data)
    try:
        cache = open_cache(place)
    except UserError as error:
        if data is not None:
            raise
        raise UserError(f"{run_dir}: its data is not there any more ({error}); hint: --data CACHE names it") from error
    # Before the length is changed: a run of other data is refused, whatever else is asked for.
    refuse_other_contents(run_dir, stored.get("data"), cache)
    return config if examples is None else _lengthened(run_dir, config, examples), place


def keep_config(run_dir: Path, config: RunConfig, cache: LatentCache, resume: bool) -> None:
    """Write config.json: of a run that begins, and of a continued one if its length or its data's place is new.

    Raises:
        UserError: the run would continue with other data than it began with.
    """
    origin = None
    if resume:
        # Read from the folder again, since `config` may already have a new length.
        stored = _read(run_dir)
        refuse_other_contents(run_dir, stored.get("data"), cache)
        if stored["run"] == to_json(config) and stored["cache"] == _place(cache):
            return
        origin = stored.get("origin")
    write_config(run_dir, config, cache, origin)


def _place(cache: LatentCache) -> str:
    # Absolute, so that the run can be continued from another folder.
    return str(cache.path) if is_address(cache.path) else str(Path(cache.path).resolve())


def _lengthened(run_dir: Path, config: RunConfig, examples: int) -> RunConfig:
    """The config with another length; a line on stderr says what moves with it."""
    before = config.train.total_examples
    # The newest checkpoint counts, not the log: what was not saved is trained again.
    seen = max((int(path.name.rpartition("-")[2]) for path in list_checkpoints(run_dir)), default=0)
    if examples <= seen:
        raise UserError(f"--examples {examples}: {run_dir} has seen {seen:,}; hint: give more than that")
    if examples == before:
        return config
    print(
        f"{run_dir}: {examples:,} examples in place of {before:,}. Schedules follow the new length: learning rate, "
        f"alignment, timesteps and intervals stand at {seen / examples:.0%} of it now, not at {seen / before:.0%}",
        file=sys.stderr,
    )
    return replace(config, train=replace(config.train, total_examples=examples))


def _read(run_dir: Path) -> dict:
    path = run_dir / "config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        from_json(stored["run"])
        # A path of another kind would only fail when the cache is opened.
        if not isinstance(stored["cache"], str):
            raise TypeError("cache is no path")
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; hint: give the folder of a run that was started with `segue train`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); hint: start the run anew") from error
    return stored
