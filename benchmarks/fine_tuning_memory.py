"""Memory that fine-tuning a public model needs, and what `--memory` chooses, computed without the model or a GPU.

    python benchmarks/fine_tuning_memory.py [GIB ...]        # the table of docs/fine-tuning.md

The shapes are those that diffusers gives its classes by default, which are the published models'. Weights, moments and
what a forward pass keeps are counted on tensors without values (models/step_memory.py). No checkpoint was loaded.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import torch

from segue.data.cache import LatentCache
from segue.models.adapters import AdapterConfig
from segue.models.adapters.base import plain_config
from segue.models.lora import LoraConfig
from segue.models.presets import parameters_of
from segue.recipes import load_recipe
from segue.training.config import RunConfig
from segue.training.fit_memory import DEVICE_BYTES, fit_memory
from segue.training.run_memory import run_need
from segue.types import UserError

GIB = 2**30
FRAMES, TEXT_TOKENS, SECONDS, BATCH = 1024, 128, 47.55, 8  # Stable Audio Open's window


def stable_audio_open() -> AdapterConfig:
    """Its published shape."""
    from diffusers import StableAudioDiTModel

    with torch.device("meta"):
        transformer = plain_config(dict(StableAudioDiTModel().config))
    projection = {
        "_class_name": "StableAudioProjectionModel", "conditioning_dim": 768, "max_value": 512, "min_value": 0,
        "text_encoder_dim": 768,
    }  # fmt: skip
    scheduler = {"_class_name": "CosineDPMSolverMultistepScheduler"}
    conditions = {"projection": projection, "text_tokens": TEXT_TOKENS}
    return AdapterConfig("StableAudioDiTModel", "stabilityai/stable-audio-open-1.0", 64, 768, 1536, 24, 1, 1,
                         transformer, scheduler, conditions)  # fmt: skip


def configs() -> dict[str, RunConfig]:
    """Full fine-tuning and adapters."""
    base = load_recipe("static-checkpoint")
    base = replace(base, model=replace(base.model, pretrained="x"), train=replace(base.train, batch_size=BATCH))
    return {"all weights": base, "`--lora rank=16`": replace(base, lora=LoraConfig(16))}


def main() -> None:
    shape = stable_audio_open()
    meta = {"seconds": SECONDS, "teacher_frame_rate_hz": None, "teacher_dim": None}
    sizes: dict[str, Any] = {"frames": FRAMES, "channels": 64, "text_tokens": TEXT_TOKENS, "text_dim": 768}
    cache = cast(LatentCache, SimpleNamespace(meta=meta, **sizes))
    print(f"{parameters_of(shape) / 1e6:,.0f} M weights; {SECONDS} s; batches of {BATCH}\n", flush=True)
    wanted = sys.argv[1:] or ["8", "12", "16", "24"]
    for name, config in configs().items():
        whole = run_need(replace(config, train=replace(config.train, precision="bf16")), cache, shape)
        print(f"{name}, bf16, whole batch: {(whole.total + DEVICE_BYTES) / GIB:.1f} GiB", flush=True)
        for gib in map(float, wanted):
            try:
                print(f"| {name} | {fit_memory(config, cache, shape, gib)[1]} |", flush=True)
            except UserError as error:
                print(f"| {name} | {error} |", flush=True)


if __name__ == "__main__":
    main()
