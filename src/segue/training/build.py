"""The parts of a run: its task, the backbone for a cache, accelerate's handle, the card of a saved model."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from segue.codecs import codec_of
from segue.codecs.latent_space import LatentSpace
from segue.conditioners.pipeline_text import load_pipeline_text
from segue.data.cache import LatentCache
from segue.devices import device_of
from segue.models.adapters import Adapter, load_adapter, read_adapter_config
from segue.models.backbone import Backbone, BackboneConfig
from segue.models.dit import DiT, DiTConfig
from segue.models.fields import LabelField, NumberField, fields_of
from segue.models.files import ModelCard, base_weights, load_model, model_file, read_card
from segue.models.lora import add_lora, averaged_copy, freeze_as_bfloat16
from segue.models.presets import preset
from segue.predictor import find_predictor, predictor_hash
from segue.predictor.resolver import MEAN_SHARE
from segue.process.noise import keyed_generator
from segue.tasks.base import Task
from segue.tasks.degradation import DegradationConfig
from segue.tasks.generation import Generation
from segue.tasks.super_resolution import (
    GUESSED_LEVEL_WEIGHT,
    LEVEL_WEIGHT,
    SuperResolution,
    levels_of,
    weigh_levels,
)
from segue.training.compiling import compile_blocks
from segue.training.config import OptimConfig, RunConfig
from segue.training.fine_tuning import check_lora
from segue.training.precision import settle
from segue.training.sharding import check_sharding, gathered_blocks, norm_of, shard_models
from segue.training.windows import knows_times, window_seconds
from segue.types import TIMES, UserError, import_extra

FINE_TUNING_RATE = 2e-5  # of a pretrained model, where optim.learning_rate leaves the choice; from no trials
LORA_RATE = 1e-4  # adapters begin at zero, and take more; peft's examples have the same
TOKENS_PER_SEC = 16  # what model.patch_frames = 0 aims at


def make_accelerator(config: RunConfig, device: str = "auto"):
    """accelerate's handle on devices and ranks. Its precision is a setting of the whole process, ours of one run.

    Args:
        device: as --device names it.

    Raises:
        UserError: an unknown device, batches that the processes cannot share evenly, or a sharding that this run or
            machine cannot have.
    """
    place = device_of(device)
    # On several ranks the launcher says which GPU is whose.
    if place.startswith("cuda:") and "LOCAL_RANK" not in os.environ:
        torch.cuda.set_device(place)
    accelerator = import_extra("accelerate", "train").Accelerator(cpu=place == "cpu")
    if accelerator.device.type != place.partition(":")[0]:
        raise UserError(f"--device {device}: this process computes on {accelerator.device.type} already; start it anew")
    batch_size = config.train.batch_size
    world = accelerator.num_processes
    if batch_size % world:
        raise UserError(f"train.batch_size {batch_size} must be a multiple of the {world} processes")
    check_sharding(config, accelerator)
    return accelerator


def begin(config: RunConfig, device: str = "auto") -> tuple[Any, RunConfig]:
    """`make_accelerator`, and the config with what it leaves to the device decided."""
    accelerator = make_accelerator(config, device)
    return accelerator, settle(config, accelerator.device)


def cached_space(cache: LatentCache) -> LatentSpace:
    """The cache's latents, standardised by its own statistics; the codec is loaded when it is first needed."""
    return space_of(cache, *cache.statistics)


def own_space(cache: LatentCache) -> LatentSpace:
    """The cache's latents as the codec gives them: the scale that a pretrained model knows them in."""
    return space_of(cache, torch.zeros(cache.channels, 1), torch.ones(cache.channels, 1))


def space_of(cache: LatentCache, mean: torch.Tensor, std: torch.Tensor) -> LatentSpace:
    """The space of the cache's codec under other statistics [C, 1], such as a checkpoint's."""
    return LatentSpace(partial(codec_of, cache.meta["codec_source"], cache.meta["codec"]), mean, std)


