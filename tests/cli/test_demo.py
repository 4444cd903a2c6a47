"""The demo, end to end, small: every figure it promises is there, and a second call only looks again."""

import json

import pytest

from segue.cli import demo
from segue.training import parallel_runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    from segue.cli.main import main

    out = tmp_path_factory.mktemp("demo") / "demo"
    arguments = ["demo", "--out", str(out), "--clips", "240", "--minutes", "0.2", "--measured", "12"]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert not stopped.value.code
    return out, arguments


def test_the_summary_holds_what_the_page_shows(made):
    out, _ = made
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["variants"]) == {"static-uniform", "stage-muon"}
    for variant in summary["variants"].values():
        for key in ("family_accuracy", "pitch_accuracy"):
            assert (
                0 <= variant[key] <= 1 and 0 <= variant[f"{key}_chance"] <= 1 and len(variant[f"{key}_interval"]) == 2
            )
        assert variant["frechet_distance"] > 0 and variant["frechet_distance_n"] == variant["clips"]
        assert variant["examples_seen"] == 640 and variant["seconds"] > 0
        assert set(variant["validation_loss"]) == {"0.1", "0.3", "0.5", "0.7", "0.9"}
    assert summary["references"]["real"]["pitch_accuracy"] > 0.9  # the classifier knows real notes
    assert len(summary["prompts"]) <= 12 and any(p["held_out"] for p in summary["prompts"])
    page = (out / "report.html").read_text()
    assert page.count("data:audio/wav;base64") >= 3 * (len(summary["prompts"]) - 1)
    for prompt in summary["prompts"]:
        assert prompt["prompt"] in page
    assert f"{100 * summary['variants']['static-uniform']['family_accuracy']:.1f}" in page


def test_a_second_call_trains_nothing_and_says_the_same(made, segue):
    out, arguments = made
    before = json.loads((out / "summary.json").read_text())["variants"]
    ran = segue(*arguments)
    assert ran.code == 0, ran.err
    after = json.loads((out / "summary.json").read_text())["variants"]
    for name, variant in before.items():
        same = ("family_accuracy", "pitch_accuracy", "frechet_distance", "validation_loss", "examples_seen")
        assert {k: after[name][k] for k in same} == {k: variant[k] for k in same}


def test_another_plan_in_the_same_folder_is_refused(made, segue):
    out, _ = made
    ran = segue("demo", "--out", out, "--clips", 240, "--minutes", 3, "--measured", 12)
    assert ran.code == 2 and "minutes was 0.2, is 3.0" in ran.line and "--fresh" in ran.line


@pytest.fixture(scope="module")
def widened(tmp_path_factory):
    from segue.cli.main import main

    out = tmp_path_factory.mktemp("demo") / "wide"
    arguments = ["demo", "--task", "super-resolution", "--out", str(out), "--clips", "200", "--minutes", "0.2"]
    # Processes side by side and the measured rate are tried above: here both variants train in this process.
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(parallel_runs, "cores", lambda: 1)
        patch.setattr(demo, "measure_rate", lambda *_: 1.0)
        main([*arguments, "--judged", "8"])
    assert not stopped.value.code
    return out


def test_super_resolution_has_its_table_its_players_and_its_pictures(widened):
    summary, page = (widened / name for name in ("summary.json", "report.html"))
    summary, page = json.loads(summary.read_text()), page.read_text()
    models = ["sr-demo-static", "sr-demo", "shipped predictor", "shipped diffusion model"]
    assert list(summary["rows"]) == ["unprocessed", "sinc", "band replication", "codec round trip", *models]
    rows = {name: {m: v["mean"] for m, v in row.items()} for name, row in summary["rows"].items()}
    assert rows["codec round trip"]["lsd full"] < 0.01 < rows["band replication"]["lsd full"]
    assert all(row["lsd low"] < 0.15 for row in rows.values())  # the low band is kept, whatever was learned
    assert rows["unprocessed"]["lsd high"] == pytest.approx(rows["sinc"]["lsd high"], rel=0.1)
    assert {variant["examples_seen"] for variant in summary["variants"].values()} == {320}
    count = len(summary["prompts"])
    assert count >= 4 and page.count("data:audio/wav;base64") == count * (2 + len(models))
    for words in ("before", "original", *rows, "regime r (0 semantic", "alignment weight", "SSL-space discrepancy",
                  f"{rows['sr-demo']['lsd high']:.3f}", "Audio super-resolution, trained"):  # fmt: skip
        assert words in page, words
    assert (widened / "runs" / "sr-demo" / "samples" / "000.wav").exists()


def test_a_folder_of_one_task_is_refused_for_the_other_and_a_wrong_word_is_named(widened, segue):
    ran = segue("demo", "--out", widened, "--clips", 200, "--minutes", 0.2, "--measured", 8, "--codec", "gain-shape")
    assert ran.code == 2, ran.err
    ran = segue("demo", "--task", "upsampling", "--out", widened)
    assert ran.code == 2 and "--task upsampling: use one of generation, super-resolution" in ran.line
    ran = segue("demo", "--task", "super-resolution", "--out", widened, "--measured", 1)
    assert ran.code == 2 and "--measured at least 8" in ran.line
