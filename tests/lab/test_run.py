"""Runs of a study: each once, in order, a few at once; killed, they go on; failed, they stop no other."""

import json
import sys

import numpy as np
import pytest
from safetensors.torch import load_file

from segue.codecs import load_codec
from segue.conditioners import load_conditioner
from segue.data.encoding import build_cache
from segue.data.manifest import load_manifest
from segue.files import sha256_of
from segue.training.log import read_log
from segue.types import UserError
from segue_lab.study.eval_linear_probe import make_probe_eval_set
from segue_lab.study.eval_note_classifier import make_note_eval_set
from segue_lab.study.eval_set import LOG_MEL, load_eval_set
from segue_lab.study.runs import DONE, FAILED, planned_runs, prepare, status_of, train_runs, write_run
from segue_lab.study.study_config import run_key, runs_of, study_from_json
from segue_lab.study.tables import write_study_report
from segue_lab.study.worker import COMMAND, work

ORIGIN = {"command": "segue-lab study s.json", "commit": "abc", "machine": "a machine"}

# A worker that writes what a run leaves, without training: it fails where the variant's name says so.
FAKE = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[-1])
run = json.loads((folder / "run.json").read_text())
with open(folder.parent / "order", "a") as order:
    order.write(f"{run['variant']} {run['seed']}\\n")
if run["variant"] == "bad":
    sys.exit("ValueError: it went wrong")
