"""Checkpoints: one folder each, moved into place whole; the last few are kept.

    checkpoints/examples-00012800/model.safetensors      weights (with LoRA: adapters), EMA, statistics, card
                                  optimizer.safetensors  the optimiser's state, the heads that train beside the model
                                  state.json             counters, positions, controller state; written last

Random draws are keyed by position (process/noise.py), so there are no generator states to keep.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from segue.codecs.latent_space import LatentSpace
from segue.data.cache import LatentCache
from segue.data.loader import LatentLoader
from segue.files import sync, write_text
from segue.models.backbone import Backbone
from segue.models.files import ModelCard, read_tensors, save_model
from segue.models.lora import load_trained, trained_tensors
from segue.stage.stage import Stage
from segue.training import older
from segue.training.build import base_of, model_card, predictor_of
from segue.training.config import RunConfig
from segue.training.guards import FaultState, Guard
from segue.training.losses import Heads
from segue.training.sharding import distribute_like, full_tensors, to_local
from segue.types import UserError, first_line

SCHEMA_VERSION = 1


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read as one; the one before it may be."""


@dataclass(frozen=True)
class RunState:
    """The state of a run, beside its tensors.

    Attributes:
        examples_seen: over all ranks.
        steps: optimiser steps.
        seconds: of training so far, over all sessions of this run.
        loader: position of the loader.
        controller: state of the stage controller.
        faults: record of faulty steps (training/guards.py).
    """

    examples_seen: int
    steps: int
    seconds: float
    loader: dict
    controller: dict
    faults: dict = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Parts:
    """The objects whose state a checkpoint keeps.

    Attributes:
        model: the model, not wrapped.
        ema: the model with averaged weights.
        optimizer: the model's optimiser.
        heads: the networks that train beside the model.
        stage: the method.
        loader: the training data.
    """

    model: Backbone
    ema: Backbone
    optimizer: torch.optim.Optimizer
    heads: Heads
    stage: Stage
    loader: LatentLoader


class Keeper:
    """Saves and restores a run."""

    def __init__(
        self, run_dir: Path, config: RunConfig, cache: LatentCache, accelerator, space: LatentSpace, parts: Parts
    ) -> None:
        """
        Args:
            space: the latent space of the model.
            parts: the objects whose state is kept.
        """
        self._run_dir = run_dir
        self._config = config
        self._cache = cache
        self._accelerator = accelerator
        self._space = space
        self._parts = parts
        # Once: it is the predictor that the task has loaded, whatever becomes of its file.
        self._predictor = predictor_of(config, cache)
        self._restored_at: int | None = None

    def restore(self, saved: Saved | None) -> FaultState:
        """Load a checkpoint into the parts, in place, and release its tensors; None: the run starts, nothing changes.

        Returns:
            The record of faulty steps that goes on.

        Raises:
            UserError: the checkpoint is from other settings or data.
        """
        if saved is None:
            return FaultState()
        tensors = saved.tensors
        kept = saved.kept
        parts = self._parts
        if self._config.lora.rank and saved.card.get("base") != (base := base_of(self._config)):
            raise UserError(
                f"{base['source']}: not the weights that the adapters were trained on; hint: put those back"
            )
        wanted, own = (
            " at ".join(str(found[key]) for key in ("sha256", "mean_share")) if found else "none"
            for found in (saved.card.get("predictor"), self._predictor)
        )
        if wanted != own:
            raise UserError(f"degradation.predictor: {own}, and the run began with {wanted}; hint: put that one back")
        try:
            weights = saved.weights
            # Every rank has read the whole file; of a sharded tensor it keeps its own part.
            held = parts.model.state_dict()
            load_trained(parts.model, {k: distribute_like(v, held[k]) if k in held else v for k, v in weights.items()})
            for name, value in trained_tensors(parts.ema).items():
                to_local(value).copy_(to_local(distribute_like(tensors[f"ema.{name}"], value)))
            moments = {k: v for k, v in kept.items() if not k.startswith("head.")}
            _restore_optimizer(parts.optimizer, older.current_moments(moments, _names(parts)))
            parts.heads.load(kept)
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            line = str(error).splitlines()[0]
            raise UserError(
                f"{saved.folder}: made with other settings ({line}); resume with the settings in config.json"
            ) from error
        tensors.clear()  # a model's worth of memory
        kept.clear()
        # A run may go on for longer than it was planned for: its length is that of its config.json now.
        controller = saved.state.controller | {"total_examples": parts.stage.total_examples}
        parts.stage.load_state_dict({"controller": controller, "steps": saved.state.steps})
        parts.loader.load_state_dict(saved.state.loader)
        self._restored_at = parts.stage.examples_seen
        return FaultState.from_json(saved.state.faults)

    def save(self, guard: Guard, seconds: float) -> None:
        """Save the present state, unless it must not be saved. All ranks must call this: they wait for each other.

        Args:
            guard: says whether the state may be saved, and has the record of faulty steps.
            seconds: of training so far.

        Raises:
            UserError: the disk is full or the folder cannot be written; older checkpoints are untouched.
        """
        parts = self._parts
        seen = parts.stage.examples_seen
        # What was just restored is on disk already; and after a faulty step there is no good state to save.
        if guard.healthy and seen != self._restored_at:
            controller = parts.stage.state_dict()["controller"]
            loader = parts.loader.state_dict()
            faults = asdict(guard.state)
            state = RunState(seen, parts.stage.steps, seconds, loader, controller, faults)
            card = model_card(self._config, self._cache, parts.ema, seen, self._predictor)
            write_checkpoint(
                self._run_dir, state, parts, self._space, card,
                keep_last=self._config.train.keep_last, writes=self._accelerator.is_main_process,
            )  # fmt: skip
        self._accelerator.wait_for_everyone()