def make_task(
    config: RunConfig,
    cache: LatentCache,
    statistics: tuple[torch.Tensor, torch.Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> Task:
    """What the run's config calls its task.

    Args:
        config: with task, degradation and seed.
        cache: that it is trained on.
        statistics: mean and deviation [C, 1] of the space that a run goes on in; the cache's own where it begins.
        device: that it works on.

    Raises:
        UserError: a cache that does not serve it.
    """
    space = None if statistics is None else space_of(cache, *statistics)
    if config.model.pretrained:
        return _pretrained_task(config, cache, space or own_space(cache), device)
    if config.train.known_share or (config.train.task == "generation" and any(condition_fields(config, cache))):
        return _conditioned_task(config, cache, (space or cached_space(cache)).to(device))
    return named_task(config.train.task, config.degradation, cache, config.train.seed, space, device)


def _conditioned_task(config: RunConfig, cache: LatentCache, space: LatentSpace) -> Task:
    """Generation by a model that knows more than the caption: fields, or a stretch of some sounds.

    Where it knows when a sound ends, it learns the end.
    """
    if config.train.task != "generation":
        raise UserError(
            f"train.known_share: not for {config.train.task}, where channels are known; hint: leave it away"
        )
    numbers, labels = condition_fields(config, cache)
    ends = knows_times(cache) and any(field.name in TIMES for field in numbers)
    # A batch may be a token longer than its longest sound.
    longest = max(window_seconds(config, cache), cache.meta["seconds"]) + 1.0
    padding = silence_of(space, longest) if ends else None
    return Generation(space, None, padding, numbers, labels, ends, config.train.known_share)


def _pretrained_task(config: RunConfig, cache: LatentCache, space: LatentSpace, device: torch.device | str) -> Task:
    """Generation by a model that is told how long a sound is, and that was trained on silence behind its end."""
    if config.train.task != "generation":
        raise UserError(f"--model {config.model.pretrained}: a model for generation; train.task is {config.train.task}")
    if config.train.known_share:
        raise UserError(
            f"train.known_share: --model {config.model.pretrained} has no input for known parts; hint: leave it away; "
            "segue generate --from edits by replacement with any model"
        )
    space = space.to(device)
    padding = None
    if any(cache.row(i)["frames"] < cache.frames for i in range(len(cache))):
        padding = silence_of(space, cache.meta["seconds"])
    return Generation(space, lambda rows: [cache.row(i)["length_sec"] for i in rows], padding)


def silence_of(space: LatentSpace, seconds: float) -> torch.Tensor:
    """[C, L] standardised latents of so many seconds of digital silence."""
    samples = round(seconds * space.codec.sample_rate_hz)
    return space.encode(torch.zeros(1, space.codec.audio_channels, samples, device=space.device))[0]


def condition_fields(config: RunConfig, cache: LatentCache) -> tuple[tuple[NumberField, ...], tuple[LabelField, ...]]:
    """The numbers and labels that a run conditions its model on: those of the cache.

    A run that starts from a model with fields keeps that model's, with their ranges and labels. Low-rank adapters add
    none, since the weights of fields are no adapters.
    """
    none: tuple = ((), ())
    if config.train.task != "generation" or config.model.pretrained:
        return none
    if config.train.start_from:
        base = read_card(model_file(Path(config.train.start_from))).model
        own = fields_of(base)
        if any(own) or config.lora.rank:
            return own
    return fields_of(cache.meta.get("conditions", {}))


def named_task(
    name: str,
    degradation: DegradationConfig,
    cache: LatentCache,
    seed: int = 0,
    space: LatentSpace | None = None,
    device: torch.device | str = "cpu",
) -> Task:
    """The task of a config, or of a model's card."""
    if name == "generation":
        return Generation((space or cached_space(cache)).to(device))
    samples = round(cache.meta["seconds"] * cache.meta["sample_rate_hz"])
    weight = GUESSED_LEVEL_WEIGHT if degradation.predictor else LEVEL_WEIGHT
    # The space of a run that goes on has its levels weighed already.
    return SuperResolution((space or weigh_levels(cached_space(cache), weight)).to(device), degradation, samples, seed)


def dit_config(config: RunConfig, cache: LatentCache) -> DiTConfig:
    """The backbone's shape for this cache, with what the config leaves to it filled in."""
    frame_rate_hz = cache.meta["sample_rate_hz"] / cache.meta["hop_samples"]
    patch = config.model.patch_frames or max(1, round(frame_rate_hz / TOKENS_PER_SEC))
    dit = preset(config.model.preset, channels=cache.channels, text_dim=cache.text_dim, patch_frames=patch)
    dit = replace(dit, audio=config.train.task == "super-resolution", attention_window=config.model.attention_window)
    dit = replace(dit, known=config.train.known_share > 0, value_residual=config.model.value_residual)
    # The noise of a token wider than the model does not pass through it (docs/method.md, What is measured in what).
    predicts = config.model.predicts
    if predicts == "auto":
        predicts = "clean" if dit.channels * dit.patch_frames > dit.width else "velocity"
    guessed = dit.audio and bool(config.degradation.predictor)
    # A skip needs clean predictions and a codec with levels. Beside a guess it would fit what is particular to the
    # training's kinds of sound (docs/super-resolution-method.md).
    skip = dit.audio and predicts == "clean" and not guessed
    levels = levels_of(cached_space(cache).codec) if skip else 0
    numbers, labels = condition_fields(config, cache)
    return replace(dit, predicts=predicts, audio_skip=levels, guessed=guessed, numbers=numbers, labels=labels)


def model_shape(config: RunConfig, cache: LatentCache) -> BackboneConfig:
    """The shape of what a config trains on this cache: one of our own backbones, or a public one."""
    if not config.model.pretrained:
        return dit_config(config, cache)
    return read_adapter_config(config.model.pretrained)


def peak_learning_rate(config: RunConfig, width: int) -> float:
    """The config's rate, or where it leaves the choice, one that falls with the width.

    Adam moves every weight by about the rate, and a unit of a wider layer adds up more of them (arXiv 2203.03466). The
    constant is ours, from trials with dit-3m: 2e-3 beat 1e-3 at every fixed t (docs/log.md, 2026-11-22).
    """
    if config.model.pretrained:
        return config.optim.learning_rate or (LORA_RATE if config.lora.rank else FINE_TUNING_RATE)
    return config.optim.learning_rate or 2e-3 * min(1.0, 160 / width)


def optim_config(config: RunConfig, model: Backbone) -> OptimConfig:
    """The config's optimiser, with the rate that it leaves to the model's width filled in."""
    return replace(config.optim, learning_rate=peak_learning_rate(config, model.config.width))


def make_average(config: RunConfig, accelerator, model: Backbone) -> Backbone:
    """The model whose weights will be the running average; both are split over the ranks where that is asked for.

    Of a model with low-rank adapters it averages those alone, and shares the frozen weights.
    """
    ema = averaged_copy(model)
    shard_models(config, accelerator, model, ema)
    return ema


def pretrained_model(config: RunConfig, cache: LatentCache) -> Adapter:
    """The public model that the config names, for clips of this cache.

    Raises:
        UserError: it cannot be loaded.
    """
    model = load_adapter(config.model.pretrained)
    if model.needs_null:
        model.set_null(*load_pipeline_text(config.model.pretrained, "--model").encode([""]))
    model.set_window(cache.frames)
    return model


def build_model(config: RunConfig, cache: LatentCache, seed: int) -> Backbone:
    """The backbone for this cache, initialised from the seed alone, or a public one; with adapters where it gets some.

    Raises:
        UserError: a start that is missing or of another shape, or low-rank adapters that cannot be.
    """
    check_lora(config)
    model: Backbone
    with torch.random.fork_rng(devices=[]):
        # torch's initialisers take no generator; the global one is borrowed and put back.
        torch.manual_seed(keyed_generator(seed, "weights").initial_seed())
        model = pretrained_model(config, cache) if config.model.pretrained else DiT(dit_config(config, cache))
        if config.train.start_from:
            _start(model, Path(config.train.start_from))
        if config.lora.rank:
            add_lora(model, config.lora)
    if config.holds_bfloat16:
        freeze_as_bfloat16(model)
    model.gradient_checkpointing = config.model.gradient_checkpointing
    if config.train.compile:
        compile_blocks(model.blocks)
    return model


def _start(model: Backbone, path: Path) -> None:
    """Put a trained model's averaged weights into a fresh one; what a task fits (the skip) is fitted anew.

    Raises:
        UserError: no model there, or one of another shape.
    """
    found = load_model(model_file(path)).model.state_dict()
    if isinstance(model, DiT) and model.config.known:
        # A model that was trained without known parts begins to learn them from zero.
        found.setdefault("known_in", torch.zeros_like(model.known_in))
    # Fields that the start does not have begin at nothing, so that the run begins as the start is.
    if isinstance(model, DiT) and hasattr(model, "fields") and not any(name.startswith("fields.") for name in found):
        model.fields.begin_at_nothing()
        found |= {f"fields.{name}": value for name, value in model.fields.state_dict().items()}
    weights = {name: found.get(name) for name, _ in model.named_parameters()}
    other = [n for n, v in weights.items() if v is None or v.shape != model.get_parameter(n).shape]
    if other:
        raise UserError(f"train.start_from={path}: a model of another shape ({other[0]}); take its preset and codec")
    model.load_state_dict(weights, strict=False)


def stage_options(config: RunConfig, accelerator, model: Backbone) -> dict:
    """Options of `segue.Stage` for a run: schedule, seed, ranks, how weights are split, tokens of no time."""
    optim = config.optim
    total = config.train.total_examples
    options = {
        "prepended": getattr(model.config, "prepended", 0),
        "seed": config.train.seed,
        "rank": accelerator.process_index,
        "world": accelerator.num_processes,
        "reduce": lambda numbers: numbers,  # our measurements are the same on all ranks already
        "warmup_examples": round(optim.warmup_fraction * total),
        "whole": gathered_blocks,
        "norm": norm_of,
    }
    # The decay hardly affects an average over a tenth of the run (docs/method.md), but it does affect online weights.
    if config.policy.probe.weights == "online" and optim.decay == "linear":
        options["decay_from"] = (1 - optim.decay_fraction) * total
    return options


def model_card(
    config: RunConfig, cache: LatentCache, model: Backbone, examples_seen: int, predictor: dict | None = None
) -> ModelCard:
    """The card that is saved with the model; `predictor` as `predictor_of` found it when the run was started."""
    meta = cache.meta
    return ModelCard(
        model=asdict(model.config),
        codec=meta["codec"],
        codec_source=meta["codec_source"],
        text=meta["text"],
        seconds=window_seconds(config, cache),
        examples_seen=examples_seen,
        recipe=config.recipe,
        task=config.train.task,
        degradation=asdict(config.degradation) if config.train.task == "super-resolution" else {},
        lora=asdict(config.lora) if config.lora.rank else {},
        base=base_of(config) if config.lora.rank else {},
        lengths=lengths_of(config, cache),
        predictor=predictor or {},
    )


def predictor_of(config: RunConfig, cache: LatentCache) -> dict:
    """Where the predictor is that a model starts from, and what decides its guess, for a card; {} without one.

    Raises:
        UserError: there is none.
    """
    place = config.degradation.predictor if config.train.task == "super-resolution" else ""
    if not place:
        return {}
    # A local folder by its whole path, so that the run can be used from elsewhere.
    source = str(Path(place).resolve()) if Path(place).exists() else place
    file = find_predictor(source, cache.meta["sample_rate_hz"])
    return {"source": source, "sha256": predictor_hash(file), "mean_share": MEAN_SHARE}


def lengths_of(config: RunConfig, cache: LatentCache) -> dict:
    """How long training sounds were, for a card; "fitted" where batches were no longer than their sounds."""
    known = cache.meta.get("conditions", {}).get("lengths", {})
    if not known or not any(field.name in TIMES for field in condition_fields(config, cache)[0]):
        return {}
    return known | ({"fitted": True} if config.train.buckets else {})


def base_of(config: RunConfig) -> dict:
    """What the adapters of a run belong to: where its frozen weights are, and what tells them from others."""
    if config.train.start_from:
        source = str(model_file(Path(config.train.start_from)).resolve())
    else:
        # A local folder by its whole path, so that the run can be used from elsewhere; a hub name as it is.
        named = Path(config.model.pretrained)
        source = str(named.resolve()) if named.exists() else config.model.pretrained
    return {"source": source, "weights": _hash_once(source)}


@cache
def _hash_once(source: str) -> str:
    """`base_weights`, for every checkpoint of this process."""
    return base_weights(source)
