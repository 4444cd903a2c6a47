"""The settings of a step that fits into a given memory: what `segue train --memory 12` chooses.

Tried in this order, from what costs nothing to what costs most: fewer examples at a time (the same result), activations
computed again in the backward pass (the same result, about a third more time), moments of 8 bits (nearly the same).
Weights, whether all are trained or adapters, and the length of clips are the user's choice.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from segue.data.cache import LatentCache
from segue.memory import format_bytes
from segue.models.backbone import BackboneConfig
from segue.models.gpu_fit import CUDA_BYTES
from segue.models.lora import LoraConfig
from segue.training.config import RunConfig
from segue.training.run_memory import run_need
from segue.types import UserError

GIB = 2**30
USED = 0.95  # share of the memory that is planned with: the allocator cannot use the last of it


def fit_memory(config: RunConfig, cache: LatentCache, shape: BackboneConfig, gib: float) -> tuple[RunConfig, str]:
    """The config whose step fits, and a line that says what was chosen.

    Args:
        shape: of the model.
        gib: of an accelerator; one of them is what its runtime takes, and a twentieth stays free.

    Raises:
        UserError: not even one example at a time fits; the line says what does.
    """
    config = replace(config, train=replace(config.train, precision="bf16"))
    room = round(USED * gib * GIB) - CUDA_BYTES
    least = 0
    for candidate in _ladder(config):
        # The need grows evenly with the examples of a piece: two counts tell the rest.
        one = run_need(_in_pieces(candidate, 1), cache, shape).total
        least = one
        if one > room:
            continue
        each = max(1, run_need(_in_pieces(candidate, 2), cache, shape).total - one)
        piece = min(candidate.train.batch_size, 1 + (room - one) // each)
        chosen = _in_pieces(candidate, piece)
        return chosen, _line(chosen, gib, run_need(chosen, cache, shape).total + CUDA_BYTES)
    needed = format_bytes(least + CUDA_BYTES)
    hint = f"encode shorter clips, or --memory {ceil((least + CUDA_BYTES) / GIB / USED)}"
    if not config.lora.rank:
        structure = replace(config.policy.structure, enabled=False, strength=0.0)
        adapted = replace(config, lora=LoraConfig(16), policy=replace(config.policy, structure=structure))
        with_lora = run_need(_in_pieces(_ladder(adapted)[-1], 1), cache, shape).total + CUDA_BYTES
        if with_lora - CUDA_BYTES <= room:
            hint = f"--lora rank=16 needs {format_bytes(with_lora)}"
    raise UserError(f"--memory {gib:g}: one example at a time needs {needed}; hint: {hint}")


def _ladder(config: RunConfig) -> list[RunConfig]:
    """The config, then with checkpointing, then with moments of 8 bits as well."""
    again = replace(config, model=replace(config.model, gradient_checkpointing=True))
    if config.optim.kind != "adamw":
        return [config, again]
    return [config, again, replace(again, optim=replace(config.optim, kind="adamw-8bit"))]


def _in_pieces(config: RunConfig, piece: int) -> RunConfig:
    """The same batch in pieces of at most so many examples."""
    return replace(config, train=replace(config.train, accumulation=ceil(config.train.batch_size / piece)))


def _line(config: RunConfig, gib: float, need: int) -> str:
    train = config.train
    parts = [f"{ceil(train.batch_size / train.accumulation)} of {train.batch_size} examples at a time", "bf16"]
    if config.model.gradient_checkpointing:
        parts.append("gradient checkpointing")
    if config.optim.kind == "adamw-8bit":
        parts.append("8-bit moments")
    return f"memory: {gib:g} GiB: {', '.join(parts)}; counted {format_bytes(need)}"
