import json

from segue.training.log import RunLog, read_log


def test_resume_keeps_what_will_not_be_done_again(tmp_path):
    log = RunLog(tmp_path)
    for seen in (0, 32, 64):
        if seen:
            log.write("train", seen, loss=1.0 / seen)
        log.write("validation", seen, loss_by_t={"0.5": 1.0})
    log.close()
    RunLog(tmp_path, examples_seen=32).close()
    kept = [(e["event"], e["examples_seen"]) for e in read_log(tmp_path / "log.jsonl")]
    # At 32 examples the step is done, the validation that follows it will be done again.
    assert kept == [("validation", 0), ("train", 32)]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    log = RunLog(tmp_path)
    log.write("train", 32, loss=0.5)
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "train", "exam')
    assert [e["examples_seen"] for e in read_log(tmp_path / "log.jsonl")] == [32]
    RunLog(tmp_path, examples_seen=32).close()
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"event": "train", "examples_seen": 32, "loss": 0.5}


def test_a_new_run_starts_a_new_log(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"event": "train", "examples_seen": 5}\n')
    RunLog(tmp_path).close()
    assert read_log(tmp_path / "log.jsonl") == []
