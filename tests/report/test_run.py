"""The page of a run: everything that is there, nothing that is not."""

import base64
import re

import pytest

from segue.report import write_run_report
from segue.report.curves import curve_figures, read_events
from segue.types import UserError


def test_page_holds_curves_samples_and_configuration(run_dir):
    page = write_run_report(run_dir).read_text()
    for title in ("validation loss at fixed t", "training loss", "learning rate", "regime r", "alignment weight"):
        assert title in page
    assert "a &lt;loud&gt; violin" in page and "split test" in page
    assert "train.total_examples" in page and "6,400" in page
    assert page.count("<audio") == 1


def test_page_says_recipe_length_and_time_of_the_run(run_dir):
    page = write_run_report(run_dir.rename(run_dir.with_name("mine"))).read_text()
    assert "<h1>static-uniform</h1>" in page and "Training run in mine/" in page
    for chip in (
        "examples seen <b>3,200</b>", "of <b>6,400</b>", "training time <b>8 min 46 s</b>", "per second <b>6.08</b>"
    ):  # fmt: skip
        assert chip in page
    assert "<dt>recipe</dt><dd>static-uniform</dd>" in page and "<dt>cache</dt><dd>/data/cache</dd>" in page


def test_page_needs_nothing_beside_it(run_dir):
    page = write_run_report(run_dir).read_text()
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert "<script" not in page and "url(" not in page and "@import" not in page
    for picture in re.findall(r"data:image/png;base64,([^\"]+)", page):
        assert base64.b64decode(picture, validate=True).startswith(b"\x89PNG")


def test_an_empty_or_broken_run_still_makes_a_page(tmp_path):
    assert "Nothing is logged yet" in write_run_report(tmp_path).read_text()
    (tmp_path / "config.json").write_text("{broken")
    (tmp_path / "log.jsonl").write_text('[1]\n"x"\n{"event": "train"}\n')
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "a.wav").write_text("not a sound")
    page = write_run_report(tmp_path).read_text()
    assert "cannot be read" in page


def test_refuses_a_missing_run(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        write_run_report(tmp_path / "nowhere")


def test_events_leave_out_a_cut_line(run_dir):
    events = read_events(run_dir)
    assert len(events) == 33 and read_events(run_dir / "nowhere") == []


def test_several_runs_share_a_panel_for_each_time(run_dir):
    events = read_events(run_dir)
    titles = re.findall(r'alt="([^"]*) over', "".join(curve_figures({"a": events, "b": events})))
    assert titles[:2] == ["validation loss at t = 0.1", "validation loss at t = 0.9"]
    assert "learning rate" not in titles and "discrepancy" not in " ".join(titles)
