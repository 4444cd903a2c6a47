"""segue: stage-adaptive training of audio diffusion models.

Public names, imported when they are first used:

    Pipeline, Sampling                     a trained run and captions in, waveforms out
    DiT, DiTConfig, preset                 the backbone and its sizes
    StageController, Policy, Observation, Decision
    load_codec, load_conditioner           waveform <-> latent; captions -> embeddings
    load_teacher                           waveform -> frozen self-supervised features
    load_manifest, build_cache, LatentCache, LatentLoader
    RunConfig, load_recipe, train          a run and its loop
    attach                                 tap and signatures of anybody's stack of blocks
    Condition, ModelOutput, UserError
"""

from __future__ import annotations

import importlib

from segue._version import __version__

_HOMES = {
    "Condition": "segue.types",
    "ModelOutput": "segue.types",
    "UserError": "segue.types",
    "Pipeline": "segue.pipeline",
    "Sampling": "segue.pipeline",
    "DiT": "segue.models.dit",
    "DiTConfig": "segue.models.dit",
    "preset": "segue.models.presets",
    "StageController": "segue.stage.controller",
    "Observation": "segue.stage.controller",
    "Decision": "segue.stage.controller",
    "Policy": "segue.stage.policy",
    "load_codec": "segue.codecs",
    "load_conditioner": "segue.conditioners",
    "load_teacher": "segue.ssl",
    "load_manifest": "segue.data.manifest",
    "build_cache": "segue.data.encoding",
    "LatentCache": "segue.data.cache",
    "LatentLoader": "segue.data.loader",
    "RunConfig": "segue.training.config",
    "load_recipe": "segue.recipes",
    "train": "segue.training.loop",
    "attach": "segue.integrations.attach",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'segue' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
