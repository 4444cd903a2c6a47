"""Checks before the first step, of errors that would otherwise show only as noise after a day of training."""

from __future__ import annotations

import torch

from segue.codecs.huggingface import pretrained_codec_hash
from segue.conditioners.pipeline_text import pipeline_text_hash
from segue.data.cache import LatentCache
from segue.devices import device_of
from segue.hub import pipeline_folder
from segue.memory import format_bytes
from segue.models.adapters import AdapterConfig, adapter_class, own_timesteps
from segue.models.lora import describe_lora
from segue.models.presets import parameters_of
from segue.models.step_memory import model_without_values
from segue.tasks.super_resolution import tells_bands
from segue.training.build import cached_space, condition_fields, make_task, model_shape, own_space, predictor_of
from segue.training.config import RunConfig
from segue.training.features import teacher_statistics
from segue.training.fine_tuning import check_lora
from segue.training.run_memory import free_bytes, in_parts, run_need, stated_bytes, step_kind
from segue.training.trackers import check_trackers
from segue.training.windows import crops_of, window_frames
from segue.types import UserError


def check_before_training(config: RunConfig, cache: LatentCache, device: str = "auto") -> list[str]:
    """Lines to print on what the run will be and need.

    Args:
        device: as --device names it.

    Raises:
        UserError: the cache cannot train this recipe; the line says why and what to do.
    """
    check_trackers(config)
    train = cache.rows("train")
    valid = cache.rows("valid")
    if len(train) < config.train.batch_size:
        raise UserError(
            f"{cache.path}: {len(train)} training clips are fewer than a batch of {config.train.batch_size}; "
            "hint: add sounds, or --set train.batch_size=" + str(max(1, len(train)))
        )
    if not valid:
        raise UserError(
            f"{cache.path}: no clip has split 'valid'; give some in the manifest, or encode a larger folder"
        )
    if config.model.pretrained:
        _refuse_other_parts(config, cache)
    elif config.recipe == "static-checkpoint":
        raise UserError("static-checkpoint is the baseline of a model that is trained on; hint: --model FOLDER")
    crops_of(config, cache)
    conditions = [_check_text(cache, train)] if config.train.task == "generation" else _check_degradation(config, cache)
    lines = [
        _check_latents(config, cache, train),
        *conditions,
        *_describe_fields(config, cache),
        *_check_model(config, cache, torch.device(device_of(device))),
    ]
    return lines + ([_check_teacher(cache)] if config.policy.needs_teacher else [])


def _check_degradation(config: RunConfig, cache: LatentCache) -> list[str]:
    """What the degradation removes; a teacher that does not cover the removed band cannot be aligned with there."""
    task = make_task(config, cache)
    codec = task.space.codec
    drawn = config.degradation
    rate_hz = codec.sample_rate_hz
    lines = [
        f"degradation: {drawn.families} filters of order {drawn.order_min} to {drawn.order_max}, cutoffs "
        f"{drawn.cutoff_min_hz:g} to {drawn.cutoff_max_hz:g} Hz; generated up to {rate_hz // 2:,} Hz"
    ]
    if drawn.codes:
        lines.append(
            f"degradation: {drawn.telephone_share:.0%} of the clips by telephone, {drawn.coded_share:.0%} in MP3, Opus"
        )
    if found := predictor_of(config, cache):
        lines.append(f"predictor: {found['source']} ({found['sha256']}), whose guess the model starts from")
    if not tells_bands(codec):
        lines.append(
            f"warning: the codec {codec.name} does not keep the low band apart, so that all of it is generated; "
            "segue encode --codec gain-shape gives the better model (docs/super-resolution-method.md)"
        )
    teacher = (cache.meta["teacher"] if config.policy.needs_teacher else None) or {}
    covered_hz = teacher.get("sample_rate_hz", rate_hz) / 2
    from_hz = drawn.held_out.cutoff_hz
    # Above half its own sample rate a teacher receives nothing, whatever the model generates there.
    if covered_hz < rate_hz / 2:
        covered = "nothing" if covered_hz <= from_hz else f"{from_hz:g} to {covered_hz:g} Hz"
        lines.append(
            f"warning: of the new band, {from_hz:g} to {rate_hz / 2:g} Hz, teacher {teacher['name']} covers {covered}: "
            f"alignment and regime ignore the rest; segue teacher train --rate {rate_hz} makes one that covers it"
        )
    return lines


def _refuse_other_parts(config: RunConfig, cache: LatentCache) -> None:
    """A pretrained model knows the latents of its own codec alone, and the tokens of its own text encoder.

    Raises:
        UserError: the cache was made with another one, or the run is one that such a model cannot have.
    """
    name = config.model.pretrained
    folder = pipeline_folder("--model", name)
    adapter_class(folder)
    folder.part("vae")
    own = {"codec": pretrained_codec_hash(name), "text encoder": pipeline_text_hash(folder)}
    found = {"codec": cache.meta["codec"].get("weights_sha256"), "text encoder": cache.meta["text"].get("weights")}
    names = {"codec": cache.meta["codec_source"], "text encoder": cache.meta["text"]["name"]}
    other = [f"the {part} {names[part]}" for part in own if own[part] != found[part]]
    if other:
        raise UserError(
            f"{cache.path}: made with {' and '.join(other)}, not with those of {name}; hint: segue encode SOUNDS "
            f"--model {name} --out CACHE makes one that fits"
        )
    if config.train.sharding != "none":
        raise UserError("train.sharding=fsdp2 was not tried on pretrained models; take train.sharding=none")


