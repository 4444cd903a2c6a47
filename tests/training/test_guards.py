"""Bad steps are found, left out, counted and named; damaged checkpoints are passed over; signals end in time."""

import copy
import json
import math
import os
import signal
import time
from statistics import median

import pytest
import torch
from running import assert_same, run, timeless

from segue.stage.condition_gain import ConditionGain, GainReading
from segue.stage.discrepancy import Discrepancy, Reading
from segue.training import guards
from segue.training.checkpoint import list_checkpoints
from segue.training.config import override
from segue.training.guards import FaultState, find_fault, in_words, is_dead, next_state, note_reading
from segue.training.interrupt import Interrupt
from segue.training.log import RunLog, read_log
from segue.training.optim import clip_gradients
from segue.types import UserError

NAN = float("nan")
CALM = FaultState(losses=tuple(1.0 + 0.01 * (i % 5) for i in range(40)))


def found(state, loss, alignment, norm, dead, spike):
    """What a step is found to be, in words."""
    history = torch.tensor([NAN] * (guards.WINDOW - len(state.losses)) + list(state.losses))
    numbers = torch.tensor([float(loss), float(alignment), float(norm), float(dead)])
    kind, middle = find_fault(history, numbers, spike).tolist()
    return in_words(int(kind), loss, alignment, norm, middle)


@pytest.mark.parametrize(
    ("loss", "alignment", "norm", "dead", "words"),
    [(NAN, 0, 1, 0, "flow loss is nan"), (math.inf, 0, 1, 0, "flow loss is inf"), (1, NAN, 1, 0, "alignment"),
     (1, 0, math.inf, 0, "gradient is inf"), (1, 0, NAN, 0, "gradient is nan"), (1, 0, 1, 0.5, "teacher is dead"),
     (2.5, 0, 1, 0, "a spike over the 1.02")],
)  # fmt: skip
def test_each_fault_is_named(loss, alignment, norm, dead, words):
    assert words in found(CALM, loss, alignment, norm, dead, spike=10)


def test_what_is_no_fault():
    assert found(CALM, 1.9, 0, 1e6, 0, spike=10) is None  # below median + 10 * (a tenth of the median)
    assert found(CALM, 100, 0, 1, 0, spike=0) is None and found(FaultState(), 100, 0, 1, 0, spike=10) is None
    uneven = FaultState(losses=(*([0.1] * 60), 3.0, 2.5))  # a batch of one: the loss follows its time
    assert found(uneven, 5.9, 0, 1, 0, spike=10) is None and "spike" in found(uneven, 6.1, 0, 1, 0, spike=10)
    assert found(FaultState(losses=CALM.losses[:31]), 100, 0, 1, 0, spike=10) is None  # too early to tell


def test_the_median_is_that_of_the_numbers_that_are_there():
    for values in ([3.0], [3.0, 1.0], [2.0, 9.0, 4.0], list(range(64))):
        padded = torch.tensor([*map(float, values), *[NAN] * (64 - len(values))])[torch.randperm(64)]
        assert float(guards._median(padded, torch.tensor(len(values)))) == median(values)


def test_a_good_step_ends_a_row_and_a_bad_one_is_not_remembered_as_a_loss():
    state = next_state(next_state(CALM, True, 99.0), True, 99.0)
    assert (state.skipped, state.in_a_row, state.losses) == (2, 2, CALM.losses)
    state = next_state(state, False, 1.5)
    assert (state.skipped, state.in_a_row, state.losses[-1]) == (2, 0, 1.5)
    for _ in range(99):
        state = next_state(state, False, 1.0)
    assert len(state.losses) == guards.WINDOW
    assert (
        FaultState.from_json(json.loads(json.dumps(state.__dict__))) == state
        and FaultState.from_json({}) == FaultState()
    )


def test_a_probe_that_does_not_move_or_is_not_finite_is_counted():
    state = FaultState()
    for value, stuck in ((0.9, 0), (0.8, 0), (0.8, 1), (NAN, 2), (NAN, 3), (0.8 + 1e-9, 0)):
        state = note_reading(state, value)
        assert state.stuck == stuck, value


