"""What the trainings of codecs and teachers share: a loop bounded by steps or minutes, and a state to resume from.

A run is a folder with config.json, log.jsonl and state.safetensors.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from segue.files import replacing, write_text
from segue.training.log import RunLog
from segue.types import UserError

STATE = "state.safetensors"


def write_state(folder: Path, tensors: dict[str, Tensor], meta: dict) -> None:
    """One safetensors file, its JSON part in the metadata, moved into place: a kill leaves the old one or the new."""
    with replacing(folder / STATE) as temporary:
        save_file({k: v.detach().cpu().clone() for k, v in tensors.items()}, temporary, {"state": json.dumps(meta)})


def read_state(folder: Path, config: dict) -> tuple[dict, dict[str, Tensor]]:
    """What `write_state` wrote, where its config equals the one given but for its budget.

    Raises:
        UserError: no state, not one of this sort, or another config.
    """
    path = folder / STATE
    if not path.is_file():
        raise UserError(f"{path}: no state to resume from; mend: leave out --resume")
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {})["state"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a readable training state ({error}); mend: another --out") from error
    free = {"minutes", "steps", "save_every_sec", "validate_every_sec"}
    now, then = json.loads(json.dumps(config)), meta["config"]
    changed = [k for k in now if k not in free and now[k] != then.get(k)]
    if changed:
        raise UserError(
            f"{path}: was trained with another {', '.join(changed)}; mend: give the same options, or a new --out"
        )
    return meta, tensors


def adam_tensors(optimizer: torch.optim.Optimizer, module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """An Adam's moments and step counts, named after the module's parameters."""
    return {
        f"{prefix}{name}.{k}": v
        for name, parameter in module.named_parameters()
        for k, v in optimizer.state.get(parameter, {}).items()
    }


def restore_adam(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of `adam_tensors`, its prefix taken off."""
    for name, parameter in module.named_parameters():
        if moments := part(tensors, f"{name}."):
            optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in moments.items()}


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose name begins with `prefix`, by the rest of it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def progress_of(state, config) -> float:
    """Share of the budget that is spent."""
    return state.step / config.steps if config.steps else state.seconds / (60 * config.minutes)


def learning_rate_at(step: int, progress: float, config) -> float:
    """Linear warm-up, then a cosine from the peak to a hundredth of it over the whole budget."""
    cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * cosine * min(1.0, (step + 1) / config.warmup_steps)


def refuse_used(out: Path, resume: bool) -> None:
    """Raises UserError where `out` holds a run that this one would write over."""
    if (out / STATE).exists() and not resume:
        raise UserError(f"{out}: holds a training run already; mend: --resume to go on with it, or another --out")


def run_loop(
    state,
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
        raise UserError(f"stopped at step {state.step}; mend: the same command with --resume goes on") from None
    checkpoint()
    log.write("validation", state.step * config.batch_size, **measure())


def _steps(state, config, log: RunLog, title: str, step, measure, checkpoint) -> None:
    last_save = last_validation = time.monotonic()
    sums: dict[str, float] = {}
    logged_step, logged_sec = state.step, state.seconds
    with training_progress(title) as report:
        while progress_of(state, config) < 1:
            began = time.monotonic()
            for name, value in step().items():
                sums[name] = sums.get(name, 0.0) + value
            state.seconds += time.monotonic() - began
            seen, count = state.step * config.batch_size, state.step - logged_step
            if count >= 50:
                means = {k: round(v / count, 5) for k, v in sums.items()}
                rate = count * config.batch_size * config.crop_sec / max(state.seconds - logged_sec, 1e-9)
                spent = {"step": state.step, "seconds": round(state.seconds, 1), "audio_sec_per_sec": round(rate, 1)}
                log.write("train", seen, **spent, **means)
                text = f"step {state.step}, loss {means['loss']:.3f}, {rate:.0f}x real time"
                report(progress_of(state, config), text)
                sums, logged_step, logged_sec = {}, state.step, state.seconds
            if time.monotonic() - last_save > config.save_every_sec:
                checkpoint()
                last_save = time.monotonic()
            if time.monotonic() - last_validation > config.validate_every_sec:
                log.write("validation", seen, seconds=round(state.seconds, 1), **measure())
                last_validation = time.monotonic()


@contextmanager
def training_progress(title: str) -> Iterator[Callable[[float, str], None]]:
    """A bar with time left on a terminal, a plain line a minute elsewhere; yields a function of (share, text)."""
    console = Console(stderr=True)
    if not console.is_terminal:
        last = [0.0]

        def plain(share: float, text: str) -> None:
            if time.monotonic() - last[0] > 60:
                last[0] = time.monotonic()
                print(f"{title}: {100 * share:.1f} %, {text}", file=sys.stderr, flush=True)

        yield plain
        return
    columns = (TextColumn(title), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=1.0, text="")
        yield lambda share, text: bar.update(task, completed=share, text=text)
