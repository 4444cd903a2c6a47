"""What the trainings of codecs and teachers share: a state that is saved and resumed, and a loop.

A run is a folder with config.json, log.jsonl and state.safetensors.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from segue.files import replacing, write_text
from segue.progress import Meter
from segue.training.log import RunLog
from segue.types import UserError

STATE = "state.safetensors"
# What may change where a run goes on: how long it is, and how often it saves and measures.
_BUDGET = {"minutes", "steps", "save_every_sec", "validate_every_sec"}
_LOG_EVERY = 50  # steps


@dataclass(kw_only=True)
class SmallRun:
    """All that a resumed run needs, saved as one file. Subclasses add their networks and optimisers as fields.

    Attributes:
        modules: names of the fields that are networks; their tensors are saved under these names.
        optimizers: (prefix of an optimiser's tensors, its field, the field of the network that it trains) of each.
        numbers: names of the fields that are plain numbers.
        renamed: how names of tensors began in older states -> how they begin now.
        generator: of every draw. step: optimiser steps taken. seconds: spent in them, over all resumes.
    """

    modules: ClassVar[tuple[str, ...]] = ()
    optimizers: ClassVar[tuple[tuple[str, str, str], ...]] = ()
    numbers: ClassVar[tuple[str, ...]] = ("step", "seconds")
    renamed: ClassVar[dict[str, str]] = {}

    generator: torch.Generator
    step: int = 0
    seconds: float = 0.0

    def save(self, folder: Path, config, **more) -> None:
        """One safetensors file, its JSON part in the metadata: a kill leaves the old one or the new one.

        Args:
            config: a dataclass, which a resumed run is compared with. more: kept beside it.
        """
        tensors = {f"{name}.{k}": v for name in self.modules for k, v in getattr(self, name).state_dict().items()}
        for prefix, optimizer, module in self.optimizers:
            tensors |= _adam_tensors(getattr(self, optimizer), getattr(self, module), prefix)
        tensors["generator"] = self.generator.get_state()
        state = {**{name: getattr(self, name) for name in self.numbers}, "config": asdict(config), **more}
        with replacing(folder / STATE) as temporary:
            kept = {k: v.detach().cpu().clone() for k, v in tensors.items()}
            save_file(kept, temporary, {"state": json.dumps(state)})

    def load(self, folder: Path, config) -> None:
        """Go on from what `save` wrote; the state is a fresh one of the same configuration.

        Raises:
            UserError: there is none, or it was made with other options than its budget.
        """
        state, tensors = _read(folder, asdict(config))
        for old, new in self.renamed.items():
            tensors = {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in tensors.items()}
        for name in self.modules:
            getattr(self, name).load_state_dict(_part(tensors, f"{name}."))
        for prefix, optimizer, module in self.optimizers:
            _restore_adam(getattr(self, optimizer), getattr(self, module), _part(tensors, prefix))
        self.generator.set_state(tensors["generator"])
        for name in self.numbers:
            setattr(self, name, state[name])

    def progress(self, config) -> float:
        """Share of the budget that is spent."""
        return self.step / config.steps if config.steps else self.seconds / (60 * config.minutes)

    def set_learning_rate(self, optimizer: torch.optim.Optimizer, config) -> None:
        """Linear warm-up, then a cosine down (`learning_rate_at`), times the `rate_scale` of a group that has one."""
        for group in optimizer.param_groups:
            rate = learning_rate_at(self.step, self.progress(config), config)
            group["lr"] = rate * group.get("rate_scale", 1.0)


def read_meta(folder: Path) -> dict:
    """The JSON part of a saved state.

    Raises:
        UserError: there is none.
    """
    return _read(folder, {})[0]


def learning_rate_at(step: int, progress: float, config) -> float:
    """Linear warm-up, then a cosine from the peak to a hundredth of it over the whole budget."""
    cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * cosine * min(1.0, (step + 1) / config.warmup_steps)


def descend(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], most_norm: float) -> Tensor:
    """Clip gradients to `most_norm` and take a step, unless they are not finite; returns their norm."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, most_norm)
    if torch.isfinite(norm):
        optimizer.step()
    return norm


@torch.no_grad()
def average(averaged: nn.Module, current: nn.Module, decay: float) -> None:
    """Move averaged weights towards the current ones by 1 - decay."""
    torch._foreach_lerp_(list(averaged.parameters()), list(current.parameters()), 1 - decay)


def early_decay(decay: float, step: int) -> float:
    """A decay that is low at first, so that an average forgets where it began."""
    return min(decay, (1 + step) / (10 + step))


def add_up(values: Iterable[Tensor]) -> Tensor:
    """The sum of some tensors; of none there is none."""
    return reduce(add, values)


def refuse_used(out: Path, resume: bool) -> None:
    """Raises UserError where `out` holds a run that this one would write over."""
    if (out / STATE).exists() and not resume:
        raise UserError(f"{out}: holds a training run already; hint: --resume to go on with it, or another --out")


def run_loop(
    state: SmallRun,
    config,
    out: Path,
    *,
    title: str,
    facts: dict,
    step: Callable[[], dict[str, float]],
    measure: Callable[[], dict[str, float]],
    checkpoint: Callable[[], None],
) -> None:
    """Step until the budget is spent, with log, progress, checkpoints and measures; checkpoint and measure at the end.

    Args:
        state: its `step` is counted up by `step()`, its `seconds` here.
        config: batch_size, crop_sec, steps, minutes, save_every_sec, validate_every_sec.
        facts: for the log's first line.

    Raises:
        UserError: interrupted; the state is saved first.
    """
    write_text(out / "config.json", json.dumps(asdict(config), indent=2) + "\n")
    log = RunLog(out, examples_seen=state.step * config.batch_size)
    log.write("start", state.step * config.batch_size, **facts)
    try:
        _steps(state, config, log, title, step, measure, checkpoint)
    except KeyboardInterrupt:
        checkpoint()
        raise UserError(f"stopped at step {state.step}; hint: the same command with --resume goes on") from None
    checkpoint()
    log.write("validation", state.step * config.batch_size, **measure())


def _steps(state: SmallRun, config, log: RunLog, title: str, step, measure, checkpoint) -> None:
    last_save = last_validation = time.monotonic()
    sums: dict[str, float] = {}
    logged_step = state.step
    logged_sec = state.seconds
    # In percent of the budget, which is of steps or of minutes.
    with Meter(title, 100, 100 * state.progress(config), unit="%") as meter:
        while state.progress(config) < 1:
            began = time.monotonic()
            for name, value in step().items():
                sums[name] = sums.get(name, 0.0) + value
            state.seconds += time.monotonic() - began

            # What is logged: means over the steps since the last line.
            seen = state.step * config.batch_size
            count = state.step - logged_step
            if count >= _LOG_EVERY:
                means = {k: round(v / count, 5) for k, v in sums.items()}
                rate = count * config.batch_size * config.crop_sec / max(state.seconds - logged_sec, 1e-9)
                spent = {"step": state.step, "seconds": round(state.seconds, 1), "audio_sec_per_sec": round(rate, 1)}
                log.write("train", seen, **spent, **means)
                words = f"step {state.step}, loss {means['loss']:.3f}, {rate:.0f}x real time"
                meter.update(100 * state.progress(config), words)
                sums = {}
                logged_step = state.step
                logged_sec = state.seconds

            # What is left behind, so that a kill costs little.
            if time.monotonic() - last_save > config.save_every_sec:
                checkpoint()
                last_save = time.monotonic()
            if time.monotonic() - last_validation > config.validate_every_sec:
                log.write("validation", seen, seconds=round(state.seconds, 1), **measure())
                last_validation = time.monotonic()


def _read(folder: Path, config: dict) -> tuple[dict, dict[str, Tensor]]:
    """A saved state, where its config equals the one given but for its budget."""
    path = folder / STATE
    if not path.is_file():
        raise UserError(f"{path}: no state to resume from; hint: leave out --resume")
    try:
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a readable training state ({error}); hint: another --out") from error
    # The saved config has been through JSON, which knows no tuples.
    now = json.loads(json.dumps(config))
    then = state["config"]
    # A setting that came later changes nothing where it is off.
    changed = [k for k in now if k not in _BUDGET and (now[k] != then[k] if k in then else now[k])]
    if changed:
        raise UserError(
            f"{path}: was trained with another {', '.join(changed)}; hint: give the same options, or a new --out"
        )
    return state, tensors


def _adam_tensors(optimizer: torch.optim.Optimizer, module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """An Adam's moments and step counts, named after the module's parameters."""
    return {
        f"{prefix}{name}.{k}": v
        for name, parameter in module.named_parameters()
        for k, v in optimizer.state.get(parameter, {}).items()
    }


def _restore_adam(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of `_adam_tensors`, its prefix taken off."""
    for name, parameter in module.named_parameters():
        if moments := _part(tensors, f"{name}."):
            optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in moments.items()}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose name begins with `prefix`, by the rest of it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