def test_a_dead_teacher():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    alive = torch.randn(2, 3, 4)
    assert not is_dead((alive, mask)) and is_dead(None) is None
    assert not is_dead((torch.eye(4)[None], torch.ones(1, 4, dtype=torch.bool)))  # frames of equal sums and extremes
    assert not is_dead((alive, mask & False)) and not is_dead(
        (alive, mask & (torch.arange(3) < 1) & (torch.arange(2) < 1)[:, None])
    )
    assert is_dead((torch.randn(4).expand(2, 3, 4), mask)) and is_dead((torch.full((2, 3, 4), math.inf), mask))
    assert is_dead((torch.ones(2, 3, 4), mask))
    assert is_dead((alive.masked_fill(mask[..., None], NAN), mask))
    assert not is_dead((alive.masked_fill(~mask[..., None], NAN), mask))  # padding may hold anything


def test_clipping_is_torchs_and_leaves_what_is_not_finite():
    ours, theirs = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    for limit in (0.1, 1e3):
        for p, q in zip(ours.parameters(), theirs.parameters()):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit)
        assert torch.equal(clip_gradients(ours, limit)[0], norm)
        assert all(torch.equal(p.grad, q.grad) for p, q in zip(ours.parameters(), theirs.parameters()))
    ours.bias.grad[0] = NAN
    before = ours.weight.grad.clone()
    norm, each = clip_gradients(ours, 0.1)
    assert math.isnan(norm) and each.isfinite().tolist() == [True, False] and torch.equal(ours.weight.grad, before)


def poisoned(cache, row):
    """The cache with one clip that is not finite."""
    other = copy.copy(cache)

    def stored_latents(rows, pin=False):
        values = cache.stored_latents(rows, pin)
        values[torch.from_numpy(rows == row), 0, 0] = NAN
        return values

    other.stored_latents = stored_latents
    return other


def test_a_clip_that_is_not_finite_costs_its_steps_and_nothing_else(cache, config, tmp_path):
    """40 clips in batches of 8: the clip comes once an epoch of five steps. A resumed run leaves out the same steps."""
    bad = cache.rows("train")[7]
    result, whole = run(config, poisoned(cache, bad), tmp_path / "whole")
    log = read_log(tmp_path / "whole" / "log.jsonl")
    found = [e for e in log if e["event"] == "fault"]
    assert result.finished and [e["skipped"] for e in found] == [1, 2]
    assert all(cache.row(bad)["id"] in e["reason"] and "1 of 8 clips are not finite" in e["reason"] for e in found)
    assert all(bool(torch.isfinite(v).all()) for v in whole.values())
    run(override(config, ["train.keep_last=9"]), poisoned(cache, bad), tmp_path / "cut")
    for later in list_checkpoints(tmp_path / "cut")[1:]:
        (later / "state.json").unlink()
    _, resumed = run(config, poisoned(cache, bad), tmp_path / "cut", resume=True)
    assert_same(whole, resumed)
    assert timeless(tmp_path / "cut" / "log.jsonl") == timeless(tmp_path / "whole" / "log.jsonl")


def test_a_run_that_goes_bad_stops_with_its_last_good_checkpoint_and_a_diagnosis(cache, config, tmp_path):
    run(config, cache, tmp_path)
    before = list_checkpoints(tmp_path)
    hot = override(config, ["optim.learning_rate=1e30", "optim.grad_clip=0", "train.total_examples=160",
                            "optim.warmup_fraction=0", "train.patience=3"])  # fmt: skip
    with pytest.raises(
        UserError,
        match=r"3 bad steps in a row, the last at 1\d\d examples.*(weight|gradient) not finite in .*The last good checkpoint",
    ):
        run(hot, cache, tmp_path, resume=True)
    assert list_checkpoints(tmp_path) == before


def test_a_teacher_that_dies_stops_the_run(taught, recipe, tmp_path):
    dead = copy.copy(taught)
    dead.stored_teacher = lambda rows, pin=False: torch.zeros_like(taught.stored_teacher(rows))
    config = recipe("repa", "train.patience=2")
    with pytest.raises(UserError, match=r"2 bad steps in a row.*the teacher is dead"):
        run(config, dead, tmp_path)


