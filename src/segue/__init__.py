"""segue: stage-adaptive training of audio diffusion models.

Public names, imported when they are first used, so that `import segue` takes no time:

    Pipeline, SuperResolver, Sampling      a trained run and captions, or narrow sound, in; waveforms out
    Predictor                              narrow sound in, wide sound out, in one pass
    DiT, DiTConfig, preset                 the backbone and its sizes
    StageController, Policy, Observation, Decision
    load_codec, load_conditioner           waveform <-> latent; captions -> embeddings
    load_teacher                           waveform -> frozen self-supervised features
    load_manifest, build_cache, open_cache, LatentCache, LatentLoader
    read_settings                          what `segue generate` wrote into a file
    RunConfig, load_recipe, train          a run and its loop
    Stage, Discrepancy, ConditionGain, stage_policy      the method around anybody's model
    attach                                 tap and signatures of anybody's stack of blocks
    Condition, ModelOutput, UserError
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from segue._version import __version__

if TYPE_CHECKING:  # the same names, for type checkers and editors; a test keeps the two lists equal
    from segue.audio.tags import read_settings as read_settings
    from segue.codecs import load_codec as load_codec
    from segue.conditioners import load_conditioner as load_conditioner
    from segue.data.cache import LatentCache as LatentCache
    from segue.data.encoding import build_cache as build_cache
    from segue.data.loader import LatentLoader as LatentLoader
    from segue.data.manifest import load_manifest as load_manifest
    from segue.data.open_cache import open_cache as open_cache
    from segue.models.dit import DiT as DiT
    from segue.models.dit import DiTConfig as DiTConfig
    from segue.models.presets import preset as preset
    from segue.pipeline import Pipeline as Pipeline
    from segue.pipeline import SuperResolver as SuperResolver
    from segue.predictor import Predictor as Predictor
    from segue.recipes import load_recipe as load_recipe
    from segue.sampling import Sampling as Sampling
    from segue.ssl import load_teacher as load_teacher
    from segue.stage.condition_gain import ConditionGain as ConditionGain
    from segue.stage.controller import StageController as StageController
    from segue.stage.decision import Decision as Decision
    from segue.stage.decision import Observation as Observation
    from segue.stage.discrepancy import Discrepancy as Discrepancy
    from segue.stage.policy import Policy as Policy
    from segue.stage.policy import stage_policy as stage_policy
    from segue.stage.stage import Stage as Stage
    from segue.stage.tap import attach as attach
    from segue.training.config import RunConfig as RunConfig
    from segue.training.loop import train as train
    from segue.types import Condition as Condition
    from segue.types import ModelOutput as ModelOutput
    from segue.types import UserError as UserError

_HOMES = {
    "Condition": "segue.types",
    "ModelOutput": "segue.types",
    "UserError": "segue.types",
    "Pipeline": "segue.pipeline",
    "Sampling": "segue.sampling",
    "Predictor": "segue.predictor",
    "SuperResolver": "segue.pipeline",
    "DiT": "segue.models.dit",
    "DiTConfig": "segue.models.dit",
    "preset": "segue.models.presets",
    "StageController": "segue.stage.controller",
    "Observation": "segue.stage.decision",
    "Decision": "segue.stage.decision",
    "Policy": "segue.stage.policy",
    "load_codec": "segue.codecs",
    "load_conditioner": "segue.conditioners",
    "load_teacher": "segue.ssl",
    "load_manifest": "segue.data.manifest",
    "build_cache": "segue.data.encoding",
    "LatentCache": "segue.data.cache",
    "LatentLoader": "segue.data.loader",
    "open_cache": "segue.data.open_cache",
    "read_settings": "segue.audio.tags",
    "RunConfig": "segue.training.config",
    "load_recipe": "segue.recipes",
    "train": "segue.training.loop",
    "attach": "segue.stage.tap",
    "Stage": "segue.stage.stage",
    "ConditionGain": "segue.stage.condition_gain",
    "Discrepancy": "segue.stage.discrepancy",
    "stage_policy": "segue.stage.policy",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    """A public name, from the module that defines it (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'segue' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
