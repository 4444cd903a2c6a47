"""A recipe is a named function that returns a run's config; an ablation changes its parent in a few lines.

Recipes share data, model, optimiser, seed and budget, and differ in their policy: where the regime comes from, and what
it drives. `stage` is the method whole; the static ones are what it has to beat.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

from segue.process.timesteps import LogitNormal, Shifted, TimestepLaw
from segue.stage.adaptive_timesteps import LEANING, TimestepsConfig, stage_law
from segue.stage.block_structure import StructureConfig
from segue.stage.regime import RegimeConfig
from segue.stage.ssl_guidance import GuidanceConfig
from segue.tasks.degradation import DegradationConfig
from segue.training.config import RunConfig
from segue.types import UserError

LAMBDA_0 = 0.5  # REPA's weight of the alignment (arXiv 2410.06940)
GUIDED_EVERY = 2  # steps: half the cost, no difference in what is obeyed (docs/results.md, "How far to lean")
BLOCK_STRENGTH = 0.015  # of the update's norm
# Of recipes that read the slope. METHOD's 4 leaves the semantic stage while most captions are still disobeyed, and ends
# a little below a run that stays there; 8 asks that the next doubling bring less than a sixteenth before r is 0.5.
KAPPA = 8.0


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


def static_average() -> RunConfig:
    """The stage law at its middle, r = 0.5: the mean of what an adaptive run draws if it crosses evenly. A control."""
    return _static("static-average", _stage_law(0.5))


def semantic_law() -> RunConfig:
    """The semantic end of the stage law throughout, without a teacher: most draws lean to high noise."""
    return _static("semantic-law", _stage_law(0.0))


def min_snr() -> RunConfig:
    """Uniform times, losses under min-SNR-5 weights (arXiv 2303.09556)."""
    return _objective("min-snr", "min-snr")


def uncertainty() -> RunConfig:
    """Uniform times, each noise level weighed by a learned uncertainty (EDM2, arXiv 2312.02696)."""
    return _objective("uncertainty", "uncertainty")


def curriculum() -> RunConfig:
    """From high noise to all of it, cumulatively, by the share of the run (arXiv 2403.10348)."""
    return _policy("curriculum", static_uniform(), timesteps=TimestepsConfig(law="curriculum"))


def adaptive_timesteps() -> RunConfig:
    """Times drawn more often where a step at them lowered the loss more (arXiv 2411.09998, simplified)."""
    return _policy("adaptive-timesteps", static_uniform(), timesteps=TimestepsConfig(law="learned"))


def repa() -> RunConfig:
    """Uniform times, constant alignment with the teacher (REPA, arXiv 2410.06940)."""
    return _policy("repa", static_uniform(), guidance=GuidanceConfig(weight=LAMBDA_0, law="constant"))


def haste() -> RunConfig:
    """REPA, cut at a fixed share of the run (HASTE, arXiv 2505.16792)."""
    return _policy("haste", static_uniform(), guidance=GuidanceConfig(weight=LAMBDA_0, law="cut"))


# --- the method -----------------------------------------------------------------------------------------------------


def stage() -> RunConfig:
    """The method whole: the regime, read off the discrepancy's level, drives guidance, times and the block term."""
    return _policy(
        "stage",
        static_uniform(),
        # Not its slope: on a power law that is a function of n / N, a time ramp under another name (docs/results.md).
        regime=RegimeConfig(signal="level", kappa=KAPPA),
        timesteps=LEANING,
        guidance=GuidanceConfig(weight=LAMBDA_0, law="decay", every=GUIDED_EVERY),
        # Beyond METHOD's null of rotations: a smooth drift with depth, which any cut divides well, is no grouping.
        structure=StructureConfig(enabled=True, strength=BLOCK_STRENGTH, max_drift_p=0.05),
    )


def time_ramp() -> RunConfig:
    """The same policy with r = n / N: the control that tells whether reading the regime is worth anything."""
    return _policy("time-ramp", stage(), regime=RegimeConfig(signal="time"))


def static_semantic() -> RunConfig:
    """The same policy with r = 0 throughout: its semantic end. A control."""
    return _policy("static-semantic", stage(), regime=RegimeConfig(signal="constant", constant=0.0))


def static_refine() -> RunConfig:
    """The same policy with r = 1 throughout: its refinement end, so no guidance. A control."""
    return _policy("static-refine", stage(), regime=RegimeConfig(signal="constant", constant=1.0))


def stage_no_guidance() -> RunConfig:
    """`stage` without a teacher in the loss; the probe still hears with it."""
    return _policy("stage-no-guidance", stage(), guidance=GuidanceConfig())


def stage_no_timesteps() -> RunConfig:
    """`stage` with uniform times throughout."""
    return _policy("stage-no-timesteps", stage(), timesteps=TimestepsConfig())