def test_a_frozen_discrepancy_stops_the_run(taught, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(Discrepancy, "__call__", lambda *_: Reading(0.5, ((0.5, 0.5),)))
    with pytest.raises(UserError, match=r"discrepancy is frozen at 0.5 on 2 probes in a row"):
        run(recipe("stage-by-level", "train.patience=2", "probe.times=0.5"), taught, tmp_path)


def test_a_frozen_condition_gain_stops_the_run_and_none_at_all_does_not(taught, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(ConditionGain, "__call__", lambda *_: GainReading(0.5))
    with pytest.raises(UserError, match=r"condition gain is frozen at 0.5 on 2 probes in a row"):
        run(recipe("stage", "train.patience=2"), taught, tmp_path / "frozen")
    monkeypatch.setattr(ConditionGain, "__call__", lambda *_: GainReading(0.0))  # a model without conditions
    run(recipe("stage", "train.patience=2"), taught, tmp_path / "none")


@pytest.mark.parametrize(
    ("file", "share"), [("model.safetensors", 0.6), ("optimizer.safetensors", 0.0), ("state.json", 0.6)]
)
def test_a_truncated_checkpoint_is_passed_over(cache, config, tmp_path, capfd, file, share):
    _, mapped = run(config, cache, tmp_path)
    whole = {name: value.clone() for name, value in mapped.items()}  # of the file that is about to be truncated
    newest = list_checkpoints(tmp_path)[-1] / file
    newest.write_bytes(newest.read_bytes()[: int(share * newest.stat().st_size)])
    # A clock set back: names order checkpoints, not times.
    os.utime(newest.parent, (0, 0))
    _, again = run(config, cache, tmp_path, resume=True)
    assert_same(whole, again)
    words = capfd.readouterr().err
    assert f"{newest.parent.name}" in words and "going on from the checkpoint before it" in words


def test_where_no_checkpoint_can_be_read_the_last_is_named(cache, config, tmp_path):
    run(config, cache, tmp_path)
    for folder in list_checkpoints(tmp_path):
        (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=rf"{list_checkpoints(tmp_path)[0].name}.*damaged"):
        run(config, cache, tmp_path, resume=True)


def test_resuming_before_the_first_checkpoint_starts_at_the_beginning(cache, config, tmp_path):
    config = override(config, ["train.total_examples=8"])
    _, new = run(config, cache, tmp_path / "new")
    _, resumed = run(config, cache, tmp_path / "resumed", resume=True)
    assert_same(new, resumed)


def test_a_clock_set_back_changes_nothing(cache, config, tmp_path, monkeypatch):
    config = override(config, ["train.total_examples=16", "train.tensorboard=true"])
    _, plain = run(config, cache, tmp_path / "plain")
    clock = iter(range(10**6, 0, -60))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    result, back = run(config, cache, tmp_path / "back")
    assert result.seconds >= 0
    assert_same(plain, back)


def test_a_folder_that_cannot_be_made_is_one_line(cache, config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/run: cannot be written .*; hint"):
        from segue.training.loop import train

        train(config, cache, tmp_path / "file" / "run", device="cpu", quiet=True)


def test_an_unwritable_tracker_is_left_and_the_run_goes_on(tmp_path, capfd):
    (tmp_path / "tensorboard").write_text("in the way")
    with RunLog(tmp_path, trackers=["tensorboard"]) as log:
        log.write("train", 8, loss=0.5)
    assert capfd.readouterr().err.count("tensorboard cannot be written") == 1
    (tmp_path / "two").mkdir()
    with RunLog(tmp_path / "two", trackers=["tensorboard"]) as log:
        log._trackers[0].numbers = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        log.write("train", 8, loss=0.5)
        log.write("train", 16, loss=0.25)
    assert capfd.readouterr().err.count("No space left on device") == 1
    assert [e["loss"] for e in read_log(tmp_path / "two" / "log.jsonl")] == [0.5, 0.25]


def test_a_log_on_a_full_disk_is_one_line(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = RunLog.__new__(RunLog)
    log.path, log._trackers, log._file = tmp_path / "log.jsonl", [], (tmp_path / "log.jsonl").open("a")
    with pytest.raises(UserError, match="the disk is full"):
        log.write("train", 8, loss=0.5)
    log.close()


def test_sigterm_gives_the_block_its_grace_and_no_more():
    with Interrupt(grace_sec=30) as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0  # ended in time: nothing goes off later
    with (
        pytest.raises(UserError, match=r"did not end within --grace-sec 0.05, the checkpoint before is kept"),
        Interrupt(0.05),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            time.sleep(0.01)


def test_a_checkpoint_that_sigterm_cuts_short_leaves_the_one_before(cache, config, tmp_path, monkeypatch):
    from segue.training import checkpoint

    real, saved = checkpoint.save_file, []

    def slow(tensors, path):
        if saved:
            os.kill(os.getpid(), signal.SIGTERM)
            path.write_bytes(b"half of it")
            time.sleep(5)
        saved.append(path)
        return real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", slow)
    with pytest.raises(UserError, match=r"--grace-sec 0.1"):
        run(config, cache, tmp_path, grace_sec=0.1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["examples-0000000032"]
