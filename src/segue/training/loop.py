"""The training loop: one function, read from top to bottom.

    probe -> reduce over ranks -> controller -> decision: law of times, guidance weight, block strength
    cached latents -> task -> (x_0, Condition) -> decision.timesteps -> model -> flow loss + lambda alignment
    -> optimiser -> block step -> EMA

Every step the controller is asked, and what it decides is done. It is an explicit argument: with a static policy this
is the plain baseline, bit for bit.
"""

from __future__ import annotations

import copy
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from segue.data.cache import LatentCache
from segue.data.loader import LatentLoader
from segue.files import make_folder
from segue.stage.controller import ControllerState, StageController
from segue.training.blocks import block_step
from segue.training.build import build_model, make_accelerator, make_task, model_card, peak_learning_rate
from segue.training.checkpoint import RunState, list_checkpoints, load_newest, save_checkpoint
from segue.training.config import RunConfig
from segue.training.ears import make_ears
from segue.training.faults import FaultState, Guard
from segue.training.gains import measured_gains
from segue.training.instruments import Instruments
from segue.training.interrupt import Interrupt
from segue.training.log import RunLog
from segue.training.memory import peak_bytes
from segue.training.moments import crossed, intervals
from segue.training.optim import clip_gradients, learning_rate, make_optimizer, update_average
from segue.training.progress import Meter, Share
from segue.training.ranks import lost_ranks, on_any_rank, sync_only
from segue.training.sharding import check_sharding, share_out, wrap
from segue.training.step import draw_example, run_model
from segue.training.terms import make_terms, means
from segue.training.validation import make_validation_set, record_validation
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
    trust_remote_code: bool = False,
    grace_sec: float = 30.0,
) -> TrainResult:
    """Train a model on a latent cache as `config` and `controller` say.

    Args:
        config: sizes, optimiser, length.
        controller: decides the law of training times (and whatever else stages need) before every step.
        cache: latents and text embeddings.
        run_dir: where log and checkpoints go; made if it is not there.
        resume: go on from the newest checkpoint, or begin where there is none yet; the run then equals an uninterrupted
            one bit for bit (CPU).
        device: "auto" (accelerate chooses), or "cpu".
        quiet: no progress.
        trust_remote_code: run the code that comes with the teacher, where the probe needs it.
        grace_sec: after SIGTERM the run saves and ends within this time, or gives the step at hand up.

    Raises:
        UserError: settings that do not fit the data or the machine, too many bad steps in a row, a dead probe, no
            checkpoint that can be read, a full disk, or a rank that is gone.
    """
    run_dir = Path(run_dir)
    make_folder(run_dir)
    accelerator = make_accelerator(device)
    rank, world, total = accelerator.process_index, accelerator.num_processes, config.train.total_examples
    seed, batch_size = config.train.seed, config.train.batch_size
    if batch_size % world:
        raise UserError(f"train.batch_size {batch_size} must be a multiple of the {world} processes")
    check_sharding(config, accelerator)

    model = build_model(config, cache, seed)
    task = make_task(config, cache)
    statistics = task.statistics(*cache.statistics)
    resume = resume and bool(list_checkpoints(run_dir))
    if not resume:
        task.prime(model, cache, statistics)
    averaged = copy.deepcopy(model).eval().requires_grad_(False)
    share_out(config, accelerator, model, averaged)
    ema = averaged.state_dict()
    optim = replace(config.optim, learning_rate=peak_learning_rate(config, model.config.width))
    optimizer = make_optimizer(model, optim)
    loader = LatentLoader(cache, "train", batch_size // world, seed, rank, world)
    state, steps, seconds_before, faults = controller.init(total), 0, 0.0, FaultState()
    ears = make_ears(config.policy, cache, statistics, accelerator.device, trust_remote_code)
    terms = make_terms(config, cache, model.config, optim, accelerator, ears)
    main, say = accelerator.is_main_process, partial(accelerator.print, file=sys.stderr)
    if resume:
        saved, statistics = load_newest(run_dir, say, model, ema, optimizer, terms, cache.meta)
        state, faults = ControllerState.from_json(saved.controller), FaultState.from_json(saved.faults)
        steps, seconds_before = saved.steps, saved.seconds
        loader.load_state_dict(saved.loader)
    seen, plain = state.examples_seen, model
    model, optimizer = wrap(accelerator, model, optimizer)
    validation_set = make_validation_set(task, cache, statistics, config, accelerator.device)
    autocast = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=config.train.precision == "bf16")
    log_every, validate_every, checkpoint_every = intervals(config)
    instruments = Instruments(
        config, task, cache, statistics, plain, averaged, terms.guidance, validation_set, accelerator, autocast, ears
    )  # fmt: skip
    state = instruments.check(state)
    guard = Guard(config.train, plain, loader, accelerator, faults)
    started, first_seen, said = time.monotonic(), seen, ""
    validation: dict[str, float] = {}
    recent: list[Tensor] = []
    share = Share()

    def checkpoint() -> None:
        # What was just restored is on disk already, and what came of a bad step is no state to go on from.
        if guard.calm and not (resume and seen == first_seen):
            seconds = seconds_before + time.monotonic() - started
            now = RunState(seen, steps, seconds, loader.state_dict(), state.to_json(), asdict(guard.state))
            card = model_card(config, cache, averaged, seen)
            save_checkpoint(
                run_dir, now, plain, ema, optimizer, terms, statistics, card, config.train.keep_last, writes=main
            )
        accelerator.wait_for_everyone()

    with (
        RunLog(run_dir, examples_seen=seen, tensorboard=config.train.tensorboard, active=main) as log,
        Meter(config.recipe, total, seen, quiet or not main) as meter,
        Interrupt(grace_sec) as interrupt,
        lost_ranks(run_dir, world),
    ):
        if cost := instruments.describe(total):
            meter.say(cost)
        while seen < total and not on_any_rank(accelerator, interrupt.requested):
            due = controller.due(state, seen)
            state, decision = controller.update(state, instruments.observe(due, state, seen))
            instruments.record(log, due, decision)
            guard.hear(seen, instruments.last.discrepancy)
            validation_due = crossed(seen, seen - batch_size, validate_every)
            if decision.headline != said or (validation_due and decision.next_probe is not None):
                said = decision.headline
                meter.say(f"{seen:,} examples: {decision.reason}")
            if validation_due:
                validation = record_validation(log, seen, averaged, validation_set)

            rate = learning_rate(optim, seen / total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            share.start()
            guided = terms.at_step(decision, steps)
            loader.with_teacher = terms.follows(guided)
            batch = loader.next_batch()
            first = seen + rank * len(batch.indices)
            x_0, condition, mask = task.prepare(batch, statistics, range(first, first + len(batch.indices)))
            example = draw_example(
                x_0, condition, mask, decision.timesteps,
                seed=seed, position=seen, rank=rank, world=world,
                condition_dropout=config.train.condition_dropout, teacher=batch.teacher,
            ).to(accelerator.device)  # fmt: skip
            share.loaded()

            model.train()
            sums = torch.zeros(2, device=accelerator.device)
            pieces, flow = example.split(config.train.accumulation), []
            for index, piece in enumerate(pieces):
                last = index == len(pieces) - 1
                with autocast, sync_only(accelerator, model, last):
                    outcome = run_model(model, piece, plain.predicts, config.train.objective, terms.tap(guided))
                    per_example, to_log = terms.loss(outcome, piece, guided)
                    accelerator.backward(per_example.sum() / len(example.t))
                sums += to_log / len(example.t)
                flow.append(outcome.loss.detach())
            norm = clip_gradients(plain, config.optim.grad_clip)
            sums, wrong = guard.judge(seen, sums, norm, example.teacher, flow)
            if wrong is None:
                with (
                    block_step(config.policy.structure, decision, plain, steps),
                    measured_gains(due.gains, plain, example, accelerator) as gains,
                ):
                    optimizer.step()
                state = controller.learn(state, gains, seen)
                terms.step(rate, guided)
                steps += 1
                update_average(ema, plain, optimizer, optim, steps)
                recent.append(sums)
            else:
                guard.skip(log, meter, seen, wrong, optim.learning_rate)
            optimizer.zero_grad(set_to_none=True)
            terms.zero_grad()
            seen += batch_size
            share.stepped()

            checkpoint_due = crossed(seen, seen - batch_size, checkpoint_every) and seen < total
            if recent and (crossed(seen, seen - batch_size, log_every) or checkpoint_due or seen >= total):
                mean_loss, alignment = means(recent)
                recent.clear()
                log.write(
                    "train", seen, loss=mean_loss, alignment=alignment,
                    learning_rate=rate, grad_norm=float(norm), timestep_mean=float(decision.timesteps.mean()),
                    examples_per_sec=(seen - first_seen) / (time.monotonic() - started), loader_share=share.take(),
                )  # fmt: skip
                meter.update(seen, f"loss {mean_loss:.3f}")
            if checkpoint_due:
                state = replace(state, examples_seen=seen)
                checkpoint()

        state, finished = replace(state, examples_seen=seen), seen >= total
        if finished:
            due = controller.due(state, seen)
            state, decision = controller.update(state, instruments.observe(due, state, seen))
            instruments.record(log, due, decision)
            validation = record_validation(log, seen, averaged, validation_set)
            log.write("memory", seen, peak_bytes=peak_bytes(accelerator.device))
        checkpoint()
    return TrainResult(run_dir, seen, seconds_before + time.monotonic() - started, finished, validation)