def stage_no_structure() -> RunConfig:
    """`stage` without the block term."""
    return _policy("stage-no-structure", stage(), structure=StructureConfig())


def stage_only_guidance() -> RunConfig:
    """Of the three mechanisms, guidance alone."""
    return _policy("stage-only-guidance", stage_no_timesteps(), structure=StructureConfig())


def stage_only_timesteps() -> RunConfig:
    """Of the three mechanisms, the law of times alone."""
    return _policy("stage-only-timesteps", stage_no_guidance(), structure=StructureConfig())


def stage_only_structure() -> RunConfig:
    """Of the three mechanisms, the block term alone."""
    return _policy("stage-only-structure", stage_no_guidance(), timesteps=TimestepsConfig())


def stage_by_slope() -> RunConfig:
    """`stage` with METHOD's regime: the gain that the slope of the discrepancy promises, over the gain so far."""
    return _policy("stage-by-slope", stage(), regime=RegimeConfig(signal="discrepancy", kappa=KAPPA))


def stage_per_time() -> RunConfig:
    """`stage` with the second law: each probe time drawn by what its own curve has left to gain."""
    return _policy("stage-per-time", stage(), timesteps=TimestepsConfig(law="per-time"))


def stage_corrected() -> RunConfig:
    """`stage` with losses weighed back to uniform times: the law then changes the variance alone."""
    return _policy("stage-corrected", stage(), timesteps=replace(LEANING, corrected=True))


# --- super-resolution -----------------------------------------------------------------------------------------------


def sr_demo() -> RunConfig:
    """Super-resolution from 8 to 16 kHz by `stage`."""
    return _super_resolution("sr-demo", _mild_stage(), DegradationConfig())


def sr_demo_static() -> RunConfig:
    """The same by `static-uniform`."""
    return _super_resolution("sr-demo-static", static_uniform(), DegradationConfig())


def sr_48k() -> RunConfig:
    """Super-resolution from 8-24 to 48 kHz by `stage`."""
    return _super_resolution("sr-48k", _mild_stage(), WIDE)


def sr_48k_static() -> RunConfig:
    """The same by `static-uniform`."""
    return _super_resolution("sr-48k-static", static_uniform(), WIDE)


# Files of 8 to 24 kHz. A probe at the lowest cutoff: what a 16 kHz teacher hears of the new band lies there.
WIDE = DegradationConfig(cutoff_max_hz=12_000.0, top_share=0.1, held_out_cutoff_hz=4000.0)


def _mild_stage() -> RunConfig:
    # No caption to obey, and a condition that says most of what the sound is: no reason to lean as far to noise, and a
    # discrepancy that begins where captions leave it.
    return _policy("stage", stage_by_slope(), timesteps=TimestepsConfig(law="stage"))


def _super_resolution(recipe: str, parent: RunConfig, degradation: DegradationConfig) -> RunConfig:
    # A token is one frame of 16 ms; it hears 0.6 s to each side, so that files of any length are computed by chunks.
    model = replace(parent.model, patch_frames=1, attention_window=5)
    train = replace(parent.train, task="super-resolution")
    return replace(parent, recipe=recipe, model=model, train=train, degradation=degradation)


def _policy(recipe: str, parent: RunConfig, **changes) -> RunConfig:
    return replace(parent, recipe=recipe, policy=replace(parent.policy, **changes))


def _stage_law(regime: float) -> TimestepLaw:
    return stage_law(regime, LEANING.floor, LEANING.mu_0, LEANING.lean_back)


def _static(recipe: str, law: TimestepLaw) -> RunConfig:
    return _policy(recipe, static_uniform(), law=law)


def _objective(recipe: str, objective: str) -> RunConfig:
    parent = static_uniform()
    return replace(parent, recipe=recipe, train=replace(parent.train, objective=objective))


RECIPES: dict[str, Callable[[], RunConfig]] = {
    make().recipe: make
    for make in (
        stage,
        stage_no_guidance,
        stage_no_timesteps,
        stage_no_structure,
        stage_only_guidance,
        stage_only_timesteps,
        stage_only_structure,
        stage_by_slope,
        stage_per_time,
        stage_corrected,
        time_ramp,
        static_semantic,
        static_refine,
        static_average,
        static_uniform,
        static_logit_normal,
        static_shifted,
        semantic_law,
        min_snr,
        uncertainty,
        curriculum,
        adaptive_timesteps,
        repa,
        haste,
        sr_demo,
        sr_demo_static,
        sr_48k,
        sr_48k_static,
    )
}
DEFAULT_RECIPE = "stage"


def load_recipe(name: str) -> RunConfig:
    """The config of a named recipe.

    Raises:
        UserError: no recipe of that name; the nearest one is offered.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"no recipe '{name}'; {hint}`segue recipes` lists them")
    return RECIPES[name]()
