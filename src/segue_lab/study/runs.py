"""The runs of a study: one process each, a few at once, resumable after a kill; a failed one stops no other."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from segue.codecs import default_codec, load_codec
from segue.conditioners import load_conditioner
from segue.data.cache import LatentCache
from segue.data.clip import Clip
from segue.data.demo_set import render_demo_set
from segue.data.encoding import build_cache
from segue.data.manifest import load_manifest
from segue.data.open_cache import open_cache
from segue.files import sha256_of, write_text
from segue.ssl import load_teacher
from segue.training.checks import check_before_training
from segue.training.log import read_log
from segue.training.parallel_runs import Job, last_words, locked, run_jobs
from segue.types import UserError
from segue_lab.study.eval_linear_probe import make_probe_eval_set
from segue_lab.study.eval_note_classifier import make_note_eval_set
from segue_lab.study.eval_set import EvalSet
from segue_lab.study.study_config import (
    DataSource,
    EvaluationSettings,
    PlannedRun,
    Study,
    run_config,
    run_key,
    runs_of,
    same_settings,
)

DEMO_SECONDS = 2.048
RUN, DONE, FAILED = "run.json", "done.json", "failed.json"
# An earlier version's names: for the folders of a study, and in its files.
_FIRST_FOLDERS = {"runs": "cells", "eval-set": "listening"}
_FIRST_RUN = "cell.json"


@dataclass(frozen=True)
class Prepared:
    """A study ready to run.

    Attributes:
        cache: its data.
        eval_set: what is asked of every run; None = validation losses alone.
        runs: those of the plan.
    """

    cache: LatentCache
    eval_set: EvalSet | None
    runs: list[PlannedRun]


def part_of(out: Path, name: str) -> Path:
    """The folder "runs" or "eval-set" of a study; under its first name where an earlier version made it."""
    first = out / _FIRST_FOLDERS[name]
    return first if first.exists() else out / name


def prepare(study: Study, out: Path) -> Prepared:
    """Render and encode, or open, the data; choose prompts; write OUT/plan.json, which names every run.

    Raises:
        UserError: the data cannot be had, or a variant cannot train on them.
    """
    cache, clips = _data(study.data, out)
    # Every variant is checked before the first is trained for hours.
    for variant in study.variants:
        try:
            check_before_training(run_config(study, variant, study.seeds[0]), cache)
        except UserError as error:
            raise UserError(f"variant {variant.name}: {error}") from error
    tasks = {run_config(study, variant, study.seeds[0]).train.task for variant in study.variants}
    if len(tasks) > 1:
        raise UserError(f"variants of {' and '.join(sorted(tasks))} do not compare; hint: make a study of each")
    eval_set = None
    if tasks == {"generation"}:
        eval_set = _eval_set(study, cache, clips, part_of(out, "eval-set"))
    # What names a run beside its config: the data, what is asked, and how it is evaluated.
    question = sha256_of([cache.path / "meta.json"]), eval_set.key if eval_set else "", study.evaluation
    runs = [_finished_before(run, part_of(out, "runs"), question) for run in runs_of(study, *question[:2])]
    plan = {"study": asdict(study), "cache": str(cache.path.resolve()), "runs": [asdict(run) for run in runs]}
    # Written before anything runs: --report-only finds the runs there.
    write_text(out / "plan.json", json.dumps(plan, indent=1))
    return Prepared(cache, eval_set, runs)


def planned_runs(out: Path) -> list[PlannedRun]:
    """The runs that the last call of a study in `out` named, finished or not.

    Raises:
        UserError: nothing was run there.
    """
    path = out / "plan.json"
    if not path.exists():
        raise UserError(f"{out}: no study was run here; hint: leave --report-only away")
    plan = json.loads(path.read_text(encoding="utf-8"))
    return [PlannedRun(**_with_new_names(run)) for run in plan.get("runs") or plan["cells"]]


def train_runs(
    prepared: Prepared,
    study: Study,
    out: Path,
    worker: Sequence[str],
    *,
    slots: int = 2,
    threads: int = 1,
    device: str = "auto",
    quiet: bool = False,
) -> bool:
    """Train and evaluate what is not done yet; True when every run was tried, False when interrupted.

    Args:
        worker: command that trains one run, whose folder is added as its last word.
        slots: processes at once.
        threads: OMP_NUM_THREADS of each.
        device: as `segue train --device`.

    Raises:
        UserError: this study is running already.
    """
    folder = part_of(out, "runs")
    by_folder = {folder / run.folder: run for run in prepared.runs}
    jobs = [
        # Known beforehand, so that the meter counts what is left.
        Job(f"{run.variant}/{run.seed}", place, run.config["train"]["total_examples"], done=(place / DONE).exists())
        for place, run in by_folder.items()
    ]

    def start(job: Job) -> None:
        write_run(job.folder, by_folder[job.folder], prepared, study, device)

    def end(job: Job, code: int) -> str:
        # The mark counts, not the exit code: a worker may be killed after its last step.
        if (job.folder / DONE).exists():
            return "done"
        line = last_words(job.folder, code)
        write_text(job.folder / FAILED, json.dumps({"code": code, "line": line}))
        return f"failed ({line})"

    # Two calls of one study would train the same runs.
    with locked(out / "study.lock"):
        return run_jobs(jobs, worker, slots=slots, threads=threads, title=study.name, start=start, end=end, quiet=quiet)


def status_of(folder: Path) -> tuple[str, str]:
    """("done" | "failed" | "unfinished" | "missing", the last line of a failure) of a run's folder."""
    if (folder / DONE).exists():
        return "done", ""
    if (folder / FAILED).exists():
        return "failed", json.loads((folder / FAILED).read_text(encoding="utf-8"))["line"]
    return ("unfinished" if (folder / RUN).exists() or (folder / _FIRST_RUN).exists() else "missing"), ""