def write_checkpoint(
    run_dir: Path, state: RunState, parts: Parts, space: LatentSpace, card: ModelCard, *, keep_last: int, writes: bool
) -> None:
    """Write a checkpoint folder atomically, then delete all but the last `keep_last`.

    All ranks must call this: sharded tensors are gathered, and one rank writes the files. Later checkpoints are deleted
    too: the run went on from an earlier one because they could not be read.

    Args:
        writes: whether this rank writes the files.

    Raises:
        UserError: the disk is full or the folder cannot be written; older checkpoints are untouched.
    """
    folder = run_dir / "checkpoints"
    target = folder / f"examples-{state.examples_seen:010d}"
    temporary = folder / f".{target.name}.{os.getpid()}"
    # Gathering is work of all ranks; one of them writes.
    weights = full_tensors(trained_tensors(parts.model), writes)
    averaged = full_tensors(trained_tensors(parts.ema), writes)
    moments = full_tensors(_optimizer_tensors(parts.optimizer), writes)
    if not writes:
        return

    # A folder beside the target, complete and on disk before it gets its name.
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_model(temporary / "model.safetensors", weights, averaged, space.mean, space.std, card)
        save_file(moments | parts.heads.tensors(), temporary / "optimizer.safetensors")
        for file in temporary.iterdir():
            sync(file)
        # Last: a folder without state.json does not count as a checkpoint.
        write_text(temporary / "state.json", json.dumps(asdict(state), indent=1))
        sync(temporary)
        if target.exists():  # reached a second time, after the first checkpoint of this state could not be read
            shutil.rmtree(target)
        os.replace(temporary, target)
        # The new name is on disk only once its folder is.
        sync(folder)
    except Exception as error:  # safetensors reports a full disk as its own error, not as OSError
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{target}: cannot write the checkpoint ({error}); free some disk, then resume") from error

    # What is no longer wanted.
    ahead = [p for p in folder.glob("examples-*") if p.name > target.name]
    torn = folder.glob(".examples-*")  # a kill left them half-written
    kept = [p for p in list_checkpoints(run_dir) if p not in ahead]
    for old in (*ahead, *torn, *kept[:-keep_last]):
        shutil.rmtree(old, ignore_errors=True)


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


@dataclass(frozen=True)
class Saved:
    """A checkpoint, read into memory.

    Attributes:
        folder: of the checkpoint.
        state: counters and states.
        card: of the model file.
        tensors: tensors of the model file.
        kept: tensors of the optimiser and the heads.
    """

    folder: Path
    state: RunState
    card: dict
    tensors: dict[str, Tensor]
    kept: dict[str, Tensor]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The trained weights of the model, by its own names."""
        return {k.removeprefix("model."): v for k, v in self.tensors.items() if k.startswith("model.")}

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [C, 1] that the latents were standardised by."""
        return self.tensors["latents.mean"], self.tensors["latents.std"]


