"""docs/make_results.py: verdicts follow from intervals, and what was not run is said."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
spec = importlib.util.spec_from_file_location("make_results", DOCS / "make_results.py")
page = importlib.util.module_from_spec(spec)
sys.modules["make_results"] = page
spec.loader.exec_module(page)

CLAIM = page.Claim("The method", "notes", "stage", "static-uniform", ("family_accuracy", "validation_loss"))


def study(runs: Path, *, interval, against: str = "static-uniform", place: str = "") -> None:
    """A results.json in which `stage` ends 10 points and 0.02 of the loss from its baseline, with this interval."""

    def measure(base, difference, spread):
        return {
            against: {"seeds": [0, 1], "final": {"value": base}},
            "stage": {"seeds": [0, 1], "final": {"value": base + difference},
                      "final_difference": {"value": difference, "interval": spread}},
        }  # fmt: skip

    folder = runs / "notes" / place
    folder.mkdir(parents=True, exist_ok=True)
    loss = None if interval is None else [0.2 * x for x in interval]
    measures = {"family_accuracy": measure(0.3, 0.1, interval), "validation_loss": measure(0.3, 0.02, loss),
                "log_mel_distance": measure(300.0, -30.0, [-50.0, 10.0])}  # fmt: skip
    (folder / "results.json").write_text(json.dumps({"baseline": against, "measures": measures}))


@pytest.mark.parametrize(
    ("interval", "verdicts"),
    [
        ([0.02, 0.2], ["holds", "**contradicted**"]),  # more accuracy is better, more loss is not
        ([-0.2, -0.02], ["**contradicted**", "holds"]),
        ([-0.1, 0.3], ["not shown", "not shown"]),
        (None, ["not shown (one seed)"] * 2),
    ],
)
def test_a_verdict_follows_from_the_interval(tmp_path, interval, verdicts):
    study(tmp_path, interval=interval)
    rows = [row.split(" | ") for row in page.rows_of(CLAIM, tmp_path)]
    assert [row[3] for row in rows] == verdicts
    assert rows[0][0] == "| The method: `stage` against `static-uniform`, 2 seeds" and rows[1][0].strip("| ") == ""
    assert rows[0][1] == "family accuracy 40.0, 30.0" and rows[0][2].startswith("+10.0 points")


def test_what_is_not_finished_is_not_run(tmp_path):
    assert page.rows_of(CLAIM, tmp_path)[0].split("|")[4].strip() == "not run"
    study(tmp_path, interval=[0.0, 1.0], against="time-ramp")  # of another baseline
    assert page.results_of(CLAIM, tmp_path) is None
    study(tmp_path, interval=[0.0, 1.0], place="against-static-uniform")
    assert page.results_of(CLAIM, tmp_path) is not None


def test_the_table_stands_between_the_marks(tmp_path, monkeypatch):
    study(tmp_path, interval=[0.02, 0.2])
    copy = tmp_path / "results.md"
    copy.write_text(f"before\n{page.BEGIN}\nwas here\n{page.END}\nafter\n")
    monkeypatch.setattr(page, "PAGE", copy)
    monkeypatch.setattr(page, "PICTURE", tmp_path / "claims.png")
    monkeypatch.setattr(page, "CLAIMS", (CLAIM,))
    page.main(tmp_path)
    text = copy.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "was here" not in text and "holds" in text
    assert (tmp_path / "claims.png").stat().st_size > 2000
    page.main(tmp_path)
    assert copy.read_text() == text


def test_every_claim_names_a_study_of_the_repository_and_its_variants():
    for claim in page.CLAIMS:
        described = json.loads((DOCS.parent / "studies" / f"{claim.study}.json").read_text())
        names = {v if isinstance(v, str) else v["name"] for v in described["variants"]}
        assert {claim.variant, claim.against} <= names, claim