total = run["config"]["train"]["total_examples"]
with open(folder / "log.jsonl", "w") as log:
    for k in range(5):
        loss = 2.0 - 0.2 * k + 0.01 * run["seed"] - 0.1 * (run["variant"] == "good")
        line = {"event": "validation", "examples_seen": k * total // 4, "loss": loss, "loss_by_t": {"0.5": loss}}
        log.write(json.dumps(line) + "\\n")
(folder / "done.json").write_text(json.dumps({"seconds": 10.0, "examples_seen": total, "commit": "abc"}))
"""


@pytest.fixture
def fake(tmp_path):
    path = tmp_path / "fake.py"
    path.write_text(FAKE)
    return [sys.executable, str(path)]


def study_of(description, *names, **changes):
    variants = [{"recipe": "static-uniform", "name": name} for name in names]
    return study_from_json(description | {"variants": variants, "clips": 0} | changes, "s.json")


def test_runs_are_made_once_seed_by_seed_and_a_failure_stops_no_other(description, fake, tmp_path):
    study, out = study_of(description, "base", "bad", "good"), tmp_path / "out"
    prepared = prepare(study, out)
    assert train_runs(prepared, study, out, fake, slots=1, quiet=True)
    order = (out / "runs" / "order").read_text().splitlines()
    assert order == ["base 0", "bad 0", "good 0", "base 1", "bad 1", "good 1"]
    states = [status_of(out / "runs" / c.folder) for c in prepared.runs]
    assert [s for s, _ in states] == ["done", "failed", "done"] * 2
    assert states[1][1] == "ValueError: it went wrong"

    line = write_study_report(study, out, prepared.runs, ORIGIN, tmp_path / "docs.md")
    assert line == "4 of 6 runs done; PARTIAL"
    text = (out / "report.md").read_text()
    assert text == (tmp_path / "docs.md").read_text()
    for words in (
        "bad seed 0: failed (ValueError: it went wrong)",
        "segue-lab study s.json",
        "abc",
        "a machine",
        "0 of 2",
    ):
        assert words in text, words
    results = json.loads((out / "results.json").read_text())
    good = results["measures"]["validation_loss"]["good"]
    assert good["final_difference"]["value"] == pytest.approx(-0.1) and not good["final_difference"]["includes_null"]
    # The baseline falls by 0.2 a quarter: 0.1 better means half a quarter earlier.
    assert good["to_target"]["value"] == pytest.approx(0.875)
    assert "bad" not in results["measures"]["validation_loss"] and results["wall_clock"]["good"]["value"] == 1.0
    assert {p.name for p in (out / "pictures").iterdir()} == {
        "validation_loss-examples.png",
        "validation_loss-seconds.png",
    }
    assert "PARTIAL" in (out / "report.html").read_text()

    assert train_runs(prepared, study, out, fake, slots=2, quiet=True)  # what failed is tried again, and nothing else
    assert (out / "runs" / "order").read_text().splitlines()[6:] in (["bad 0", "bad 1"], ["bad 1", "bad 0"])


def test_changed_settings_make_new_runs_and_leave_the_old(description, fake, tmp_path):
    out = tmp_path / "out"
    for examples in (64, 128, 64):
        study = study_of(description, "base", seeds=[0], examples=examples)
        prepared = prepare(study, out)
        assert train_runs(prepared, study, out, fake, quiet=True)
    assert (out / "runs" / "order").read_text().splitlines() == ["base 0"] * 2
    assert len(list((out / "runs").glob("base-*"))) == 2
    assert [c.key for c in planned_runs(out)] == [c.key for c in prepared.runs]


def test_what_an_older_version_finished_is_known_again(description, fake, tmp_path):
    """A config of before a setting existed is the same run, unless what it does say differs from what is asked."""
    out = tmp_path / "out"
    study = study_of(description, "base", seeds=[0])
    prepared = prepare(study, out)
    assert train_runs(prepared, study, out, fake, quiet=True)
    folder = out / "runs" / prepared.runs[0].folder
    stored = json.loads((folder / "run.json").read_text())
    del stored["config"]["policy"]["probe"]["closest"]
    meta = sha256_of([prepared.cache.path / "meta.json"])
    stored["key"] = run_key(stored["config"], meta, "", study.evaluation)
    (folder / "run.json").write_text(json.dumps(stored))
    folder.rename(old := out / "runs" / f"base-seed0-{stored['key']}")

    again = prepare(study, out)
    assert [c.folder for c in again.runs] == [old.name] and status_of(old) == ("done", "")
    assert train_runs(again, study, out, fake, quiet=True)
    assert (out / "runs" / "order").read_text().splitlines() == ["base 0"]
    assert write_study_report(study, out, again.runs, ORIGIN) == "1 of 1 runs done"

    own = description["set"]
    for changes in ({"set": [*own, "probe.closest=0.02"]}, {"set": [*own, "optim.beta1=0.8"]}, {"steps": 3}):
        asked = prepare(study_of(description, "base", seeds=[0], **changes), out)
        assert asked.runs[0].folder != old.name, changes


def test_the_folder_of_an_earlier_version_is_read_and_gone_on_with(description, fake, tmp_path):
    """Its runs were cells in cells/, its variants arms, its evaluation set was called listening."""
    out = tmp_path / "out"
    study = study_of(description, "base", seeds=[0], clips=9)
    prepared = prepare(study, out)
    assert train_runs(prepared, study, out, fake, quiet=True)

    (out / "runs").rename(out / "cells")
    (out / "eval-set").rename(out / "listening")
    asked = json.loads((out / "listening" / "eval-set.json").read_text())
    (out / "listening" / "eval-set.json").unlink()
    (out / "listening" / "listening.json").write_text(
        json.dumps({k: v for k, v in asked.items() if k not in ("space", "classes")})
    )
    folder = out / "cells" / prepared.runs[0].folder
    stored = json.loads((folder / "run.json").read_text())
    stored["arm"], stored["listening"] = stored.pop("variant"), stored.pop("eval_set")
    stored["evaluation"]["judge_clips"] = stored["evaluation"].pop("clips")
    (folder / "cell.json").write_text(json.dumps(stored))
    (folder / "run.json").unlink()
    cells = [{"arm": r.variant, "seed": r.seed, "key": r.key, "config": r.config} for r in prepared.runs]
    (out / "plan.json").write_text(json.dumps({"cells": cells}))

    assert [run.folder for run in planned_runs(out)] == [run.folder for run in prepared.runs]
    assert write_study_report(study, out, planned_runs(out), ORIGIN) == "1 of 1 runs done"
    assert "in the note classifier's space" in (out / "report.md").read_text()
    again = prepare(study, out)
    assert again.eval_set.key == prepared.eval_set.key and [run.key for run in again.runs] == [
        run.key for run in prepared.runs
    ]
    assert train_runs(again, study, out, fake, quiet=True)
    assert (out / "cells" / "order").read_text().splitlines() == ["base 0"]  # nothing was run again
    assert not (out / "runs").exists() and not (out / "eval-set").exists()


def test_a_study_without_a_finished_baseline_still_makes_tables(description, fake, tmp_path):
    study, out = study_of(description, "bad", "good"), tmp_path / "out"
    prepared = prepare(study, out)
    train_runs(prepared, study, out, fake, quiet=True)
    assert "2 of 4" in write_study_report(study, out, prepared.runs, ORIGIN)
    entry = json.loads((out / "results.json").read_text())["measures"]["validation_loss"]["good"]
    assert "final" in entry and "to_target" not in entry


def test_nothing_finished_is_a_report_as_well(description, tmp_path):
    study = study_of(description, "base")
    assert write_study_report(study, tmp_path, runs_of(study, "", ""), ORIGIN) == "0 of 2 runs done; PARTIAL"
    with pytest.raises(UserError, match="no study was run here"):
        planned_runs(tmp_path)


def test_two_studies_in_one_folder_are_refused(description, fake, tmp_path):
    from segue.training.parallel_runs import locked

    study = study_of(description, "base", seeds=[0])
    prepared = prepare(study, tmp_path)
    with locked(tmp_path / "study.lock"), pytest.raises(UserError, match="running already"):
        train_runs(prepared, study, tmp_path, fake, quiet=True)


def run_folder(study, out):
    """A run as `train_runs` hands it to a worker."""
    prepared = prepare(study, out)
    folder = out / "runs" / prepared.runs[0].folder
    write_run(folder, prepared.runs[0], prepared, study, "cpu")
    return folder


def test_a_killed_run_goes_on_and_equals_an_unbroken_one(description, tmp_path, monkeypatch):
    """Killed in training, then between two evaluations: the figures are those of a run that was left alone."""
    import segue_lab.study.evaluation as evaluation
    from segue.data.loader import LatentLoader

    study = study_from_json(description | {"seeds": [0], "variants": ["static-uniform"]}, "s.json")
    whole, broken = (run_folder(study, tmp_path / name) for name in ("whole", "broken"))
    assert work(whole) == 0

    next_batch, calls = LatentLoader.next_batch, []

    def killed(loader, **options):
        calls.append(1)
        if len(calls) > 6:
            raise KeyboardInterrupt
        return next_batch(loader, **options)

    monkeypatch.setattr(LatentLoader, "next_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        work(broken)
    assert status_of(broken) == ("unfinished", "") and len(list((broken / "checkpoints").iterdir())) == 1
    monkeypatch.setattr(LatentLoader, "next_batch", next_batch)

    append = evaluation._append

    def killed_after_one(path, line):
        append(path, line)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "_append", killed_after_one)
    with pytest.raises(KeyboardInterrupt):
        work(broken)
    monkeypatch.setattr(evaluation, "_append", append)
    assert work(broken) == 0

    def figures(folder):
        return [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(folder / "evaluation.jsonl")]

    assert figures(whole) == figures(broken) and [line["share"] for line in figures(whole)] == [0.5, 1.0]
    assert [line["examples_seen"] for line in figures(whole)] == [32, 64]
    for folder in (whole, broken):
        assert (folder / DONE).exists() and not (folder / FAILED).exists()
        assert len(list((folder / "checkpoints").iterdir())) == 1  # the others are deleted once evaluated
    weights = [load_file(next(f.glob("checkpoints/*/model.safetensors"))) for f in (whole, broken)]
    assert all((weights[0][k] == weights[1][k]).all() for k in weights[0])


def test_the_eval_set_of_notes_is_made_once(notes, tmp_path):
    from segue.data.manifest import load_manifest

    cache, manifest = notes
    real = make_note_eval_set(cache, load_manifest(manifest), 9, tmp_path / "real")
    assert [p["held_out"] for p in real.prompts] == [False] * 6 + [True] * 3
    assert real.reference.shape[1] == 64 and set(real.ceilings) == {"real", "codec_round_trip"}
    again = make_note_eval_set(cache, load_manifest(manifest), 9, tmp_path / "real")
    assert again.key == real.key and (again.reference == real.reference).all()
    assert again.log_mel.shape == real.reference.shape and (again.log_mel == real.log_mel).all()
    decoded = make_note_eval_set(cache, [], 9, tmp_path / "decoded")
    assert decoded.reference_kind == "decoded latents" and set(decoded.ceilings) == {"codec_round_trip"}
    assert decoded.key != real.key and make_note_eval_set(cache, [], 0, tmp_path / "none") is None


def test_replicates_resample_clips_within_kinds_and_pair_between_runs():
    from segue.evaluation.note_classifier import NoteClassifier, NotePrediction
    from segue_lab.study.eval_note_classifier import measure_notes
    from segue_lab.study.evaluation import REPLICATES

    classifier, generator = NoteClassifier.load(), np.random.default_rng(0)
    prompts = [{"caption": "", "family": classifier.families[0], "pitch": 60, "held_out": k >= 20} for k in range(30)]
    family = np.array([0] * 20 + [1] * 10)  # right on every trained pair, on no held-out one
    pitch = np.full(30, classifier.pitch_index(60))
    found = NotePrediction(family, family, pitch, None, None, None, generator.normal(size=(30, 64)).astype(np.float32))
    levels = generator.normal(size=(30, 64))

    def references():
        return generator.normal(size=(80, 64)), generator.normal(size=(80, 64))

    values, arrays = measure_notes(found, levels, classifier, prompts, references())
    # As many clips as dimensions have no covariance worth a distance.
    assert values["frechet_distance"] > 0 and "log_mel_distance" not in values
    assert (arrays["embedding.log_mel_distance"] == levels.astype(np.float32)).all()
    assert values["family_accuracy_trained"] == 1 and values["family_accuracy_held_out"] == 0
    assert values["family_accuracy"] == pytest.approx(2 / 3) and values["pitch_accuracy"] == 1
    # Within kinds: the mix of trained and held-out pairs never varies.
    assert (
        arrays["replicates.family_accuracy"].shape == (REPLICATES,)
        and np.ptp(arrays["replicates.family_accuracy"]) == 0
    )
    again = measure_notes(found, levels, classifier, prompts, references())[1]
    assert (again["replicates.family_accuracy"] == arrays["replicates.family_accuracy"]).all()
    broken = measure_notes(found, levels, classifier, prompts, references(), np.arange(30) >= 10)[0]
    assert broken["family_accuracy"] == pytest.approx(1 / 3) and broken["frechet_distance"] > 0


def test_the_clock_of_a_run_goes_on_over_sessions():
    from segue.report.run_curves import clock_of

    log = [{"event": "train", "examples_seen": n, "examples_per_sec": 10.0} for n in (10, 20, 30)]
    log += [{"event": "train", "examples_seen": n, "examples_per_sec": (n - 30) / ((n - 30) / 20)} for n in (40, 50)]
    clock = clock_of(log)
    assert clock[3].tolist() == [30, 3.0] and clock[-1].tolist() == [50, 4.0]
    assert clock_of([]).tolist() == [[0, 0]]


def test_variants_of_super_resolution_are_measured_by_lsd(notes, description, tmp_path):
    clips, out = load_manifest(notes[1]), tmp_path / "out"
    codec = load_codec("gain-shape", 8000)
    cache = build_cache(clips, codec, load_conditioner("minilm"), out=tmp_path / "wide", seconds=0.256)
    cutoffs = ["degradation.cutoff_min_hz=1900", "degradation.cutoff_max_hz=2000"]
    variant = {"recipe": "sr-demo-static", "name": "wide", "set": cutoffs}
    about = description | {"data": {"cache": str(cache.path)}, "variants": [variant], "seeds": [0]}
    study = study_from_json(about, "s.json")
    prepared = prepare(study, out)
    assert train_runs(prepared, study, out, COMMAND, slots=1, quiet=True)
    (folder,) = [out / "runs" / run.folder for run in prepared.runs]
    assert status_of(folder) == ("done", "")
    half, end = read_log(folder / "evaluation.jsonl")
    assert half["share"] == 0.5 and end["share"] == 1.0 and end["lsd_low"] < end["lsd_high"]
    assert load_file(folder / "evaluation" / "examples-0000000064.safetensors")["replicates.lsd"].shape == (200,)
    write_study_report(study, out, prepared.runs, ORIGIN)
    assert "LSD, high band" in (out / "report.md").read_text()
    mixed = study_from_json(about | {"variants": ["static-uniform", variant]}, "s.json")
    with pytest.raises(UserError, match="do not compare"):
        prepare(mixed, tmp_path / "mixed")


def test_sounds_that_the_note_classifier_does_not_know_get_a_linear_probe(notes, description, tmp_path):
    """The same cache with a field named: a linear classifier is fitted on its training clips, and the note classifier is not used."""
    cache, manifest = notes
    data = {"cache": str(cache.path), "manifest": str(manifest), "class_field": "pitch"}
    changes = {"data": data, "clips": 70, "seeds": [0], "variants": ["static-uniform"]}
    study, out = study_from_json(description | changes, "s.json"), tmp_path / "out"
    folder = run_folder(study, out)
    asked = load_eval_set(out / "eval-set")
    assert asked.space == LOG_MEL and asked.reference.shape == (20, 64) and asked.reference_kind == "real clips"
    assert len(asked.prompts) == 70 and {p["held_out"] for p in asked.prompts} == {True, False}
    assert asked.classifier.classes == tuple(str(60 + k) for k in range(12))
    assert asked.ceilings["real"]["class_accuracy"] == 1.0  # a sine of each pitch, seen before
    assert "log_mel_distance" not in asked.ceilings["real"]  # ten clips in 64 dimensions: no such figure
    again = prepare(study, out).eval_set
    assert again.key == asked.key and (again.reference == asked.reference).all()
    fresh = make_probe_eval_set(cache, load_manifest(manifest), 70, "pitch", tmp_path / "fresh")
    stored = load_eval_set(tmp_path / "fresh")
    assert (stored.classifier.weight == fresh.classifier.weight).all() and (
        stored.classifier.bias == fresh.classifier.bias
    ).all()
    assert stored.classifier.predict(fresh.reference) == fresh.classifier.predict(fresh.reference)

    assert work(folder) == 0
    lines = read_log(folder / "evaluation.jsonl")
    assert [line["share"] for line in lines] == [0.5, 1.0] and all(line["clips"] == 70 for line in lines)
    assert all(0 <= line["class_accuracy"] <= 1 and line["clips_not_finite"] == 0 for line in lines)
    assert write_study_report(study, out, planned_runs(out), ORIGIN) == "1 of 1 runs done"
    text = (out / "report.md").read_text()
    assert "prompt accuracy, class %" in text and "in log-mel statistics" in text and "note classifier" not in text

    other = make_probe_eval_set(cache, load_manifest(manifest), 70, "", tmp_path / "no field")
    assert other.classifier is None and set(other.ceilings["real"]) == set()
    with pytest.raises(UserError, match=r"data\.class_field: no clip .* field 'colour'"):
        make_probe_eval_set(cache, [], 70, "colour", tmp_path / "none")


def test_the_distance_of_any_sounds_falls_to_nothing_for_the_same_clips():
    from segue_lab.study.eval_linear_probe import measure_any

    draw = np.random.default_rng(0)
    reference = draw.standard_normal((400, 64))
    prompts = [{"class": "", "held_out": False}] * 400
    same, arrays = measure_any(reference, None, prompts, reference)
    moved, _ = measure_any(reference + 2.0, None, prompts, reference)
    assert same["log_mel_distance"] == pytest.approx(0, abs=1e-6)
    assert moved["log_mel_distance"] == pytest.approx(64 * 4.0, abs=1e-6)
    assert arrays["replicates.log_mel_distance"].shape == (200,) and "class_right" not in arrays
    usable = np.arange(400) < 64
    assert measure_any(reference, None, prompts, reference, usable)[0] == {}
