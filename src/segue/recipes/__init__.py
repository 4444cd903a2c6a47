"""Recipes: named functions that return a run's config. An ablation is its parent with a few changes.

Recipes share data, model, optimiser, seed and budget, and differ in their policy: how the regime is measured, and what
it drives. `stage` is the whole method, and `stage-muon` by another optimiser; the static recipes are its baselines.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from segue.models.adapters import own_timesteps, read_adapter_config
from segue.process.timesteps import LogitNormal, Shifted, TimestepDistribution
from segue.stage.alignment import AlignmentConfig
from segue.stage.policy import BLOCK_TERM, KAPPA, LAMBDA_0, stage_policy
from segue.stage.regime import RegimeConfig
from segue.stage.timesteps import STAGE_TIMESTEPS, TimestepsConfig, stage_distribution
from segue.tasks.degradation import DegradationConfig
from segue.training import older
from segue.training.config import OptimConfig, RunConfig
from segue.types import UserError

# Of 1, 2, 4 and 8 times AdamW's rate, on tuning seeds (docs/results.md).
MUON = OptimConfig(kind="muon", muon_rate=4.0, muon_weight_decay=0.0)

# --- static recipes: no regime --------------------------------------------------------------------------------------


def static_uniform() -> RunConfig:
    """Times uniform in (0, 1): the plainest flow matching, and the baseline of every table."""
    return RunConfig(recipe="static-uniform")


def static_logit_normal() -> RunConfig:
    """Logit-normal(0, 1) times, as Stable Diffusion 3 (arXiv 2403.03206) draws them."""
    return _static("static-logit-normal", LogitNormal(0.0, 1.0))


def static_shifted() -> RunConfig:
    """Logit-normal(0, 1) times shifted by 3 toward noise, as ACE-Step draws them."""
    return _static("static-shifted", Shifted(LogitNormal(0.0, 1.0), 3.0))


CHECKPOINT = "static-checkpoint"


def static_checkpoint() -> RunConfig:
    """The timestep distribution that a pretrained model (--model) was trained with: the baseline of fine-tuning."""
    return RunConfig(recipe=CHECKPOINT)


def static_average() -> RunConfig:
    """The stage distribution at r = 0.5 throughout: the average over a run whose r rises evenly."""
    return _static("static-average", _stage_timesteps(0.5))


def semantic_timesteps() -> RunConfig:
    """The stage distribution at r = 0 throughout, without a teacher: most draws are at high noise."""
    return _static("semantic-timesteps", _stage_timesteps(0.0))


def min_snr() -> RunConfig:
    """Uniform times, losses under min-SNR-5 weights (arXiv 2303.09556)."""
    return _objective("min-snr", "min-snr")


def uncertainty() -> RunConfig:
    """Uniform times; each noise level is weighed by a learned uncertainty (EDM2, arXiv 2312.02696)."""
    return _objective("uncertainty", "uncertainty")


def curriculum() -> RunConfig:
    """A curriculum: high noise first, then more and more noise levels as the run goes on (arXiv 2403.10348)."""
    return _policy("curriculum", static_uniform(), timesteps=TimestepsConfig(distribution="curriculum"))


def adaptive_timesteps() -> RunConfig:
    """Times drawn more often where a step at them lowered the loss more (arXiv 2411.09998, simplified)."""
    return _policy("adaptive-timesteps", static_uniform(), timesteps=TimestepsConfig(distribution="learned"))


def repa() -> RunConfig:
    """Uniform times, constant alignment with the teacher (REPA, arXiv 2410.06940)."""
    return _policy("repa", static_uniform(), alignment=AlignmentConfig(weight=LAMBDA_0, schedule="constant"))


def haste() -> RunConfig:
    """REPA, cut at a fixed share of the run (HASTE, arXiv 2505.16792)."""
    return _policy("haste", static_uniform(), alignment=AlignmentConfig(weight=LAMBDA_0, schedule="cut"))


def static_muon() -> RunConfig:
    """`static-uniform` by Muon: to this `stage-muon` adds the method alone."""
    return replace(static_uniform(), recipe="static-muon", optim=MUON)


# --- the method -----------------------------------------------------------------------------------------------------


def stage() -> RunConfig:
    """The method: the regime, from the slope of the condition gain, drives alignment and times."""
    return replace(static_uniform(), recipe="stage", policy=stage_policy())


def stage_muon() -> RunConfig:
    """`stage` by Muon: the method, and the optimiser that helps static recipes as well."""
    return replace(stage(), recipe="stage-muon", optim=MUON)


def time_ramp() -> RunConfig:
    """`stage` with r = n / N: the control that tells whether measuring the regime is worth anything."""
    return _policy("time-ramp", stage(), regime=RegimeConfig(signal="time"))


def static_semantic() -> RunConfig:
    """`stage` with r = 0 throughout, its semantic end. A control."""
    return _policy("static-semantic", stage(), regime=RegimeConfig(signal="constant", constant=0.0))


def static_refine() -> RunConfig:
    """`stage` with r = 1 throughout, its refinement end, and so without alignment. A control."""
    return _policy("static-refine", stage(), regime=RegimeConfig(signal="constant", constant=1.0))


def stage_no_alignment() -> RunConfig:
    """`stage` without alignment: its timesteps alone."""
    return _policy("stage-no-alignment", stage(), alignment=AlignmentConfig())


def stage_no_timesteps() -> RunConfig:
    """`stage` with uniform times throughout: its alignment alone."""
    return _policy("stage-no-timesteps", stage(), timesteps=TimestepsConfig())


def stage_blocks() -> RunConfig:
    """`stage` and the block term, the paper's third mechanism; it needs six blocks or more."""
    return _policy("stage-blocks", stage(), structure=BLOCK_TERM)


