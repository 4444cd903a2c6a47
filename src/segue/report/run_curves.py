"""A run folder as curves: losses, discrepancy, evaluations where there are any, and the seconds that it took."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from segue.report.curves import read_events
from segue.types import UserError

# measure -> (title, whether higher is better, whether it is a share shown in percent)
MEASURES: dict[str, tuple[str, bool, bool]] = {
    "family_accuracy": ("prompt accuracy, family", True, True),
    "pitch_accuracy": ("prompt accuracy, pitch", True, True),
    "family_accuracy_held_out": ("family, held-out pairs", True, True),
    "pitch_accuracy_held_out": ("pitch, held-out pairs", True, True),
    "frechet_distance": ("Fréchet distance", False, False),
    "class_accuracy": ("prompt accuracy, class", True, True),
    "log_mel_distance": ("Fréchet distance, log-mel", False, False),
    "lsd": ("LSD", False, False),
    "lsd_high": ("LSD, high band", False, False),
    "lsd_low": ("LSD, low band", False, False),
    "validation_loss": ("validation loss", False, False),
}
LOSS_AT = "validation_loss_at_"
EVALUATIONS = "evaluation.jsonl"  # beside log.jsonl, where a study evaluated the run


@dataclass(frozen=True)
class Curve:
    """One measure of one run.

    Attributes:
        examples: [M] examples seen, rising.
        values: [M].
        replicates: [R, M] the same on resampled clips, or None where there are none (losses).
    """

    examples: np.ndarray
    values: np.ndarray
    replicates: np.ndarray | None = None


@dataclass(frozen=True)
class RunCurves:
    """One run.

    Attributes:
        curves: measure -> curve: evaluations and validation losses.
        discrepancy: of its "stage" lines; None where it measured none.
        cache: path of the cache that it trained on.
        clock: [K, 2] examples and seconds of training at them, both rising from 0.
    """

    curves: Mapping[str, Curve]
    discrepancy: Curve | None
    cache: Path
    clock: np.ndarray

    def seconds_at(self, examples: float) -> float:
        """Seconds of training until `examples` were seen."""
        return float(np.interp(examples, self.clock[:, 0], self.clock[:, 1]))

    @staticmethod
    def higher(measure: str) -> bool:
        """True where larger values of a measure are better."""
        return measure in MEASURES and MEASURES[measure][1]

    @staticmethod
    def title(measure: str) -> str:
        """A measure in words."""
        return (
            MEASURES[measure][0] if measure in MEASURES else f"validation loss at t = {measure.removeprefix(LOSS_AT)}"
        )


def read_run(folder: Path) -> RunCurves:
    """Read a run folder.

    Raises:
        UserError: it is none, or its config.json is damaged.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{folder}: no run there (no config.json); hint: name a folder that `segue train` wrote")
    try:
        cache = Path(json.loads(config.read_text(encoding="utf-8"))["cache"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{config}: damaged ({error}); hint: start the run anew") from error
    log = read_events(folder)
    probes = [(e["examples_seen"], e["discrepancy"]) for e in log
              if e.get("event") == "stage" and isinstance(e.get("discrepancy"), (int, float))]  # fmt: skip
    discrepancy = Curve(*np.array(probes, float).T) if probes else None
    return RunCurves(run_curves(folder), discrepancy, cache, clock_of(log))


def run_curves(folder: Path, start: float = 0.0) -> dict[str, Curve]:
    """measure -> curve of one run folder: evaluations, where there are any, and validation losses from `start` on.

    The loss before the first step is left out.
    """
    curves = {}
    lines = read_events(folder, EVALUATIONS)
    arrays = [_arrays(folder, line["examples_seen"]) for line in lines]
    # Evaluations, with their replicates where all of a measure's are stored.
    for measure in MEASURES:
        having = [k for k, line in enumerate(lines) if isinstance(line.get(measure), (int, float))]
        if having:
            key = f"replicates.{measure}"
            # Only where every evaluation has them: an interval over some of the points would break off.
            stored = all(key in arrays[k] for k in having)
            curves[measure] = Curve(
                np.array([lines[k]["examples_seen"] for k in having], float),
                np.array([lines[k][measure] for k in having], float),
                np.stack([arrays[k][key] for k in having], axis=1).astype(float) if stored else None,
            )
    # Validation losses: their mean, and each fixed t.
    losses = [e for e in read_events(folder)
              # The loss before the first step says nothing about training and would squeeze the axis.
              if e.get("event") == "validation" and e["examples_seen"] >= max(start, 1)]  # fmt: skip
    if losses:
        x = np.array([e["examples_seen"] for e in losses], float)
        curves["validation_loss"] = Curve(x, np.array([e["loss"] for e in losses], float))
        for t in losses[-1]["loss_by_t"]:
            curves[LOSS_AT + t] = Curve(x, np.array([e["loss_by_t"][t] for e in losses], float))
    return curves


def first_reach(
    examples: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray, target: float, *, higher: bool
) -> float:
    """Examples at which a curve, linear between its points, first reaches `target`; infinity where it never does.

    Args:
        higher: True where larger values are better.
    """
    x, y = np.asarray(examples, float), np.asarray(values, float)
    if len(x) == 0:
        return math.inf
    return float(first_reaches(x, (y if higher else -y)[None], np.array([target if higher else -target]))[0])


def first_reaches(x: np.ndarray, y: np.ndarray, target: np.ndarray) -> np.ndarray:
    """As `first_reach`, for many curves: x [M], y [D, M] (larger is better), targets [D] -> [D] examples."""
    there = y >= target[:, None]
    # The first point at or above the target; 0 where there is none, which the last line turns to infinity.
    k = there.argmax(axis=1)
    rows = np.arange(len(y))
    before = np.maximum(k - 1, 0)
    rise = y[rows, k] - y[rows, before]
    # A level step has no slope to divide by: its end is taken.
    share = np.divide(target - y[rows, before], rise, out=np.ones(len(y)), where=rise > 0)
    place = x[before] + np.clip(share, 0.0, 1.0) * (x[k] - x[before])
    return np.where(there.any(axis=1), np.where(k == 0, x[0], place), math.inf)


def clock_of(log: Sequence[Mapping]) -> np.ndarray:
    """[K, 2] examples and seconds, from the rates of "train" lines.

    A line's rate is the mean since its session began; a resumed run begins a new one. A rate that puts a line before
    the one above it shows such a beginning, and the clock continues from there.
    """
    points = [(0.0, 0.0)]
    base_seen = 0.0
    base_sec = 0.0
    for line in log:
        rate = line.get("examples_per_sec")
        if line.get("event") != "train" or not isinstance(rate, (int, float)) or rate <= 0:
            continue
        seen = float(line["examples_seen"])
        # A resumed run may log examples again that it had seen before it was killed.
        if seen <= points[-1][0]:
            continue
        # Seconds from the rate, which the log gives as a mean since the start of a process.
        now = base_sec + (seen - base_seen) / rate
        if now < points[-1][1]:
            # A lower time means that a new process has begun: count on from the last point.
            base_seen, base_sec = points[-1]
            now = base_sec + (seen - base_seen) / rate
        points.append((seen, now))
    return np.array(points)


def _arrays(folder: Path, seen: int) -> dict[str, np.ndarray]:
    path = folder / "evaluation" / f"examples-{seen:010d}.safetensors"
    return load_file(path) if path.exists() else {}
