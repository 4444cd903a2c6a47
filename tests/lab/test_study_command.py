"""`segue-lab study` as its users meet it: killed and called again it goes on; finished, it takes seconds."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from segue.training.parallel_runs import locked
from segue_lab.study.runs import DONE


@pytest.fixture(scope="module")
def file(recordings, tmp_path_factory):
    """A study of one run on a cache that the note classifier knows nothing of."""
    from segue.codecs import load_codec
    from segue.conditioners import load_conditioner
    from segue.data.encoding import build_cache
    from segue.data.manifest import load_manifest

    folder = tmp_path_factory.mktemp("study")
    clips = load_manifest(recordings, "filename")
    cache = build_cache(
        clips, load_codec("spectral", 8000), load_conditioner("minilm"), out=folder / "cache", seconds=0.5
    )
    description = {
        "name": "tiny", "data": {"cache": str(cache.path)}, "examples": 80, "variants": ["static-uniform"], "seeds": [3],
        "set": ["model.preset=dit-tiny", "train.batch_size=4", "train.validation_clips=2"], "evaluate_at": [0.5, 1.0],
    }  # fmt: skip
    (folder / "study.json").write_text(json.dumps(description))
    return folder / "study.json"


@pytest.mark.slow
def test_killed_and_called_again_it_goes_on_and_then_takes_seconds(lab, file, tmp_path):
    out = tmp_path / "out"
    started = subprocess.Popen(
        [sys.executable, "-m", "segue_lab.cli.main", "study", str(file), "--out", str(out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob("runs/*/log.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.kill(started.pid, signal.SIGKILL)
        started.wait()
    assert list(out.glob("runs/*/log.jsonl"))
    # Its workers see that it is gone, save and end: nobody holds their folders any more.
    for folder in (out / "runs").iterdir():
        with locked(folder / "lock", wait=True):
            pass

    ran = lab("study", file, "--out", out, "--markdown", tmp_path / "table.md")
    assert ran.code == 0 and "1 of 1 runs done" in ran.out, ran.err
    assert "PARTIAL" not in ran.out and (tmp_path / "table.md").read_text() == (out / "report.md").read_text()
    done = sorted(out.glob(f"runs/*/{DONE}"))
    times = [path.stat().st_mtime_ns for path in done]
    assert len(done) == 1

    ran = lab("study", file, "--out", out)  # finished: nothing runs
    assert ran.code == 0 and [path.stat().st_mtime_ns for path in done] == times
    (out / "results.json").unlink()
    assert lab("study", file, "--out", out, "--report-only").code == 0
    results = json.loads((out / "results.json").read_text())
    assert results["measures"]["validation_loss"]["static-uniform"]["seeds"] == [3]
    assert results["status"] == {"done": 1, "of": 1, "missing": [], "line": "1 of 1 runs done"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("study", "{tmp}/none.json", "--out", "{tmp}/o"), "no such study file"),
        (("study", "{file}", "--out", "{tmp}/o", "--report-only"), "no study was run here"),
        (("study", "{file}", "--out", "{tmp}/o", "--slots", "0"), "--slots 0"),
        (
            ("study", "{file}", "--out", "{tmp}/o", "--report-only", "--baseline", "stage"),
            "names a variant: static-uniform",
        ),
        (("study", "{file}", "--out", "{tmp}/o", "--baseline", "static-uniform"), "goes with --report-only"),
    ],
    ids=str,
)
def test_a_mistake_gets_one_line_and_exit_2(lab, file, tmp_path, arguments, says):
    ran = lab(*(a.format(tmp=tmp_path, file=file) for a in arguments))
    assert ran.code == 2 and says in ran.line, ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_cache_is_named_before_anything_runs(lab, file, tmp_path):
    description = json.loads(file.read_text()) | {"data": {"cache": str(tmp_path / "none")}}
    (tmp_path / "s.json").write_text(json.dumps(description))
    ran = lab("study", tmp_path / "s.json", "--out", tmp_path / "o")
    assert ran.code == 2 and "no latent cache" in ran.line
