"""The training loop: one function, read from top to bottom.

    cached latents -> task -> (x_0, Condition) -> decision.timesteps -> step.losses -> optimiser -> EMA
    every step:  the controller is asked, and what it decides is done

The controller is an explicit argument. With a static policy this is the plain baseline.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from segue.data.cache import LatentCache
from segue.data.loader import LatentLoader
from segue.stage.controller import ControllerState, Observation, StageController
from segue.tasks import generation
from segue.training.build import build_model, make_accelerator, model_card, peak_learning_rate
from segue.training.checkpoint import RunState, latest_checkpoint, load_checkpoint, save_checkpoint
from segue.training.config import RunConfig
from segue.training.interrupt import Interrupt
from segue.training.log import RunLog
from segue.training.optim import learning_rate, make_optimizer, update_ema
from segue.training.progress import Meter
from segue.training.step import draw_example, losses
from segue.training.validation import make_validation_set, validate
from segue.types import UserError


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run_dir: its folder.
        examples_seen: over all ranks.
        seconds: of training, over all sessions of the run.
        finished: False where it was interrupted; --resume goes on.
        validation: loss at each fixed time at the end, with the averaged weights.
    """

    run_dir: Path
    examples_seen: int
    seconds: float
    finished: bool
    validation: dict[str, float]


