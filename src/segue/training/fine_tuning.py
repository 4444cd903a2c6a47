"""Fine-tuning: what a run with low-rank adapters may be, before its model is built."""

from __future__ import annotations

from dataclasses import replace

from segue.models.lora import lora_config
from segue.training.config import RunConfig
from segue.types import UserError


def with_lora(config: RunConfig, text: str) -> RunConfig:
    """The config with what `--lora` says; without the block term, which moves whole weights."""
    policy = replace(config.policy, structure=replace(config.policy.structure, enabled=False, strength=0.0))
    return replace(config, lora=lora_config(text), policy=policy)


def check_lora(config: RunConfig) -> None:
    """Refuse adapters where they cannot be.

    Raises:
        UserError: there is nothing to adapt, or something else of the run would move the frozen weights.
    """
    if not config.lora.rank:
        return
    if not (config.train.start_from or config.model.pretrained):
        raise UserError("--lora adapts a trained model; hint: add --model NAME-OR-FOLDER or --set train.start_from=RUN")
    if config.train.known_share:
        raise UserError(
            "train.known_share: its weights are no adapters, and would stay as they are; hint: train without --lora"
        )
    if config.degradation.predictor:
        raise UserError("degradation.predictor: its shares are no adapters; hint: train without --lora")
    if config.policy.structure.enabled:
        raise UserError(
            "lora.rank: the block term moves whole weights, and LoRA its adapters alone; hint: structure.enabled=false"
        )
    if config.train.sharding != "none":
        raise UserError(
            f"train.sharding={config.train.sharding}: adapters fit on every rank; hint: train.sharding=none"
        )
    if config.optim.kind == "muon":
        raise UserError(
            "optim.kind=muon makes every update of full rank, and adapters have none; hint: optim.kind=adamw"
        )
