"""Pictures of a run's stages, from synthetic log lines."""

import json

from segue.report.pictures import Line, curve_png
from segue.report.run_page import write_run_report
from segue.report.stages import stage_figures


def stage_lines(blocks=6):
    lines = []
    for k in range(12):
        regime = max(0.0, (k - 5) / 10)
        line = {
            "event": "stage", "examples_seen": 100 * k, "discrepancy": 1.0 / (1 + k) if k != 3 else None,
            "discrepancy_by_t": {"0.5": 0.5 / (1 + k), "0.95": 1.2 / (1 + k)} if k != 3 else {}, "slope": -0.1,
            "regime": regime, "regime_monotone": regime, "alignment_weight": 0.5 * (1 - regime) ** 2,
            "timestep_mean": 0.6 - 0.1 * regime, "structure_active": k >= 10,
            "groups": [-1, 0, 0, 1, 1, -1] if k >= 6 else None, "signal": "discrepancy", "reason": "semantic",
        }  # fmt: skip
        if k in (6, 9):
            line["similarity"] = [[1.0 if i == j else 0.1 * abs(i - j) for j in range(blocks)] for i in range(blocks)]
        lines.append(line)
    return lines


def test_every_part_of_a_stage_gets_its_picture():
    figures = stage_figures(stage_lines(), "stage")
    assert len(figures) == 6
    for words in ("regime", "alignment weight", "mean t", "discrepancy"):
        assert any(words in f and ", stage" in f for f in figures), words
    for words in ("groups of blocks", "similarity of block weights"):
        assert any(words in f for f in figures), words


def test_a_run_by_condition_gain_shows_that_curve():
    lines = [line | {"discrepancy": None, "discrepancy_by_t": {}} for line in stage_lines()]
    lines = [line | {"condition_gain": 0.1 * k} for k, line in enumerate(lines)]
    figures = " ".join(stage_figures(lines))
    assert 'alt="condition gain' in figures and "discrepancy" not in figures


def test_what_has_no_numbers_has_no_picture():
    assert stage_figures([]) == []
    static = [
        {"event": "stage", "examples_seen": n, "regime": None, "discrepancy": None, "alignment_weight": 0.0}
        for n in (0, 100)
    ]
    assert stage_figures(static) == []
    probed = [line | {"alignment_weight": 0.0, "groups": None, "similarity": None} for line in stage_lines()]
    assert len(stage_figures(probed)) == 3, [f[-200:] for f in stage_figures(probed)]
    assert len(stage_figures(stage_lines()[:1])) >= 3  # one probe is enough to draw


def test_a_run_report_shows_stages_once(tmp_path):
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in stage_lines()))
    html = write_run_report(tmp_path).read_text()
    assert "<h2>Stages</h2>" in html and html.count('alt="regime') == 1 and html.count('alt="SSL-space') == 1


def test_many_arms_can_be_told_apart():
    lines = {f"arm {k}": Line([0, 1], [0, k], [0, k - 1], [0, k + 1]) for k in range(9)}
    png = curve_png(lines, "examples seen", "nine")
    assert png.startswith(b"\x89PNG")
    assert png != curve_png(dict(list(lines.items())[:8]), "examples seen", "nine")