def stage_only_blocks() -> RunConfig:
    """Uniform times without alignment, and the block term."""
    return _policy("stage-only-blocks", stage_blocks(), alignment=AlignmentConfig(), timesteps=TimestepsConfig())


def stage_by_slope() -> RunConfig:
    """`stage` with r from the slope of the discrepancy: the expected improvement over the improvement so far."""
    return _policy("stage-by-slope", stage(), regime=RegimeConfig(signal="discrepancy", kappa=KAPPA))


def stage_by_level() -> RunConfig:
    """`stage` with r from the level of the discrepancy, whose two constants are the demo set's."""
    return _policy("stage-by-level", stage(), regime=RegimeConfig(signal="level", kappa=KAPPA))


def stage_per_time() -> RunConfig:
    """`stage` with each probe time drawn as often as its own curve still has to improve."""
    return _policy("stage-per-time", stage(), timesteps=TimestepsConfig(distribution="per-time"))


def stage_corrected() -> RunConfig:
    """`stage` with losses weighed back to uniform times, so that its distribution changes their variance alone."""
    return _policy("stage-corrected", stage(), timesteps=replace(STAGE_TIMESTEPS, corrected=True))


# --- super-resolution -----------------------------------------------------------------------------------------------


def sr_demo() -> RunConfig:
    """Super-resolution from sample rates of 8 to 16 kHz, by the method with milder constants."""
    return _super_resolution("sr-demo", _mild_stage(), DegradationConfig())


def sr_demo_static() -> RunConfig:
    """The same by `static-uniform`."""
    return _super_resolution("sr-demo-static", static_uniform(), DegradationConfig())


def sr_predicted() -> RunConfig:
    """`sr-demo` from the shipped one-pass predictor's guess: the model generates what the guess lacks."""
    return _super_resolution("sr-predicted", _mild_stage(), DegradationConfig(predictor="shipped"))


def sr_predicted_static() -> RunConfig:
    """The same by `static-uniform`."""
    return _super_resolution("sr-predicted-static", static_uniform(), DegradationConfig(predictor="shipped"))


