"""`segue compare`: any run folders side by side, and one line for what cannot be compared."""

import json

import pytest


def write_run(folder, cache, scale, rate=100.0, evaluated=False):
    """A run whose loss falls from 2 to 1 over 1000 examples, `scale` times as fast."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"segue": "0", "cache": str(cache), "run": {}}))
    lines = []
    for n in range(0, 1001, 100):
        loss = max(0.5, 2 - scale * n / 1000)
        lines.append({"event": "train", "examples_seen": n, "loss": 1.0, "examples_per_sec": rate})
        lines.append({"event": "validation", "examples_seen": n, "loss": loss, "loss_by_t": {"0.9": loss}})
        lines.append({"event": "stage", "examples_seen": n, "discrepancy": loss / 2, "regime": 0.0})
    (folder / "log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"event": "tr')
    if evaluated:
        evaluations = [
            {"event": "evaluation", "examples_seen": n, "pitch_accuracy": scale * n / 2000} for n in (500, 1000)
        ]
        (folder / "evaluation.jsonl").write_text("".join(json.dumps(x) + "\n" for x in evaluations))
    return folder


@pytest.fixture
def runs(tmp_path):
    return [
        write_run(tmp_path / "a" / "run", "cache", 1.0, evaluated=True),
        write_run(tmp_path / "b" / "run", "cache", 2.0, rate=50.0, evaluated=True),
        write_run(tmp_path / "c", "cache", 0.5),
    ]


def test_ratios_on_known_curves(segue, runs, tmp_path):
    ran = segue("compare", *runs, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    results = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert list(results["runs"]) == ["a/run", "b/run", f"{tmp_path.name}/c"] and results["first"] == "a/run"
    loss = results["measures"]["validation_loss"]
    assert loss["a/run"]["examples_ratio"] == 1
    assert loss["b/run"]["examples_ratio"] == pytest.approx(0.5)
    assert loss["b/run"]["seconds_ratio"] == pytest.approx(1.0)  # half the examples at half the rate
    assert loss[f"{tmp_path.name}/c"]["examples_ratio"] == "not reached"
    pitch = results["measures"]["pitch_accuracy"]
    assert pitch["b/run"]["examples_ratio"] == pytest.approx(0.5) and pitch[f"{tmp_path.name}/c"] is None
    for words in ("a/run", "validation loss at t = 0.9", "prompt accuracy, pitch", "not reached"):
        assert words in ran.out
    pictures = {p.name for p in (tmp_path / "out" / "pictures").iterdir()}
    assert {"discrepancy-examples.png", "discrepancy-seconds.png", "pitch_accuracy-examples.png"} <= pictures
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/png;base64" in page and "http" not in page


def test_without_out_nothing_is_written(segue, runs, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert segue("compare", *runs[:2]).code == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_of_other_caches_are_refused_unless_forced(segue, runs, tmp_path):
    other = write_run(tmp_path / "d", "elsewhere", 1.0)
    ran = segue("compare", runs[0], other)
    assert ran.code == 2 and "another cache (elsewhere)" in ran.line and "--force" in ran.line
    assert segue("compare", runs[0], other, "--force").code == 0


def test_a_moved_cache_is_still_the_same(segue, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.json").write_text('{"schema_version": 1}')
    runs = [write_run(tmp_path / f"run-{name}", tmp_path / name, 1.0) for name in ("one", "two")]
    assert segue("compare", *runs).code == 0


def test_what_is_no_run_gets_one_line(segue, runs, tmp_path):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    empty = write_run(tmp_path / "empty", "cache", 1.0)
    (empty / "log.jsonl").write_text("")
    for arguments, says in (
        ((runs[0],), "at least two"),
        ((runs[0], runs[0]), "given twice"),
        ((runs[0], tmp_path / "nowhere"), "no run there"),
        ((runs[0], tmp_path / "damaged"), "damaged"),
        ((runs[0], empty), "shares no measure"),
    ):
        ran = segue("compare", *arguments)
        assert ran.code == 2 and says in ran.line, ran.err
