"""The overfit watch: when the held-out loss counts as turned, and that it is said once."""

import pytest

from segue.training import validation
from segue.training.log import RunLog, read_log
from segue.training.validation import record_validation, turned


def lines(*losses):
    return [{"event": "validation", "examples_seen": 10 * i, "loss": loss} for i, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "at"),
    [
        ((1.0, 0.8, 0.7, 0.6, 0.5, 0.45), None),
        ((1.0, 0.5, 0.6, 0.6), None),  # two after the least
        ((1.0, 0.5, 0.51, 0.52, 0.53), 10),
        ((1.0, 0.5, 0.5, 0.501, 0.504), None),  # flat: less than 1 % above
        ((1.0, 0.5, 0.6, 0.6, 0.6, 0.4), None),  # a new least
        ((0.5, 0.6, 0.7, 0.8, 0.9), None),  # it never fell: a bad rate, not overfitting
        ((1.0, 0.5, None, 0.51, 0.52, 0.53), 10),
    ],
)
def test_a_turn_is_three_validations_above_the_least(losses, at):
    assert turned(lines(*losses)) == at


def test_a_turn_is_said_once_and_a_second_one_again(tmp_path, monkeypatch):
    said = []
    with RunLog(tmp_path) as log:
        for i, loss in enumerate((1.0, 0.5, 0.51, 0.52, 0.53, 0.54, 0.4, 0.41, 0.42, 0.43)):
            monkeypatch.setattr(validation, "validate", lambda *_, loss=loss: {"0.5": loss})
            said.append(record_validation(log, 10 * i, None, [])[1])
    assert [bool(line) for line in said] == [i in (4, 9) for i in range(10)]
    assert said[4].startswith(
        "40 examples: held-out loss has risen since 10 examples: overfitting; hint: end there with --examples 10"
    )
    assert [e["since"] for e in read_log(tmp_path / "log.jsonl") if e["event"] == "overfitting"] == [10, 60]
    # A resumed run has its log cut back to its checkpoint, and says the second turn again.
    with RunLog(tmp_path, examples_seen=60) as log:
        for i, loss in enumerate((0.4, 0.41, 0.42, 0.43), 6):
            monkeypatch.setattr(validation, "validate", lambda *_, loss=loss: {"0.5": loss})
            line = record_validation(log, 10 * i, None, [])[1]
    assert "risen since 60 examples" in line
