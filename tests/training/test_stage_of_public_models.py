"""Stage on a public model: the condition gain at the start says whether alignment ever begins."""

import pytest
import torch
from running import run
from tiny_models import RATE_HZ, encode

from conftest import Bands
from segue.recipes import fine_tuning, load_recipe
from segue.training.config import override
from segue.training.fine_tuning import with_lora
from segue.training.log import read_log

SHORT = ["train.total_examples=16", "train.batch_size=4", "train.validation_clips=4", "train.tensorboard=false",
         "train.log_every=4", "probe.clips=8", "probe.space=latent"]  # fmt: skip


class OfTheirRate(Bands):
    """The bands at the rate of the tiny pipelines."""

    sample_rate_hz, frame_rate_hz = RATE_HZ, RATE_HZ / 64


@pytest.fixture(scope="module")
def taught(recordings, tiny_folders, tmp_path_factory):
    """Recordings with a teacher's features, by the parts of the tiny Stable Audio 3."""
    return encode(
        recordings, tiny_folders["stable-audio-3"], tmp_path_factory.mktemp("taught") / "cache", teacher=OfTheirRate()
    )


@pytest.mark.parametrize("lora", [False, True])
def test_alignment_never_begins_where_conditions_are_followed(
    lora, tiny_folders, taught, tmp_path, monkeypatch, capsys
):
    from segue.stage import condition_gain
    from segue.training.loop import train

    settings = fine_tuning(load_recipe("stage"), str(tiny_folders["stable-audio-3"]))
    assert settings.policy.regime.signal == "condition-gain" and settings.policy.alignment.weight > 0
    settings = override(with_lora(settings, "rank=2") if lora else settings, SHORT)
    # Random weights follow nothing: alignment begins.
    run(settings, taught, tmp_path / "random")
    first = next(e for e in read_log(tmp_path / "random" / "log.jsonl") if e["event"] == "stage")
    assert first["alignment_weight"] > 0
    # A model that does, here by a stand-in for its probe.
    followed = condition_gain.GainReading(0.3, ((0.999, 0.3),), standard_error=0.01, agreement=1.0)
    monkeypatch.setattr(condition_gain.ConditionGain, "__call__", lambda _: followed)
    (tmp_path / "known").mkdir()
    capsys.readouterr()
    train(settings, taught, tmp_path / "known", device="cpu")
    events = read_log(tmp_path / "known" / "log.jsonl")
    first = next(e for e in events if e["event"] == "stage")
    assert first["examples_seen"] == 0 and first["alignment_weight"] == 0.0
    assert all(e["alignment"] is None for e in events if e["event"] == "train")
    assert all(e["alignment_weight"] == 0.0 for e in events if e["event"] == "stage")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("0 examples: ")]
    assert any("alignment off" in line for line in said), said
    assert "conditions are followed at the start" in first["reason"]
    assert torch.is_grad_enabled()
