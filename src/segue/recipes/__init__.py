"""A recipe is a named function that returns a run's config; an ablation changes its parent in a few lines.

Every recipe here is static: one timestep law, one objective, from the first example to the last. They are the baselines
that stage-adaptive training has to beat, and they share data, model, optimiser, seed and budget.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

from segue.process.timesteps import LogitNormal, Shifted
from segue.stage.adaptive_timesteps import stage_law
from segue.stage.policy import StaticPolicy
from segue.training.config import RunConfig
from segue.types import UserError


def static_uniform() -> RunConfig:
    """Times uniform in (0, 1): the plainest flow matching, and the baseline of every table."""
    return RunConfig(recipe="static-uniform")


def static_logit_normal() -> RunConfig:
    """Logit-normal(0, 1) times, as Stable Diffusion 3 (arXiv 2403.03206) draws them."""
    return replace(static_uniform(), recipe="static-logit-normal", policy=StaticPolicy(LogitNormal(0.0, 1.0)))


def static_shifted() -> RunConfig:
    """Logit-normal(0, 1) times shifted by 3 toward noise, as ACE-Step draws them."""
    return replace(static_uniform(), recipe="static-shifted", policy=StaticPolicy(Shifted(LogitNormal(0.0, 1.0), 3.0)))


def min_snr() -> RunConfig:
    """Uniform times, losses under min-SNR-5 weights (arXiv 2303.09556)."""
    parent = static_uniform()
    return replace(parent, recipe="min-snr", train=replace(parent.train, objective="min-snr"))


def static_semantic() -> RunConfig:
    """The semantic end of the stage law throughout: half uniform, half leaning to high noise."""
    return replace(static_uniform(), recipe="static-semantic", policy=StaticPolicy(stage_law(0.0)))


def static_refine() -> RunConfig:
    """The refinement end of the stage law throughout: half uniform, half leaning to low noise. A control."""
    return replace(static_uniform(), recipe="static-refine", policy=StaticPolicy(stage_law(1.0)))


RECIPES: dict[str, Callable[[], RunConfig]] = {
    "static-uniform": static_uniform,
    "static-logit-normal": static_logit_normal,
    "static-shifted": static_shifted,
    "min-snr": min_snr,
    "static-semantic": static_semantic,
    "static-refine": static_refine,
}
DEFAULT_RECIPE = "static-semantic"


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
