"""In-training evaluation: the same prompts and the same noise for every variant, seed and evaluation.

A run leaves checkpoints at fixed shares of its length; they are evaluated once the run is done, then all but the last
are deleted. What is kept: a line for each evaluation in evaluation.jsonl, and in evaluation/ the embedding of each clip
and replicates of every measure over resampled clips. An evaluator measures the clips: the note classifier
(eval_note_classifier.py), a linear probe (eval_linear_probe.py), or distances to the truth (eval_super_resolution.py).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from segue.files import write_bytes, write_text
from segue.report.run_curves import EVALUATIONS
from segue.training.checkpoint import list_checkpoints
from segue.training.log import read_log
from segue.types import UserError
from segue_lab.study.study_config import MOST_SNAPSHOTS, EvaluationSettings

REPLICATES = 200
Measures = dict[str, float]
Evaluator = Callable[[Path], tuple[Measures, dict[str, np.ndarray]]]  # checkpoint folder -> its figures, and arrays


def at_each_interval(
    run_dir: Path,
    settings: EvaluationSettings,
    measure: Evaluator,
    *,
    total: int,
    batch_size: int,
) -> None:
    """Measure the checkpoints of a finished run that are not measured yet, write a line each, delete all but the last.

    Args:
        run_dir: with checkpoints at every share of settings.evaluate_at.
        measure: checkpoint folder -> what the line says, and the arrays to keep beside it.
        total: examples of the run.
        batch_size: of the training: a checkpoint stands at the first whole batch at or beyond its share.

    Raises:
        UserError: a checkpoint is missing.
    """
    # What a killed worker had measured is not measured again.
    done = {line["share"] for line in read_log(run_dir / EVALUATIONS)}
    checkpoints = {int(p.name.split("-")[1]): p for p in list_checkpoints(run_dir)}
    for share in (share for share in settings.evaluate_at if share not in done):
        # The nearest checkpoint: whole batches seldom end exactly at a share.
        seen = min(checkpoints, key=lambda n: abs(n - share * total), default=None)
        # Farther away it would be another share's.
        if seen is None or abs(seen - share * total) > batch_size + MOST_SNAPSHOTS:
            raise UserError(
                f"{run_dir}: no checkpoint at {share:g} of the run; hint: delete this folder and run it again"
            )
        started = time.monotonic()
        values, arrays = measure(checkpoints[seen])
        # Arrays before their line: a line without arrays would be taken for done.
        write_bytes(run_dir / "evaluation" / f"examples-{seen:010d}.safetensors", save_arrays(arrays))
        line = {"event": "evaluation", "examples_seen": seen, "share": share, **values,
                "seconds": time.monotonic() - started}  # fmt: skip
        _append(run_dir / EVALUATIONS, line)
    # Only when all are measured; the last one is the model.
    for old in list_checkpoints(run_dir)[:-1]:
        shutil.rmtree(old, ignore_errors=True)


def save_arrays(arrays: dict[str, np.ndarray]) -> bytes:
    """A safetensors file; an array's memory is written as it lies, so it is laid out in order first."""
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def resamples(held_out: np.ndarray) -> list[np.ndarray]:
    """[N] indices for each replicate, drawn with replacement within trained and within held-out kinds."""
    # A fixed seed: it pairs the runs of a study.
    generator = np.random.default_rng(0)
    # Within each kind, so that the share of held-out pairs never changes.
    kinds = [rows for rows in (np.flatnonzero(~held_out), np.flatnonzero(held_out)) if len(rows)]
    return [
        np.concatenate([rows[generator.integers(0, len(rows), len(rows))] for rows in kinds]) for _ in range(REPLICATES)
    ]


def _append(path: Path, line: dict) -> None:
    """Add a line by writing the whole file anew: a kill leaves no half line."""
    lines = [*read_log(path), line]
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in lines))
