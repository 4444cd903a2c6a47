"""Configs of older versions: former names of settings and recipes, and settings that have been removed.

By these tables the config of an older run is read, and a study's runs keep the hashes that name them. And the state of
an older run's optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from segue.tasks.degradation import DELETED as OF_DEGRADATION
from segue.types import UserError, without_deleted

if TYPE_CHECKING:
    from torch import Tensor

RECIPES = {  # old name -> new name
    "stage-no-guidance": "stage-no-alignment",
    "semantic-law": "semantic-timesteps",
}
SECTIONS = {"guidance": "alignment"}  # old name -> new name
RENAMED: dict[str, dict[str, str]] = {  # section (by its new name) -> old name -> new name
    "alignment": {"law": "schedule"},
    "timesteps": {"law": "distribution", "mu_0": "mu_start", "lean_back": "mu_end_ratio"},
    "structure": {"readers": "in_proj", "writers": "out_proj"},
}
# Section -> name of a removed setting -> its former default, which is now a constant of the code.
DELETED: dict[str, dict[str, Any]] = {
    "regime": {
        "window": 2.0,
        "min_points": 8,
        "burn_in": 0.02,
        "confidence": 1.64,
        "smoothing": 0.1,
        "max_move": 1.0,
        "max_fall": 0.5,
        "onset": 2.3,
        "onset_probes": 3,
        "rise": 2.0,
        "fallback_at": 0.3,
        "fallback": "time",
    },
    "timesteps": {"clusters": 10, "open_at": 0.5},
    "structure": {
        "stable_checks": 3,
        "min_ari": 0.9,
        "min_z": 3.0,
        "max_p": 0.02,
        "draws": 50,
        "min_moved": 0.01,
        "min_groups": 2,
        "min_regime": 0.5,
        "last_activation": 0.8,
        "ramp": 0.05,
        "seed": 0,
    },
    "alignment": {"t_min": 0.1, "latch": 0.02, "projector": "mlp", "hidden": 0},
}


def current_policy(data: dict) -> dict:
    """A policy's JSON of any version, under today's names.

    Raises:
        UserError: a removed setting had another value than its former default.
    """
    policy: dict[str, Any] = {}
    for old, settings in data.items():
        section = SECTIONS.get(old, old)
        if section in ("law", "static_timesteps"):
            policy["static_timesteps"] = settings
            continue
        settings = without_deleted(settings, DELETED.get(section, {}), f"{section}.")
        names = RENAMED.get(section, {})
        policy[section] = {names.get(name, name): value for name, value in settings.items()}
    return policy


def current_name(name: str) -> str:
    """Today's name of a setting "section.name".

    Raises:
        UserError: the setting has been removed.
    """
    section, dot, key = name.partition(".")
    section = SECTIONS.get(section, section)
    if key in DELETED.get(section, {}):
        raise UserError(f"--set {name}: this setting was removed; it is always {DELETED[section][key]!r}")
    return f"{section}{dot}{RENAMED.get(section, {}).get(key, key)}"


def first_json(config: Mapping) -> dict:
    """A run's JSON under the names of the first version, which studies hash, so that finished runs keep their hashes.

    A config that is written under those names already stays as it is.
    """
    policy: dict[str, Any] = {}
    for new, settings in config.get("policy", {}).items():
        if new == "static_timesteps":
            policy["law"] = _first_distribution(settings)
            continue
        names = {now: old for old, now in RENAMED.get(new, {}).items()}
        section = next((old for old, now in SECTIONS.items() if now == new), new)
        # Removed settings belong to what the first version hashed.
        policy[section] = DELETED.get(new, {}) | {names.get(k, k): v for k, v in settings.items()}
    degradation = {"degradation": OF_DEGRADATION | config["degradation"]} if "degradation" in config else {}
    first = {now: old for old, now in RECIPES.items()}
    recipe = {"recipe": first.get(config["recipe"], config["recipe"])} if "recipe" in config else {}
    return {**config, **recipe, **({"policy": policy} if policy else {}), **degradation}


def _first_distribution(data: dict) -> dict:
    renamed = {"law" if k == "distribution" else k: v for k, v in data.items()}
    return {k: _first_distribution(v) if k == "base" else v for k, v in renamed.items()}


def current_moments(moments: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """An optimiser's state, index.name -> tensor, by the indices of today's parameters.

    Args:
        moments: of a checkpoint of either schema of models (models/files.py).
        names: of the optimiser's parameters, in its order.
    """
    import torch

    from segue.models.files import former_names

    former = {name: index for index, name in enumerate(n for whole in names for n in former_names(whole))}
    indices = {key.partition(".")[0] for key in moments if not key.startswith("group.")}
    if len(former) == len(names) or len(indices) != len(former):
        return dict(moments)
    found = {key: value for key, value in moments.items() if key.startswith("group.")}
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        index, _, kind = key.partition(".")
        if index != "group":
            states.setdefault(int(index), {})[kind] = value
    for place, whole in enumerate(names):
        parts = [states[former[name]] for name in former_names(whole)]
        for kind, value in parts[0].items():
            # Moments lie as their weights do; the count of steps is one number.
            found[f"{place}.{kind}"] = torch.cat([p[kind] for p in parts]) if value.ndim else value
    return found
