"""One run of a study in a process of its own: trained, evaluated, marked done. `segue-lab study` starts it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from segue.data.open_cache import open_cache
from segue.devices import device_of
from segue.provenance import commit
from segue.training.checkpoint import latest_checkpoint, list_checkpoints
from segue.training.config import RunConfig, from_json
from segue.training.parallel_runs import locked, stop_with_parent
from segue.types import UserError
from segue.workflows.train_run import continue_training
from segue_lab.study.eval_linear_probe import probe_evaluator
from segue_lab.study.eval_note_classifier import note_evaluator
from segue_lab.study.eval_set import NOTES, load_eval_set
from segue_lab.study.eval_super_resolution import super_resolution_evaluator
from segue_lab.study.evaluation import Evaluator, at_each_interval
from segue_lab.study.runs import finish_run, read_run_file
from segue_lab.study.study_config import settings_from_json

COMMAND = (sys.executable, "-m", "segue_lab.study.worker")


def work(folder: Path) -> int:
    """Train and evaluate one run, as its run.json says; returns an exit code."""
    stop_with_parent()
    with locked(folder / "lock", wait=True):  # the worker of a study that was killed may still be saving
        run = read_run_file(folder)
        config = from_json(run["config"])
        total = config.train.total_examples
        # A run that was killed between training and evaluation is not trained again.
        if not list_checkpoints(folder) or _state(folder)["examples_seen"] < total:
            result = continue_training(config, Path(run["cache"]), folder, device=run["device"])
            if not result.finished:
                print(f"stopped at {result.examples_seen:,} examples, saved", file=sys.stderr)
                return 130
        evaluator = _evaluator(run, config)
        if evaluator is not None:
            settings = settings_from_json(run["evaluation"])
            at_each_interval(folder, settings, evaluator, total=total, batch_size=config.train.batch_size)
        # Written last: the mark says that training and evaluation are whole.
        finish_run(folder, _state(folder)["seconds"], commit())
    return 0


def _evaluator(run: dict, config: RunConfig) -> Evaluator | None:
    """Who measures what the run's checkpoints make; None = nobody, its validation losses are all."""
    settings = settings_from_json(run["evaluation"])
    device = device_of(run["device"])
    if run["eval_set"]:
        asked = load_eval_set(Path(run["eval_set"]))
        if asked is None:
            raise UserError(f"{run['eval_set']}: the study's prompts are gone; hint: call segue-lab study again")
        return (note_evaluator if asked.space == NOTES else probe_evaluator)(asked, settings, device)
    if config.train.task == "super-resolution" and settings.clips:
        cache = open_cache(Path(run["cache"]))
        return super_resolution_evaluator(cache, config.degradation.held_out, settings, device)
    return None


def _state(folder: Path) -> dict:
    return json.loads((latest_checkpoint(folder) / "state.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    try:
        sys.exit(work(Path(sys.argv[1])))
    except UserError as error:
        sys.exit(f"segue-lab: {' '.join(str(error).split())}")
