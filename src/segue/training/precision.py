"""In which type a run computes: what "auto" means, in one place, and the policy for TF32."""

from __future__ import annotations

from dataclasses import replace

import torch

from segue.models.presets import PRESETS
from segue.training.config import RunConfig
from segue.training.probe_size import settled_probe

# Below this width a CPU spends more on conversions than its bfloat16 products save (docs/performance.md).
NARROWEST = 128


def settle(config: RunConfig, device: torch.device) -> RunConfig:
    """The config with what it leaves open decided: the probe's size, and train.precision "auto" for a device.

    Matrix products of CUDA are set to TF32.

    "auto" is bf16 where it is faster and the losses agree: on CUDA from compute capability 8.0 on, and on CPUs with AMX
    for models of a width of 128 or more. Anywhere else it is fp32.

    TF32: what is computed in float32 on CUDA, in fp32 runs and outside autocast in bf16 ones, may round the factors of
    its products to 10 bits of mantissa, which is 3 more than bf16 has. Sums stay float32.
    """
    config = settled_probe(config)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    if config.train.precision != "auto":
        return config
    half = has_fast_bf16(device) and (device.type == "cuda" or _wide(config))
    return replace(config, train=replace(config.train, precision="bf16" if half else "fp32"))


def has_fast_bf16(device: torch.device) -> bool:
    """Whether a device computes products in bf16 faster than in fp32."""
    return _cuda_has_bf16() if device.type == "cuda" else device.type == "cpu" and _cpu_has_amx()


def _wide(config: RunConfig) -> bool:
    shape = PRESETS.get(config.model.preset)  # a name that is none is refused where the model is made
    # Public models are wide, all of them.
    return bool(config.model.pretrained) or (shape is not None and shape.width >= NARROWEST)


def _cuda_has_bf16() -> bool:
    return torch.cuda.get_device_capability() >= (8, 0)


def _cpu_has_amx() -> bool:
    # A private name, and newer than the oldest torch that we take: where it is missing, the answer is no.
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
