"""The notebook runs from its first cell to its last, and holds no outputs."""

import json
import sys
import types
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first-sounds.ipynb"


def test_the_notebook_runs(monkeypatch, tmp_path):
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    # What a notebook brings itself; here it only remembers what was played.
    played = []
    display = types.ModuleType("IPython.display")
    display.Audio = lambda wave, rate: (wave, rate)
    display.display = played.append
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    scope: dict = {}
    for cell in cells:
        exec("".join(cell["source"]), scope)
    assert scope["result"].finished and len(played) == 4
    assert all(wave.shape[0] == 1 and wave.std() > 1e-4 and rate == 16000 for wave, rate in played[:3])