def _check_latents(config: RunConfig, cache: LatentCache, rows: list[int]) -> str:
    """A codec whose latents are far from standard trains a model of the wrong scale, or of noise."""
    some = rows[:: max(1, len(rows) // 256)][:256]
    latents, mask = cache.latents(some)
    space = own_space(cache) if config.model.pretrained else cached_space(cache)
    x = space.standardise(latents, mask)
    # Real frames alone: padding is 0 and would make the deviation smaller.
    values = x.transpose(1, 2)[mask]
    mean, std = float(values.mean()), float(values.std())
    if not bool(torch.isfinite(values).all()):
        raise UserError(f"{cache.path}: latents hold NaN or Inf; hint: delete the cache and run `segue encode` again")
    if not config.model.pretrained and (abs(mean) > 0.2 or not 0.7 < std < 1.4):
        raise UserError(
            f"{cache.path}: standardised latents have mean {mean:.2f} and std {std:.2f}, not 0 and 1; "
            "the cache's statistics are not its own: delete it and run `segue encode` again"
        )
    return (
        f"latents: {len(rows):,} training clips of {cache.channels} x {cache.frames}, mean {mean:+.3f}, std {std:.3f}"
    )


def _check_text(cache: LatentCache, rows: list[int]) -> str:
    """Captions that all embed alike cannot steer anything."""
    some = rows[:: max(1, len(rows) // 64)][:64]
    tokens, mask = cache.text(some)
    if not bool(mask.any(1).all()):
        raise UserError(f"{cache.path}: a caption has no token; give every clip a caption")
    pooled = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    spread = float(pooled.std(0).mean())
    if len(some) > 1 and spread == 0.0:
        return "captions: all the same; the model will not follow prompts"
    shape = f"up to {tokens.shape[1]} tokens of {tokens.shape[2]} features"
    return f"captions: {shape}, whose deviation over clips is {spread:.3f}"


def _describe_fields(config: RunConfig, cache: LatentCache) -> list[str]:
    """What the model is told beside captions, and of that what the cache does not say."""
    numbers, labels = condition_fields(config, cache)
    words = [f"{field.name} {field.low:.4g} to {field.high:.4g}" for field in numbers]
    words += [f"{field.name} ({len(field.values)} labels)" for field in labels]
    if not words:
        return []
    described = cache.meta.get("conditions", {})
    known = {field["name"] for part in ("numbers", "labels") for field in described.get(part, ())}
    unknown = [name for name in [*(f.name for f in numbers), *(f.name for f in labels)] if name not in known]
    note = f"; the cache does not say {', '.join(unknown)}" if unknown else ""
    return [f"conditions beside captions: {', '.join(words)}{note}"]


def _check_teacher(cache: LatentCache) -> str:
    """A recipe that aligns with a teacher or measures by one needs its features in the cache, and that they move."""
    _, std = teacher_statistics(cache)
    source = cache.meta["teacher_source"]
    rate_hz = cache.meta["teacher_frame_rate_hz"]
    alive = int((std > 1e-3 * std.max()).sum())
    varying = f"{len(std)} features ({alive} of them vary over the clips)"
    return f"teacher: {source['name']}, {varying} at {rate_hz:g} frames a second"


def _check_model(config: RunConfig, cache: LatentCache, device: torch.device) -> list[str]:
    dit = model_shape(config, cache)
    need = run_need(config, cache, dit)
    lines = [
        f"model: {config.model.pretrained or config.model.preset}, {parameters_of(dit) / 1e6:.2f} M parameters, "
        f"{-(-window_frames(config, cache) // dit.patch_frames)} tokens a clip, predicts {dit.predicts}; peak memory "
        f"about {format_bytes(stated_bytes(need, device))} ({in_parts(need)}, {format_bytes(need.activations)} "
        "activations)"
    ]
    check_lora(config)
    if config.lora.rank:
        lines.append(describe_lora(model_without_values(dit, step_kind(config))))
    if isinstance(dit, AdapterConfig):
        lines.append(f"timesteps of the checkpoint: {own_timesteps(dit)}; of this run: {_timesteps_of(config)}")
    token = dit.channels * dit.patch_frames
    # Only where "velocity" was asked for: "auto" takes the clean sample for wide tokens.
    if token > dit.width and config.model.predicts == "velocity" and not config.model.pretrained:
        raise UserError(
            f"model.predicts=velocity through a model of width {dit.width} cannot fit tokens of {token} numbers; "
            "use model.predicts=clean or a wider preset"
        )
    free = free_bytes(device)
    if free is not None and need.total > free:
        raise UserError(
            f"the run needs about {need.total / 2**30:.1f} GiB of {device} and {free / 2**30:.1f} GiB are free; "
            "use a smaller model.preset, train.accumulation or model.gradient_checkpointing=true"
        )
    return lines


def _timesteps_of(config: RunConfig) -> str:
    policy = config.policy
    fixed = policy.timesteps.distribution == "static"
    return str(policy.static_timesteps) if fixed else f"timesteps.distribution={policy.timesteps.distribution}"
