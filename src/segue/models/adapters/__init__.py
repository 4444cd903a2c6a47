"""Public backbones by name: one thin adapter for each class of diffusers. A diffusers folder or hub name loads one."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from segue.hub import PipelineFolder, pipeline_folder
from segue.models.adapters.ace_step import AceStepAdapter
from segue.models.adapters.base import Adapter, AdapterConfig, diffusers_module
from segue.models.adapters.stable_audio import StableAudioAdapter
from segue.models.adapters.stable_audio_3 import StableAudio3Adapter
from segue.process.timesteps import TimestepDistribution
from segue.types import UserError, first_line

ADAPTERS: dict[str, type[Adapter]] = {
    "StableAudioDiTModel": StableAudioAdapter,
    "StableAudio3DiTModel": StableAudio3Adapter,
    "AceStepTransformer1DModel": AceStepAdapter,
}

SECONDS = 10.0  # of a clip, where a pipeline has no window of its own


def adapter_class(folder: PipelineFolder) -> type[Adapter]:
    """The adapter of a pipeline's model.

    Raises:
        UserError: there is none; the line lists those that there are.
    """
    kind = folder.kind("transformer")
    if kind not in ADAPTERS:
        raise UserError(
            f"{folder.option} {folder.name}: a {kind} has no adapter here; hint: those that have are "
            f"{', '.join(ADAPTERS)}"
        )
    return ADAPTERS[kind]


def read_adapter_config(name: str, option: str = "--model") -> AdapterConfig:
    """The shape of the model in a diffusers folder, from its JSON files.

    Raises:
        UserError: no such folder or hub name, no diffusers pipeline, no adapter for its model, or a part that is
            missing or cannot be read.
    """
    folder = pipeline_folder(option, name)
    kind = adapter_class(folder)
    try:
        return kind.read_config(folder)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{option} {name}: its configuration lacks {error}; hint: save the pipeline again with save_pretrained"
        ) from error


def own_timesteps(config: AdapterConfig) -> TimestepDistribution:
    """The distribution of t that a checkpoint of this shape was trained with, as far as its publishers say."""
    return ADAPTERS[config.adapter].own_timesteps(config)


def own_seconds(folder: PipelineFolder) -> float:
    """The length of the sounds that a pipeline generates where it is told nothing; the window of one that has one."""
    window = folder.config("transformer").get("sample_size")
    if folder.kind("transformer") != "StableAudioDiTModel" or window is None:
        return SECONDS
    vae = folder.config("vae")
    return window * prod(vae["downsampling_ratios"]) / vae["sampling_rate"]


def load_adapter(name: str, option: str = "--model") -> Adapter:
    """The model of a diffusers folder or hub name, in float32 on the CPU, with the frozen parts of its conditions.

    Raises:
        UserError: see `read_adapter_config`; weights that are missing or do not fit.
    """
    config = read_adapter_config(name, option)
    folder = pipeline_folder(option, name)
    adapter = adapter_of(config, _transformer(folder, config))
    adapter.read_conditions(folder)
    return adapter


def adapter_of(config: AdapterConfig, transformer: Any = None) -> Adapter:
    """An adapter of this shape.

    Args:
        transformer: the diffusers model; None makes one with random weights, for a state_dict to be loaded into.

    Raises:
        ValueError: the shape contradicts itself.
    """
    kind = ADAPTERS[config.adapter]
    if config.depth != config.transformer[kind.depth_key]:
        raise ValueError(f"{config.depth} blocks, but {kind.depth_key} {config.transformer[kind.depth_key]}")
    with torch.random.fork_rng(devices=[]):  # whose values are overwritten takes nothing from the global generator
        if transformer is None:
            transformer = getattr(diffusers_module(), config.adapter).from_config(config.transformer)
        return kind(config, transformer)


def _transformer(folder: PipelineFolder, config: AdapterConfig) -> Any:
    """The diffusers model, every weight of it read from file.

    Raises:
        UserError: its files lack weights, or cannot be read.
    """
    from safetensors import SafetensorError

    path = folder.part("transformer")
    loader = getattr(diffusers_module(), config.adapter)
    options = {"local_files_only": True, "use_safetensors": True, "torch_dtype": torch.float32}
    try:
        model, info = loader.from_pretrained(path, output_loading_info=True, low_cpu_mem_usage=False, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder.option} {folder.name}: cannot load its transformer ({first_line(error)}); hint: save or fetch it "
            "anew, in safetensors"
        ) from error
    if info["missing_keys"]:  # the library fills them with random numbers and goes on
        raise UserError(
            f"{folder.option} {folder.name}: the files of its transformer lack {len(info['missing_keys'])} weights "
            f"({info['missing_keys'][0]}...); use a complete model"
        )
    return model


__all__ = [
    "ADAPTERS",
    "Adapter",
    "AdapterConfig",
    "adapter_class",
    "adapter_of",
    "load_adapter",
    "own_seconds",
    "own_timesteps",
    "read_adapter_config",
]
