"""The commands of docs/fine-tuning.md, on a tiny folder of each class; what --lora and --memory say where they cannot."""

import re
import shlex
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_models import KINDS, SECONDS

from segue.data import round_trip
from segue.training.checkpoint import list_checkpoints

PAGE = Path(__file__).parents[2] / "docs" / "fine-tuning.md"
NAME = "stabilityai/stable-audio-open-1.0"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    from segue.models.adapters.base import Adapter, OwnSampling

    monkeypatch.setattr(round_trip, "WORST", float("inf"))  # random codecs give no sound back
    monkeypatch.setattr(Adapter, "own_sampling", OwnSampling(2, 2.0))
    for adapter in Adapter.__subclasses__():
        monkeypatch.delattr(adapter, "own_sampling")


@pytest.mark.parametrize("kind", KINDS)
def test_the_commands_of_the_page(kind, segue, recordings, tiny_folders, tmp_path, monkeypatch):
    import peft

    from segue.models.adapters import load_adapter

    monkeypatch.chdir(tmp_path)
    found = re.search(r"<!-- test: fine-tuning -->\n```bash\n(.*?)```", PAGE.read_text(), re.S)
    assert found
    said = {}
    for line in found[1].splitlines():
        words = [str(recordings) if w.startswith("sounds/") else str(tiny_folders[kind]) if w == NAME else w
                 for w in shlex.split(line)]  # fmt: skip
        if "encode" in words:
            words += ["--teacher", "none"] + ([] if kind == "stable-audio" else ["--seconds", str(SECONDS)])
        if "train" in words:
            words[words.index("--examples") + 1] = "16"
            words += ["--device", "cpu", "--samples", "1", "--set", "train.batch_size=4"]
        ran = segue(*words[1:])
        assert ran.code == 0, (line, ran.err)
        said[words[1]] = ran
    trained = said["train"].err
    assert "memory: 12 GiB: 4 of 4 examples at a time, bf16; counted" in trained
    assert re.search(r"LoRA: rank 16 on \d+ layers, [\d.]+ M of [\d.]+ M weights trained", trained)
    assert re.search(r"peak memory about .* frozen, .* trained and optimiser", trained)
    assert "1 sounds in" in trained and len(list(tmp_path.glob("runs/mine/samples/examples-*/000.png"))) == 3
    saved = load_file(list_checkpoints(tmp_path / "runs/mine")[-1] / "model.safetensors")
    assert not any(".base_layer." in name for name in saved)
    model = load_adapter("pipeline").transformer
    assert not any("lora" in name for name, _ in model.named_parameters())
    peft.PeftModel.from_pretrained(load_adapter(str(tiny_folders[kind])).transformer, "adapter")


def test_memory_that_is_too_small_is_told_what_fits(segue, tiny_folders, tiny_caches, tmp_path):
    options = ("train", "static-checkpoint", "--model", tiny_folders["ace-step"], "--data", tiny_caches["ace-step"].path,
               "--out", tmp_path / "run", "--set", "train.batch_size=4")  # fmt: skip
    refused = segue(*options, "--memory", 0.5)
    assert refused.code == 2
    assert re.search(
        r"--memory 0.5: one example at a time needs .*; hint: encode shorter clips, or --memory 2", refused.line
    )
    refused = segue(*options, "--memory", 0.5, "--lora", "rank=2")
    assert refused.code == 2 and "hint: encode shorter clips, or --memory 2" in refused.line
    for nothing in (0, -1):
        refused = segue(*options, "--memory", nothing)
        assert refused.code == 2 and "hint: give a finite number above 0" in refused.line
    assert not (tmp_path / "run").exists()


def test_what_lora_refuses(segue, tiny_folders, tiny_caches, tmp_path):
    cache = tiny_caches["ace-step"].path
    refused = segue("train", "static-uniform", "--data", cache, "--out", tmp_path / "run", "--lora", "rank=4")
    assert refused.code == 2 and "--lora adapts a trained model; hint: add --model" in refused.line
    options = (
        "train",
        "static-checkpoint",
        "--model",
        tiny_folders["ace-step"],
        "--data",
        cache,
        "--out",
        tmp_path / "run",
    )
    refused = segue(*options, "--set", "train.batch_size=4", "--lora", "rank=4", "--set", "lora.targets=wq")
    assert refused.code == 2 and "lora.targets=wq matches no linear layer of the blocks; there are " in refused.line
    refused = segue(*options, "--lora", "r=4")
    assert refused.code == 2 and "--lora r=4" in refused.line
    assert not (tmp_path / "run" / "config.json").exists()