def read_newest(run_dir: Path, accelerator, cache_meta: dict) -> Saved | None:
    """The newest checkpoint that can be read; None where there is none yet.

    Every damaged checkpoint that is passed over is named on standard error.

    Args:
        accelerator: of the run; its first rank prints.
        cache_meta: metadata of the cache that the run goes on with; it must have been made as the run's own was.

    Raises:
        DamagedCheckpoint: none of them can be read.
        UserError: the newest readable one is of another version, or from another cache.
    """
    if not list_checkpoints(run_dir):
        return None
    # The oldest is read last and outside the loop, so that its damage is raised and not passed over.
    oldest, *newer = list_checkpoints(run_dir)
    for folder in reversed(newer):
        try:
            return read_checkpoint(folder, cache_meta)
        except DamagedCheckpoint as error:
            accelerator.print(f"{error}; going on from the checkpoint before it", file=sys.stderr)
    return read_checkpoint(oldest, cache_meta)


def read_checkpoint(folder: Path, cache_meta: dict) -> Saved:
    """Read one checkpoint into memory.

    Raises:
        DamagedCheckpoint: a file of it is missing, truncated, or not what it should be.
        UserError: of another version, or from another cache.
    """
    state, card, tensors, kept = _read(folder)
    # Crops of timed rows have a length of their own.
    compared = ("codec", "text") if cache_meta.get("conditions") else ("codec", "text", "seconds")
    other = [part for part in compared if card[part] != cache_meta[part]]
    if other:
        raise UserError(
            f"{folder}: trained on a cache of another {' and '.join(other)}; resume with the run's own cache"
        )
    return Saved(folder, state, card, tensors, kept)


def _read(folder: Path) -> tuple[RunState, dict, dict[str, Tensor], dict[str, Tensor]]:
    """State, card, tensors of the model file, tensors of the optimiser's file."""
    try:
        data = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        version = data["schema_version"]
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{folder}: checkpoint schema {version}, this segue reads {SCHEMA_VERSION}; resume with the segue "
                "that wrote it"
            )
        tensors, metadata = _tensors(folder / "model.safetensors")
        card = json.loads(metadata["segue"])
        return RunState(**data), card, tensors, _tensors(folder / "optimizer.safetensors")[0]
    except (ValueError, TypeError, KeyError, OSError) as error:  # ValueError: no JSON, no UTF-8
        raise DamagedCheckpoint(f"{folder}: damaged ({type(error).__name__}: {first_line(error)})") from error


def _tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file into memory: if a mapped file is truncated meanwhile, the process is killed (SIGBUS)."""
    try:
        tensors, metadata = read_tensors(path)
        return {name: value.clone() for name, value in tensors.items()}, metadata
    except UserError as error:
        raise DamagedCheckpoint(f"{path}: damaged ({first_line(error.__cause__ or error)})") from error


# The state that a schedule-free optimiser keeps in its parameter groups; their other numbers come from the config.
_OF_GROUPS = ("k", "weight_sum", "lr_max")


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as index.name -> tensor, and group.index.name."""
    data = optimizer.state_dict()
    kept = {f"{i}.{k}": v for i, s in data["state"].items() for k, v in _flat(s)}
    for i, group in enumerate(data["param_groups"]):
        kept |= {f"group.{i}.{k}": torch.tensor(group[k], dtype=torch.float64) for k in _OF_GROUPS if k in group}
    return kept


def _flat(state: dict) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one parameter's state. bitsandbytes nests some, shares some, and counts steps without a tensor."""
    for name, value in state.items():
        if isinstance(value, dict):
            yield from ((inner, tensor.clone()) for inner, tensor in value.items())
        else:
            yield name, torch.as_tensor(value)


def _names(parts: Parts) -> list[str]:
    """Names of the optimiser's parameters, in its order."""
    names = {id(parameter): name for name, parameter in parts.model.named_parameters()}
    return [names[id(p)] for group in parts.optimizer.param_groups for p in group["params"]]


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    data = optimizer.state_dict()
    data["state"] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        *of_group, index, name = key.split(".")
        if of_group:
            # All of these were saved as float64; each goes back to the type that its group holds.
            group = data["param_groups"][int(index)]
            group[name] = type(group[name])(value.item())
        else:
            # A whole number is a count of steps that the optimiser holds as Python's own.
            whole = value.ndim == 0 and value.dtype == torch.int64
            held = value.item() if whole else distribute_like(value, parameters[int(index)])
            data["state"].setdefault(int(index), {})[name] = held
    # A weight that has had no gradient yet has no state: before the first step none has, and unused layers never do.
    if any(index >= len(parameters) for index in data["state"]):
        raise RuntimeError("the optimiser has another number of parameters")
    optimizer.load_state_dict(data)
