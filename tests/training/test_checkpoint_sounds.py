"""Sounds while a run trains: the same captions and noise each time, apart from the run's own draws and its fate."""

import json

import pytest
import soundfile
import torch
from running import assert_same, run, timeless

from segue.report import write_run_report
from segue.training.config import override
from segue.training.log import read_log
from segue.types import UserError
from segue.workflows import checkpoint_sounds
from segue.workflows.checkpoint_sounds import sounds_at_checkpoints


@pytest.fixture
def sounding(config):
    return override(config, ["train.total_examples=32", "train.checkpoint_every=16", "train.sample_every=8"])


def test_a_run_sounds_as_often_as_it_is_told_and_trains_as_if_it_had_not(cache, sounding, tmp_path):
    _, silent = run(sounding, cache, tmp_path / "silent")
    made = sounds_at_checkpoints(sounding, cache, tmp_path / "run", 2)
    _, tensors = run(sounding, cache, tmp_path / "run", sounds=made)
    assert_same(silent, tensors)
    lines = timeless(tmp_path / "run" / "log.jsonl")
    assert [e for e in lines if e["event"] != "sounds"] == timeless(tmp_path / "silent" / "log.jsonl")
    assert [e["examples_seen"] for e in lines if e["event"] == "sounds"] == [8, 16, 24]
    # Sounds and pictures of two captions, each of them held out.
    folders = sorted((tmp_path / "run" / "samples").glob("examples-*"))
    assert [f.name for f in folders] == ["examples-0000000008", "examples-0000000016", "examples-0000000024"]
    for folder in folders:
        listed = json.loads((folder / "samples.json").read_text())
        assert len({s["prompt"] for s in listed}) == 2
        for sample in listed:
            wave, rate = soundfile.read(folder / sample["file"])
            assert rate == cache.meta["sample_rate_hz"] and len(wave) == round(cache.meta["seconds"] * rate)
            assert (folder / sample["file"]).with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    # Fixed noise and another model: other sounds.
    first, last = (torch.tensor(soundfile.read(f / "000.wav")[0]) for f in (folders[0], folders[-1]))
    assert not torch.equal(first, last)
    page = write_run_report(tmp_path / "run").read_text()
    # Two prompts, each with its original and three times.
    assert "<h2>Sounds</h2>" in page and page.count("<audio") == 8 and page.index("original") < page.index("after 8 ")
    originals = json.loads((tmp_path / "run" / "samples" / "original" / "samples.json").read_text())
    assert [s["prompt"] for s in originals] == [s["prompt"] for s in listed]


def test_the_line_says_what_they_cost(cache, sounding, tmp_path, capsys):
    from segue.training.loop import train

    tmp_path.joinpath("run").mkdir()
    made = sounds_at_checkpoints(sounding, cache, tmp_path / "run", 1)
    train(sounding, cache, tmp_path / "run", device="cpu", sounds=made)
    said = [line for line in capsys.readouterr().err.splitlines() if "sounds in" in line]
    assert len(said) == 3 and "8 examples: 1 sounds in" in said[0] and "3 times in this run" in said[0]
    # These steps take no time, so that the sounds do.
    assert "of its time; hint: --samples 1, or a larger train.sample_every" in said[-1]


def test_what_fails_there_costs_the_sounds_alone(cache, sounding, tmp_path, monkeypatch):
    def broken(*_):
        raise UserError("codec: gone")

    monkeypatch.setattr(checkpoint_sounds, "codec_of", broken)
    made = sounds_at_checkpoints(sounding, cache, tmp_path, 1)
    assert made(None, None, 8, None) == "8 examples: no sounds (codec: gone)"
    result, _ = run(sounding, cache, tmp_path, sounds=made)
    assert result.finished and not any(e["event"] == "sounds" for e in read_log(tmp_path / "log.jsonl"))


def test_who_makes_none(cache, config):
    assert sounds_at_checkpoints(config, cache, None, 0) is None
    assert sounds_at_checkpoints(override(config, ["train.task=super-resolution"]), cache, None, 2) is None
    assert sounds_at_checkpoints(override(config, ["train.sharding=fsdp2"]), cache, None, 2) is None
    for changes in (["train.task=super-resolution"], ["train.sharding=fsdp2"]):
        with pytest.raises(UserError, match=r"train.sample_every: .*hint: leave it away"):
            sounds_at_checkpoints(override(config, [*changes, "train.sample_every=8"]), cache, None, 2)


def test_tensorboard_gets_sounds_and_pictures(cache, sounding, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = override(sounding, ["train.tensorboard=true", "train.sample_every=16"])
    run(config, cache, tmp_path, sounds=sounds_at_checkpoints(config, cache, tmp_path, 1))
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()
    assert len(found["audio"]) == len(found["images"]) == 1 and found["audio"][0].startswith("sounds/tone")
