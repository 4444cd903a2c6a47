"""Checkpoints: a folder a moment, moved into place whole, the last few kept.

    checkpoints/examples-00012800/model.safetensors      weights, EMA, statistics, card: all that inference needs
                                  optimizer.safetensors  Adam's moments, and the heads that train beside the model
                                  state.json             counters, loader position, controller state; written last

Random draws are keyed by position (process/noise.py), so there are no generator states to keep.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from segue.files import sync, write_text
from segue.models.files import ModelCard, read_tensors, save_model
from segue.training.terms import Terms
from segue.types import UserError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RunState:
    """Where a run stands, beside its tensors.

    Attributes:
        examples_seen: over all ranks.
        steps: optimiser steps.
        seconds: of training so far, over all sessions of this run.
        loader: position of the loader.
        controller: state of the stage controller.
    """

    examples_seen: int
    steps: int
    seconds: float
    loader: dict
    controller: dict
    schema_version: int = SCHEMA_VERSION


def save_checkpoint(
    run_dir: Path,
    state: RunState,
    model: nn.Module,
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    terms: Terms,
    statistics: tuple[Tensor, Tensor],
    card: ModelCard,
    keep_last: int,
) -> Path:
    """Write a checkpoint folder atomically, then delete all but the last `keep_last`.

    Raises:
        UserError: the disk is full or the folder cannot be written; older checkpoints are untouched.
    """
    folder = run_dir / "checkpoints"
    target = folder / f"examples-{state.examples_seen:010d}"
    temporary = folder / f".{target.name}.{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_model(temporary / "model.safetensors", model.state_dict(), ema, *statistics, card)
        save_file(_optimizer_tensors(optimizer) | terms.tensors(), temporary / "optimizer.safetensors")
        for file in temporary.iterdir():
            sync(file)
        write_text(temporary / "state.json", json.dumps(asdict(state), indent=1))
        sync(temporary)
        if target.exists():  # the same moment again: a run resumed, saved and stopped without a step between
            shutil.rmtree(target)
        os.replace(temporary, target)
        sync(folder)
    except Exception as error:  # safetensors reports a full disk as its own error, not as OSError
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{target}: cannot write the checkpoint ({error}); free some disk, then resume") from error
    for old in list_checkpoints(run_dir)[:-keep_last]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoint folders, oldest first."""
    return sorted(p.parent for p in (run_dir / "checkpoints").glob("examples-*/state.json"))


def latest_checkpoint(run_dir: Path) -> Path:
    """The newest complete checkpoint.

    Raises:
        UserError: there is none.
    """
    found = list_checkpoints(run_dir)
    if not found:
        raise UserError(f"{run_dir}: no checkpoint yet; start the run without --resume")
    return found[-1]


def load_checkpoint(
    folder: Path,
    model: nn.Module,
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    terms: Terms,
    cache_meta: dict,
) -> tuple[RunState, tuple[Tensor, Tensor]]:
    """Restore weights, EMA and optimiser in place.

    Args:
        folder: the checkpoint.
        model, ema, optimizer, terms: what is filled.
        cache_meta: meta of the cache that the run goes on with; it must have been made as the run's own was.

    Returns:
        the run's state and the latent statistics (mean, std) it was trained with.

    Raises:
        UserError: truncated, of another version, or from other settings.
    """
    try:
        state = RunState(**json.loads((folder / "state.json").read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(
            f"{folder}/state.json is damaged ({error}); delete that folder and resume from the one before"
        ) from error
    if state.schema_version != SCHEMA_VERSION:
        raise UserError(f"{folder}: checkpoint schema {state.schema_version}, this segue reads {SCHEMA_VERSION}")
    tensors, metadata = read_tensors(folder / "model.safetensors")
    card = json.loads(metadata["segue"])
    other = [part for part in ("codec", "text", "seconds") if card[part] != cache_meta[part]]
    if other:
        raise UserError(
            f"{folder}: trained on a cache of another {' and '.join(other)}; resume with the run's own cache"
        )
    try:
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        for name, value in ema.items():
            value.copy_(tensors[f"ema.{name}"])
        kept = read_tensors(folder / "optimizer.safetensors")[0]
        _restore_optimizer(optimizer, {k: v for k, v in kept.items() if not k.startswith("head.")})
        terms.load(kept)
    except (KeyError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise UserError(
            f"{folder}: made with other settings ({line}); resume with the settings in config.json"
        ) from error
    return state, (tensors["latents.mean"], tensors["latents.std"])


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's state as index.name -> tensor; the groups' numbers come from the config."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": v.detach().cpu().contiguous() for i, s in state.items() for k, v in s.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    data = optimizer.state_dict()
    data["state"] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        data["state"].setdefault(int(index), {})[name] = value
    if data["state"] and len(data["state"]) != sum(len(g["params"]) for g in data["param_groups"]):
        raise RuntimeError("the optimiser has another number of parameters")
    optimizer.load_state_dict(data)