def sr_48k() -> RunConfig:
    """Super-resolution from sample rates of 8-24 to 48 kHz, by the method with milder constants."""
    return _super_resolution("sr-48k", _mild_stage(), WIDE)


def sr_48k_static() -> RunConfig:
    """The same by `static-uniform`."""
    return _super_resolution("sr-48k-static", static_uniform(), WIDE)


# For files of 8 to 24 kHz. Held-out clips have the lowest cutoff: of the new band a 16 kHz teacher covers 4 to 8 kHz.
WIDE = DegradationConfig(cutoff_max_hz=12_000.0, top_share=0.1, held_out_cutoff_hz=4000.0)


def _mild_stage() -> RunConfig:
    # The known band determines most of the sound: less high noise is needed than for captions.
    return _policy("stage", stage(), timesteps=TimestepsConfig(distribution="stage"))


def _super_resolution(recipe: str, parent: RunConfig, degradation: DegradationConfig) -> RunConfig:
    # A token is one frame of 16 ms and depends on 0.6 s to each side, so that long files can be computed in chunks.
    model = replace(parent.model, patch_frames=1, attention_window=5)
    train = replace(parent.train, task="super-resolution")
    return replace(parent, recipe=recipe, model=model, train=train, degradation=degradation)


def _policy(recipe: str, parent: RunConfig, **changes) -> RunConfig:
    return replace(parent, recipe=recipe, policy=replace(parent.policy, **changes))


def _stage_timesteps(regime: float) -> TimestepDistribution:
    return stage_distribution(regime, STAGE_TIMESTEPS.floor, STAGE_TIMESTEPS.mu_start, STAGE_TIMESTEPS.mu_end_ratio)


def _static(recipe: str, timesteps: TimestepDistribution) -> RunConfig:
    return _policy(recipe, static_uniform(), static_timesteps=timesteps)


def _objective(recipe: str, objective: str) -> RunConfig:
    parent = static_uniform()
    return replace(parent, recipe=recipe, train=replace(parent.train, objective=objective))


RECIPES: dict[str, Callable[[], RunConfig]] = {
    make().recipe: make
    for make in (
        stage_muon,
        stage,
        stage_no_alignment,
        stage_no_timesteps,
        stage_blocks,
        stage_only_blocks,
        stage_by_slope,
        stage_by_level,
        stage_per_time,
        stage_corrected,
        time_ramp,
        static_semantic,
        static_refine,
        static_average,
        static_uniform,
        static_muon,
        static_logit_normal,
        static_shifted,
        static_checkpoint,
        semantic_timesteps,
        min_snr,
        uncertainty,
        curriculum,
        adaptive_timesteps,
        repa,
        haste,
        sr_demo,
        sr_demo_static,
        sr_predicted,
        sr_predicted_static,
        sr_48k,
        sr_48k_static,
    )
}
DEFAULT_RECIPE = "stage-muon"


def fine_tuning(config: RunConfig, model: str) -> RunConfig:
    """The config for a public model that is trained on.

    Args:
        model: folder or hub name of a diffusers pipeline.

    Raises:
        UserError: no such pipeline, or one whose model has no adapter.
    """
    shape = read_adapter_config(model)
    # Absolute, so that the run can be continued from another folder.
    name = str(Path(model).resolve()) if Path(model).exists() else model
    config = replace(config, model=replace(config.model, pretrained=name))
    if config.recipe != CHECKPOINT:
        return config
    return _policy(CHECKPOINT, config, static_timesteps=own_timesteps(shape))


def load_recipe(name: str) -> RunConfig:
    """The config of a named recipe; former names of renamed recipes are accepted.

    Raises:
        UserError: no recipe of that name; the nearest one is offered.
    """
    name = older.RECIPES.get(name, name)
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"no recipe '{name}'; {hint}`segue recipes` lists them")
    return RECIPES[name]()
