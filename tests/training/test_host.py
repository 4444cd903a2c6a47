"""benchmarks/host.py is run by hand; that it runs is tested here."""

import importlib.util
import json
from pathlib import Path

import torch

from segue.recipes import load_recipe

spec = importlib.util.spec_from_file_location("host", Path(__file__).parents[2] / "benchmarks" / "host.py")
host = importlib.util.module_from_spec(spec)
spec.loader.exec_module(host)


def test_every_way_is_measured_with_and_without_teacher(taught, cache):
    figures = host.measure(taught, load_recipe("stage"), batch=8, rounds=2)
    assert list(figures) == ["without teacher features", "with teacher features"]
    for ways in figures.values():
        assert list(ways) == ["rows in files", "rows in memory"]
        assert all(set(parts) == {*host.PARTS, "all"} and parts["all"] > 0 for parts in ways.values())
    assert list(host.measure(cache, load_recipe("static-uniform"), batch=8, rounds=1)) == ["without teacher features"]


def test_one_json_object_is_written(taught, tmp_path, monkeypatch, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setattr(
        "sys.argv", ["host.py", str(taught.path), "--batch=8", "--rounds=1", f"--json={tmp_path / 'x'}"]
    )
    host.main()
    torch.set_num_threads(threads)
    report = json.loads((tmp_path / "x").read_text())
    assert {"benchmark", "commit", "machine", "versions", "threads", "settings", "figures_ms"} <= report.keys()
    assert report["aims_ms"] == {"without teacher features": 3.0, "with teacher features": 5.0}
    assert "rows in memory" in capsys.readouterr().out
