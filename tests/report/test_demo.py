"""The demo's page and summary."""

import json
import re

import pytest

from segue.report import PromptClip, VariantPage, write_demo_report, write_summary
from segue.types import UserError


def measures(value):
    part = {
        "family_accuracy": value,
        "family_accuracy_interval": [value - 0.05, value + 0.05],
        "family_accuracy_chance": 0.09,
        "pitch_accuracy": value / 2,
        "pitch_accuracy_interval": [value / 2 - 0.05, value / 2 + 0.05],
        "pitch_accuracy_chance": 0.02,
        "clips": 192,
    }
    return {**part, "held_out": {**part, "clips": 64}, "frechet_distance": 17.25, "frechet_distance_n": 192}


@pytest.fixture
def summary():
    variant = {
        **measures(0.4),
        "examples_seen": 51200,
        "seconds": 300.0,
        "examples_per_sec": 170.7,
        "validation_loss": {"0.1": 0.412, "0.9": 0.3},
        "validation_loss_first": {"0.1": 0.9, "0.9": 1.2},
    }
    card = {"clean": {"family": {"accuracy": 0.987, "interval": [0.98, 0.99], "chance": 0.1, "n": 4000}}}
    return {
        "schema_version": 1,
        "command": "segue demo --out runs/demo",
        "commit": "abc1234",
        "machine": "x86_64, 2 threads",
        "seconds_total": 700.0,
        "dataset": {"clips": 6000, "hours": 3.41},
        "model": {"preset": "dit-3m", "parameters": 3_100_000},
        "note_classifier": {"sha256": "ab" * 32, "card": card},
        "references": {"real": measures(0.9), "codec_round_trip": measures(0.85)},
        "variants": {"static-uniform": variant, "stage": {**variant, **measures(0.6)}},
    }


@pytest.fixture
def variants(run_dir, wave):
    clips = [
        PromptClip("a soft violin playing C 5", True, wave, 16000, "violin (93%), C 5 (88%)"),
        PromptClip("a snare drum", False, wave, 16000, ""),
        PromptClip("a snare drum", False, 0.5 * wave, 16000, ""),
    ]
    return {"static-uniform": VariantPage(run_dir, clips), "stage": VariantPage(run_dir, clips)}


def test_page_says_what_the_summary_says(tmp_path, summary, variants, wave):
    real = [PromptClip("a soft violin playing C 5", True, wave, 16000, "violin (99%), C 5 (99%)")]
    page = write_demo_report(tmp_path, summary, variants, real).read_text()
    for words in (
        "6,000 captioned clips", "3.4 hours", "11 min 40 s", "3.1 M", "abc1234", "segue demo --out runs/demo",
        "real clips", "codec round trip", "40.0 %", "60.0 %", "35–45", "chance 9.0", "n 192", "n 64", "17.2",
        "51,200", "0.412", "at first 0.900", "98.7 %", "classified as violin (93%), C 5 (88%)", "held-out pair",
        "validation loss at t = 0.9",
    ):  # fmt: skip
        assert words in page, words
    assert page.count("<audio") == 7  # a caption used twice keeps both of its clips
    assert page.count("real clip</p>") == 1


def test_page_needs_nothing_beside_it(tmp_path, summary, variants):
    page = write_demo_report(tmp_path, summary, variants).read_text()
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert "<script" not in page and "url(" not in page


def test_missing_parts_are_left_out(tmp_path):
    page = write_demo_report(tmp_path, {}, {}).read_text()
    assert "Measures" in page and "None" not in page


def test_summary_round_trips_and_replaces(tmp_path, summary):
    path = write_summary(tmp_path / "summary.json", {})
    write_summary(path, summary)
    assert json.loads(path.read_text()) == summary
    assert list(tmp_path.glob("*summary*")) == [path]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_summary_refuses_what_is_not_finite_and_keeps_the_old(tmp_path, summary, value):
    path = write_summary(tmp_path / "summary.json", {"old": 1})
    summary["variants"]["stage"]["family_accuracy_interval"][1] = value
    with pytest.raises(UserError, match=r"summary\.variants\.stage\.family_accuracy_interval\[1\]"):
        write_summary(path, summary)
    assert json.loads(path.read_text()) == {"old": 1}


def test_summary_refuses_what_is_not_json(tmp_path):
    with pytest.raises(UserError, match="not JSON"):
        write_summary(tmp_path / "summary.json", {"x": object()})


def test_recordings_have_tables_of_their_own_and_no_classifier(tmp_path, summary, variants):
    row = {"kernel_distance": 3.25, "kernel_distance_interval": [2.0, 4.5], "clips": 70}
    own = {"caption_distance": {"value": 4.56, "interval": [4.0, 5.0], "chance": 9.9, "n": 70}}
    sounds = {"sounds": {"length_sec": [0.4, 0.71, 1.2], "level_db": [-30.0, -24.0, -18.0]}}
    frechet = {"frechet_distance": 321.0, "frechet_distance_interval": [300.0, 350.0]}
    rows = {
        "held-out recordings": sounds,
        "codec round trip": row | own | sounds,
        "stage": row | own | frechet | sounds,
    }
    summary = {k: v for k, v in summary.items() if k not in ("references", "note_classifier")}
    page = write_demo_report(tmp_path, summary | {"task": "recordings", "rows": rows}, variants).read_text()
    for words in ("4.6<small>4.0–5.0 · chance 9.9 · n 70", "321<small>300–350", "0.71<small>0.40 to 1.20",
                  "held-out caption", "Spectrograms: linear", "length (s)"):  # fmt: skip
        assert words in page, words
    assert "side against mid" not in page and "note_classifier" not in page and "prompt accuracy" not in page
