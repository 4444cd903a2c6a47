"""What is said of a run in words."""

import pytest

from segue.report.verdict import verdict


def validations(*losses):
    return [{"event": "validation", "examples_seen": 100 * i, "loss": loss} for i, loss in enumerate(losses)]


def gains(*values):
    return [{"event": "stage", "examples_seen": 100 * i, "condition_gain": value} for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("events", "words"),
    [
        (validations(1, 0.9, 0.8, 0.7, 0.6, 0.5), "held-out loss still falls (28.6% over the last third)"),
        (validations(1, 0.9, 0.5, 0.5, 0.5, 0.5), "held-out loss stands still (+0.0% over the last third)"),
        (gains(0, 0.1, 0.2, 0.3, 0.4, 0.5), "the condition gain still rises"),
        (gains(0, 0.1, 0.2, 0.2, 0.2, 0.2), "the condition gain stands still"),
        (gains(0, 0, 0, 0, 0, 0), "the condition gain stands at 0"),
        ([{"event": "fault", "examples_seen": 8, "skipped": True}], "1 faulty steps were skipped"),
    ],
)
def test_findings(events, words):
    (finding,) = verdict(events)
    assert finding.text.startswith(words)


def test_overfitting_comes_first_and_is_taken_back_where_the_loss_falls_again():
    turn = {"event": "overfitting", "examples_seen": 500, "since": 200}
    events = [*validations(1, 0.8, 0.5, 0.55, 0.6, 0.7), turn, *gains(0, 0.1, 0.2, 0.3, 0.4, 0.5)]
    first = verdict(events)[0]
    assert first.warns and first.text.startswith("held-out loss has risen since 200 examples: overfitting")
    assert "overfitting" not in " ".join(f.text for f in verdict([*validations(1, 0.8, 0.5, 0.6, 0.6, 0.4), turn]))


def test_short_logs_say_nothing_and_stopped_runs_say_how_to_go_on():
    assert verdict([]) == [] and verdict(validations(1, 0.5)) == []
    (finding,) = verdict(validations(1, 0.5), total=6400)
    assert finding.text == "not finished: 100 of 6,400 examples; segue train --resume goes on"
    assert verdict(validations(1, float("nan"), 0.5)) == []
