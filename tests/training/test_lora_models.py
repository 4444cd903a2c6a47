"""LoRA on public models: what moves, what is kept, that it goes on bit for bit, and that peft alone gives the same."""

import shutil

import peft
import pytest
import torch
from running import assert_same, run, timeless
from safetensors.torch import load_file
from tiny_models import KINDS, SAMPLE_SIZE

from segue.models.adapters import load_adapter
from segue.models.files import load_adapters, load_model, model_file
from segue.pipeline import Pipeline
from segue.recipes import fine_tuning, load_recipe
from segue.training import build
from segue.training.checkpoint import list_checkpoints
from segue.training.config import override
from segue.training.fine_tuning import with_lora
from segue.types import Condition, UserError
from segue.workflows.export import export_peft

SHORT = ["train.total_examples=16", "train.batch_size=4", "train.validation_clips=4", "train.checkpoint_every=8",
         "train.tensorboard=false", "train.keep_last=5", "optim.learning_rate=1e-2"]  # fmt: skip
ALL = pytest.mark.parametrize("kind", KINDS)


def config(kind, folders, lora="rank=4", *changes):
    return override(
        with_lora(fine_tuning(load_recipe("static-checkpoint"), str(folders[kind])), lora), [*SHORT, *changes]
    )


def called(model, cached):
    """The prediction on held-out clips."""
    g = torch.Generator().manual_seed(0)
    rows = cached.rows("train")[:2]
    tokens, mask = cached.text(rows)
    x = torch.randn(2, cached.channels, cached.frames, generator=g)
    with torch.no_grad():
        return model(
            x, torch.tensor([0.3, 0.8]), Condition(tokens, mask, seconds=torch.full((2,), cached.meta["seconds"]))
        ).prediction


@ALL
def test_adapters_are_trained_kept_merged_and_exported(kind, tiny_folders, tiny_caches, tmp_path):
    cached = tiny_caches[kind]
    _, saved = run(config(kind, tiny_folders), cached, tmp_path / "run")
    kept = {name.partition(".")[2] for name in saved if not name.startswith("latents.")}
    assert all(".lora_" in name or not name.startswith("transformer.") for name in kept)
    # Apart, merged, and by peft on a fresh model: the same prediction, and not that of the base.
    apart, card = load_adapters(model_file(tmp_path / "run"))
    merged = load_model(model_file(tmp_path / "run")).model
    wanted = called(apart, cached)
    torch.testing.assert_close(called(merged, cached), wanted, atol=1e-5, rtol=1e-5)
    export_peft(tmp_path / "run", tmp_path / "adapter")
    theirs = build.pretrained_model(config(kind, tiny_folders), cached).eval()
    assert (called(theirs, cached) - wanted).abs().max() > 1e-3
    base = {name: value.clone() for name, value in theirs.transformer.state_dict().items()}
    theirs.transformer = peft.PeftModel.from_pretrained(
        theirs.transformer, str(tmp_path / "adapter")
    ).merge_and_unload()
    torch.testing.assert_close(called(theirs, cached), wanted, atol=1e-5, rtol=1e-5)
    # Only matrices of the blocks have moved.
    after = merged.transformer.state_dict()
    moved = [name for name, value in base.items() if not torch.equal(after[name], value)]
    assert moved and all(name.endswith(".weight") and base[name].ndim == 2 for name in moved)
    assert card.base["source"] == str(tiny_folders[kind].resolve())
    with pytest.raises(UserError, match="exists already"):
        export_peft(tmp_path / "run", tmp_path / "adapter")
    # Sounds, by our own pipeline.
    assert Pipeline.load(tmp_path / "run").latents(["hard kick drum"], frames=SAMPLE_SIZE).isfinite().all()


@ALL
def test_a_run_goes_on_bit_for_bit_with_little_memory(kind, tiny_folders, tiny_caches, tmp_path):
    """All that saves memory at once: bfloat16, checkpointing, 8-bit moments, parts of a batch."""
    settings = config(kind, tiny_folders, "rank=4", "train.precision=bf16", "model.gradient_checkpointing=true",
                      "optim.kind=adamw-8bit", "train.accumulation=2", "optim.pull=0.1")  # fmt: skip
    _, whole = run(settings, tiny_caches[kind], tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(list_checkpoints(tmp_path / "cut")[-1])
    _, resumed = run(settings, tiny_caches[kind], tmp_path / "cut", resume=True)
    assert_same(whole, resumed)
    assert timeless(tmp_path / "cut" / "log.jsonl") == timeless(tmp_path / "whole" / "log.jsonl")


@ALL
def test_targets_that_match_nothing_are_told_what_could(kind, tiny_folders, tiny_caches):
    own = {"stable-audio": "attn1.to_q", "stable-audio-3": "to_q", "ace-step": "self_attn.to_q"}[kind]
    with pytest.raises(
        UserError, match=r"lora.targets=nothing matches no linear layer of the blocks; there are "
    ) as told:
        build.build_model(config(kind, tiny_folders, "rank=4", "lora.targets=nothing"), tiny_caches[kind], seed=0)
    assert own in str(told.value)
    model = build.build_model(config(kind, tiny_folders, "rank=4", f"lora.targets={own}"), tiny_caches[kind], seed=0)
    layers = [n for n, _ in model.named_parameters() if n.endswith("lora_A.default.weight")]
    assert len(layers) >= len(model.blocks) and all(own in n for n in layers)


def test_other_weights_in_the_folder_are_refused(tiny_folders, tiny_caches, tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_folders["stable-audio"], folder)
    run(config("stable-audio", {"stable-audio": folder}), tiny_caches["stable-audio"], tmp_path / "run")
    weights = next((folder / "transformer").glob("*.safetensors"))
    assert load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match="not the weights that the adapters were trained on; hint: put those back"):
        load_model(model_file(tmp_path / "run"))
    load_adapter(str(folder))  # it is a model all the same