def train(
    config: RunConfig,
    controller: StageController,
    cache: LatentCache,
    run_dir: Path | str,
    *,
    resume: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> TrainResult:
    """Train a model on a latent cache as `config` and `controller` say.

    Args:
        config: sizes, optimiser, length.
        controller: decides the law of training times (and whatever else stages need) before every step.
        cache: latents and text embeddings.
        run_dir: where log and checkpoints go; made if it is not there.
        resume: go on from the newest checkpoint; the run then equals an uninterrupted one bit for bit (CPU).
        device: "auto" (accelerate chooses), or "cpu".
        quiet: no progress.

    Raises:
        UserError: settings that do not fit the data or the machine, a loss that is not finite, or a full disk.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(device)
    rank, world, total = accelerator.process_index, accelerator.num_processes, config.train.total_examples
    seed, batch_size = config.train.seed, config.train.batch_size
    if batch_size % world:
        raise UserError(f"train.batch_size {batch_size} must be a multiple of the {world} processes")

    model = build_model(config, cache, seed)
    averaged = copy.deepcopy(model).eval().requires_grad_(False).to(accelerator.device)
    ema = averaged.state_dict()
    optim = replace(config.optim, learning_rate=peak_learning_rate(config, model.config.width))
    optimizer = make_optimizer(model, optim)
    loader = LatentLoader(cache, "train", batch_size // world, seed, rank, world)
    statistics = cache.statistics
    state, steps, seconds_before = controller.init(total), 0, 0.0
    if resume:
        saved, statistics = load_checkpoint(latest_checkpoint(run_dir), model, ema, optimizer, cache.meta)
        state, steps, seconds_before = ControllerState.from_json(saved.controller), saved.steps, saved.seconds
        loader.load_state_dict(saved.loader)
    seen = state.examples_seen
    model, optimizer = accelerator.prepare(model, optimizer)
    validation_set = make_validation_set(cache, statistics, config, accelerator.device)

    autocast = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=config.train.precision == "bf16")
    log_every, validate_every, checkpoint_every = intervals(config)
    main = accelerator.is_main_process
    started, first_seen, reason = time.monotonic(), seen, ""
    validation: dict[str, float] = {}
    recent: list[Tensor] = []

    def checkpoint() -> None:
        if main:
            seconds = seconds_before + time.monotonic() - started
            now = RunState(seen, steps, seconds, loader.state_dict(), state.to_json())
            card = model_card(config, cache, averaged, seen)
            plain = accelerator.unwrap_model(model)
            save_checkpoint(run_dir, now, plain, ema, optimizer, statistics, card, config.train.keep_last)
        accelerator.wait_for_everyone()

    with (
        RunLog(run_dir, examples_seen=seen, tensorboard=config.train.tensorboard, active=main) as log,
        Meter(config.recipe, total, seen, quiet or not main) as meter,
        Interrupt() as interrupt,
    ):
        while seen < total and not on_any_rank(accelerator, interrupt.requested):
            state, decision = controller.update(state, Observation(seen))
            if decision.reason != reason:
                reason = decision.reason
                meter.say(f"stage at {seen:,} examples: {reason}")
            if crossed(seen, seen - batch_size, validate_every):
                validation = validate(averaged, validation_set)
                log.write("validation", seen, loss_by_t=validation, loss=sum(validation.values()) / len(validation))

            rate = learning_rate(optim, seen / total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = loader.next_batch()
            x_0, condition, mask = generation.prepare(
                batch.latents, batch.mask, batch.tokens, batch.tokens_mask, statistics
            )
            example = draw_example(
                x_0, condition, mask, decision.timesteps,
                seed=seed, position=seen, rank=rank, world=world,
                condition_dropout=config.train.condition_dropout,
            ).to(accelerator.device)  # fmt: skip

            model.train()
            step_loss = torch.zeros((), device=accelerator.device)
            pieces = example.split(config.train.accumulation)
            for index, piece in enumerate(pieces):
                last = index == len(pieces) - 1
                with autocast, sync_only(accelerator, model, last):
                    per_example = losses(model, piece, averaged.predicts, config.train.objective)
                    loss = per_example.sum() / len(example.t)
                    accelerator.backward(loss)
                step_loss += loss.detach()
            norm = accelerator.clip_grad_norm_(model.parameters(), config.optim.grad_clip or math.inf)
            if not bool(torch.isfinite(step_loss + norm)):
                raise UserError(
                    f"{run_dir}: the loss or its gradient is not finite at {seen:,} examples; resume from the last "
                    f"checkpoint with a lower optim.learning_rate (it is {optim.learning_rate:g}) or in fp32"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seen, steps = seen + batch_size, steps + 1
            update_ema(ema, accelerator.unwrap_model(model), config.optim.ema_decay, steps)
            recent.append(accelerator.reduce(step_loss, "mean"))

            checkpoint_due = crossed(seen, seen - batch_size, checkpoint_every) and seen < total
            if crossed(seen, seen - batch_size, log_every) or checkpoint_due or seen >= total:
                mean_loss = float(torch.stack(recent).mean())
                recent.clear()
                log.write(
                    "train", seen, loss=mean_loss, learning_rate=rate, grad_norm=float(norm),
                    timestep_mean=float(decision.timesteps.mean()),
                    examples_per_sec=(seen - first_seen) / (time.monotonic() - started),
                )  # fmt: skip
                meter.update(seen, f"loss {mean_loss:.3f}")
            if checkpoint_due:
                state, _ = controller.update(state, Observation(seen))
                checkpoint()

        state, _ = controller.update(state, Observation(seen))
        finished = seen >= total
        if finished:
            validation = validate(averaged, validation_set)
            log.write("validation", seen, loss_by_t=validation, loss=sum(validation.values()) / len(validation))
        checkpoint()
    return TrainResult(run_dir, seen, seconds_before + time.monotonic() - started, finished, validation)


def on_any_rank(accelerator, flag: bool) -> bool:
    """True everywhere when `flag` is true on one rank: ranks that leave at different steps would wait forever."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum"))


def sync_only(accelerator, model: nn.Module, last: bool):
    """Exchange gradients between ranks only with the last piece of an accumulated batch."""
    return torch.enable_grad() if last else accelerator.no_sync(model)


def intervals(config: RunConfig) -> tuple[int, int, int]:
    """Examples between log lines, validations and checkpoints, with the defaults filled in."""
    train = config.train
    return (
        train.log_every or max(1, train.total_examples // 100),
        train.validate_every or max(1, train.total_examples // 10),
        train.checkpoint_every or max(1, train.total_examples // 4),
    )


def crossed(seen: int, before: int, every: int) -> bool:
    """True when a multiple of `every` lies in (before, seen]."""
    return seen // every > before // every
