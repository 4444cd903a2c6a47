"""The page of a run: everything that is there, nothing that is not."""

import base64
import json
import re

import pytest
import soundfile

from segue.report import curve_png, write_run_report
from segue.report.curves import curve_figures, read_events
from segue.report.pictures import Line
from segue.report.run_page import settings_of, sound_cards
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


def test_sounds_stand_beside_their_original_and_come_first(run_dir, wave):
    def kept(folder, prompt):
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / "000.wav", wave, 16000)
        (folder / "samples.json").write_text(json.dumps([{"file": "000.wav", "prompt": prompt}]))

    for name in ("original", "examples-0000001600"):
        kept(run_dir / "samples" / name, "a <loud> violin")
    page = write_run_report(run_dir).read_text()
    order = [page.index(words) for words in ("original", "after 1,600 examples", "at the end", "<h2>Curves")]
    assert order == sorted(order) and page.count("<audio") == 3 and page.count('class="prompt"') == 1
    assert 'preload="metadata"' in page


def test_super_resolution_shows_original_input_and_output(tmp_path, wave):
    (tmp_path / "samples").mkdir()
    listed = [{"file": f"000-{form}.wav", "prompt": f"bell (soft) ({form})"} for form in ("low", "made", "true")]
    for sample in listed:
        soundfile.write(tmp_path / "samples" / sample["file"], wave, 16000)
    (tmp_path / "samples" / "samples.json").write_text(json.dumps(listed))
    (card,) = sound_cards(tmp_path)
    assert "<h3>bell (soft)</h3>" in card
    assert card.index(">original<") < card.index(">input<") < card.index(">output<")


def test_settings_show_what_automatic_ones_became():
    run = {"optim": {"learning_rate": 0.0}, "train": {"log_every": 0, "seed": 0}}
    assert settings_of({"run": run, "resolved": {"optim.learning_rate": 2e-3}}) == [
        ("optim.learning_rate", 2e-3), ("train.log_every", "automatic"), ("train.seed", 0)
    ]  # fmt: skip


def test_a_variant_keeps_its_colour_where_another_is_missing():
    line = Line([0.0, 1.0], [0.0, 1.0])
    alone = curve_png({"b": line}, "x", "t", names=["a", "b"])
    assert alone != curve_png({"b": line}, "x", "t") and alone == curve_png({"b": line}, "x", "t", names=["c", "b"])
