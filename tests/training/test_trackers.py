"""Trackers: off unless named, one line where one is missing, and the same numbers as log.jsonl where it is there."""

import json
import sys
from importlib.machinery import ModuleSpec
from io import BytesIO
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from segue.recipes import load_recipe
from segue.training.log import RunLog
from segue.training.trackers import check_trackers, with_tracker
from segue.types import UserError

CONFIG = load_recipe("static-uniform")


def picture():
    buffer = BytesIO()
    Image.new("RGB", (4, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def test_off_unless_named():
    assert not CONFIG.train.tensorboard and not CONFIG.train.wandb
    named = with_tracker(CONFIG, "wandb")
    assert named.train.wandb and not named.train.tensorboard
    assert with_tracker(named, "none") == CONFIG and with_tracker(CONFIG, "tensorboard").train.tensorboard
    with pytest.raises(UserError, match="--tracker clearml: use one of tensorboard, wandb, none"):
        with_tracker(CONFIG, "clearml")


def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb, which is not installed; hint: pip install 'segue-audio\[wandb\]'"):
        check_trackers(with_tracker(CONFIG, "wandb"))
    check_trackers(CONFIG)


def test_tensorboard_gets_text_settings_numbers_and_sounds(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, trackers=["tensorboard"]) as log:
        log.begin(CONFIG)
        log.write("validation", 8, loss=0.5, loss_by_t={"0.1": 0.25}, ok=True)
        log.show_sound("a bell", torch.zeros(800), 8000, picture(), 8)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = found.Tags()
    assert set(tags["scalars"]) == {"validation/loss", "validation/loss_by_t/0.1"}
    assert tags["audio"] == ["sounds/a bell"] and tags["images"] == ["spectrograms/a bell"]
    assert {"run/text_summary", "_hparams_/experiment", "_hparams_/session_start_info"} <= set(tags["tensors"]) | set(
        found.summary_metadata
    )


class Module(SimpleNamespace):
    """As much of wandb as a run asks for; it keeps what it is given."""

    def __init__(self):
        super().__init__(
            inits=[], logged=[], config=SimpleNamespace(update=lambda values, **_: self.kept.update(values))
        )
        self.kept = {}
        self.__spec__ = ModuleSpec("wandb", None)
        self.Audio = lambda wave, sample_rate, caption: ("audio", len(wave), sample_rate, caption)
        self.Image = lambda pixels: ("image", pixels.shape)

    def init(self, **settings):
        self.inits.append(settings)
        return SimpleNamespace(log=lambda values, step: self.logged.append((step, values)), finish=lambda: None)


def test_wandb_goes_through_accelerate_and_continues_under_its_id(tmp_path, monkeypatch):
    wandb = Module()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for seen in (0, 8):
        with RunLog(tmp_path, examples_seen=seen, trackers=["wandb"]) as log:
            log.begin(CONFIG)
            log.write("train", seen + 8, loss=0.5)
            log.show_sound("a bell", torch.zeros(800), 8000, picture(), seen + 8)
    first, second = wandb.inits
    assert first == second and first["project"] == "segue" and first["resume"] == "allow"
    assert first["id"] == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert wandb.kept["train.batch_size"] == CONFIG.train.batch_size and "commit" in wandb.kept["about"]
    assert wandb.logged[0] == (8, {"train/loss": 0.5})
    assert wandb.logged[1] == (8, {"sounds/a bell": ("audio", 800, 8000, "a bell")})
    assert wandb.logged[2][1] == {"spectrograms/a bell": [("image", (3, 4, 3))]}