def write_run(folder: Path, run: PlannedRun, prepared: Prepared, study: Study, device: str) -> None:
    """Leave in a run's folder what its worker reads."""
    about = asdict(run) | {
        "cache": str(prepared.cache.path.resolve()),
        "evaluation": asdict(study.evaluation),
        "eval_set": str(part_of(folder.parent.parent, "eval-set").resolve()) if prepared.eval_set else None,
        "device": device,
    }
    # A failure of an earlier call is over.
    (folder / FAILED).unlink(missing_ok=True)
    write_text(folder / RUN, json.dumps(about, indent=1))


def read_run_file(folder: Path) -> dict:
    """What `write_run`, or an earlier version, left in a run's folder."""
    path = folder / RUN
    return _with_new_names(json.loads((path if path.exists() else folder / _FIRST_RUN).read_text(encoding="utf-8")))


def finish_run(folder: Path, seconds: float, commit: str) -> None:
    """Mark a run done; written last."""
    validation = [e for e in read_log(folder / "log.jsonl") if e["event"] == "validation"]
    last = validation[-1]["examples_seen"] if validation else 0
    write_text(folder / DONE, json.dumps({"seconds": seconds, "examples_seen": last, "commit": commit}))


def _with_new_names(stored: Mapping) -> dict:
    names = {"arm": "variant", "listening": "eval_set"}
    return {names.get(key, key): value for key, value in stored.items()}


def _eval_set(study: Study, cache: LatentCache, clips: list[Clip], folder: Path) -> EvalSet | None:
    """The note classifier's where the data are notes that it knows and no field is named, else the linear probe's."""
    count = study.evaluation.clips
    field = study.data.class_field
    of_notes = None if field else make_note_eval_set(cache, clips, count, folder)
    return of_notes or make_probe_eval_set(cache, clips, count, field, folder)


def _data(source: DataSource, out: Path) -> tuple[LatentCache, list[Clip]]:
    if source.cache:
        clips = load_manifest(Path(source.manifest)) if source.manifest else []
        return open_cache(Path(source.cache)), clips
    clips = load_manifest(render_demo_set(out / "data", clips=source.demo_clips, seed=0))
    codec = load_codec(source.codec or default_codec())
    teacher = None if source.teacher == "none" else load_teacher(source.teacher or "compact")
    text = load_conditioner("minilm")
    return build_cache(clips, codec, text, teacher, out=out / "cache", seconds=DEMO_SECONDS), clips


def _finished_before(run: PlannedRun, folder: Path, question: tuple[str, str, EvaluationSettings]) -> PlannedRun:
    """The run as an earlier version of segue finished it, or itself.

    A setting that came later changes every key. A run made before it is the same run where all that was settable then
    is the same and its new settings are at their defaults, so hours of training are not thrown away by an update.
    """
    if (folder / run.folder / DONE).exists():
        return run
    # Escaped, since a variant's name may hold signs that glob reads.
    for done in sorted(folder.glob(f"{glob.escape(run.variant)}-seed{run.seed}-*/{DONE}")):
        stored = read_run_file(done.parent)
        config = stored["config"]
        # Its own key, computed anew, shows that data and question are the same as well.
        if stored["key"] == run_key(config, *question) and same_settings(config, run.config):
            return replace(run, key=stored["key"], config=config)
    return run
