"""The training loop: one function, read from top to bottom.

    held-out clips -> discrepancy -> controller -> decision: timesteps, alignment weight, block strength
    cached latents -> task -> (x_0, Condition) -> model at stage.timesteps -> flow loss + stage.alignment -> optimiser

The method enters by one object, `segue.Stage`, called as docs/foreign-loops.md shows it for anybody's loop. With a
static policy this is plain flow matching, bit for bit.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from segue.data.cache import LatentCache
from segue.data.loader import LatentLoader
from segue.files import make_folder
from segue.stage.stage import Stage
from segue.training import build, checkpoint
from segue.training.config import RunConfig, crossed, intervals
from segue.training.features import alignment_targets, make_extract
from segue.training.guards import FaultState, Guard
from segue.training.journal import Journal, TrainResult
from segue.training.losses import StepLosses
from segue.training.measurements import Measurements, measured_drops
from segue.training.memory import peak_bytes
from segue.training.optim import clip_gradients, learning_rate, make_optimizer, set_rate, update_average
from segue.training.ranks import check_ranks, on_any_rank, sync_only
from segue.training.sharding import wrap
from segue.training.step import draw_example


def train(
    config: RunConfig,
    cache: LatentCache,
    run_dir: Path | str,
    *,
    resume: bool = False,
    device: str = "auto",
    quiet: bool = False,
    trust_remote_code: bool = False,
    grace_sec: float = 30.0,
) -> TrainResult:
    """Train a model on a latent cache as `config` says.

    Args:
        config: model, optimiser, length, and the policy that drives the run.
        cache: latents, text embeddings and teacher features.
        run_dir: where log and checkpoints go; made if it is not there.
        resume: go on from the newest checkpoint, or begin where there is none yet; the run then equals an uninterrupted
            one bit for bit (CPU).
        device: "auto" (accelerate chooses), or "cpu".
        quiet: no progress.
        trust_remote_code: run the code that comes with the teacher, where the discrepancy needs it.
        grace_sec: after SIGTERM the run saves and ends within this time; a step that takes longer is left undone.

    Raises:
        UserError: settings that do not fit the data or the machine, too many bad steps in a row, a discrepancy that
            does not move, no checkpoint that can be read, a full disk, or a rank that is gone.
    """
    # --- Where: devices and ranks. Every rank runs this function on its own slice of each batch. ---
    run_dir = Path(run_dir)
    make_folder(run_dir)
    accelerator = build.make_accelerator(device)
    check_ranks(config, accelerator)
    rank, world = accelerator.process_index, accelerator.num_processes
    total, batch_size, seed = config.train.total_examples, config.train.batch_size, config.train.seed

    # --- What: the task in its latent space, the model, its running average (ema), and the data. ---
    saved = checkpoint.read_newest(run_dir, accelerator, cache.meta) if resume else None
    task = build.make_task(config, cache, build.space_of(cache, *saved.statistics) if saved else None)
    model = build.build_model(config, cache, seed)
    if saved is None:
        task.prime(model, cache)
    ema = build.make_average(config, accelerator, model)
    optim = build.optim_config(config, model)
    optimizer = make_optimizer(model, optim)
    loader = LatentLoader(cache, "train", batch_size // world, seed, rank, world)
    draw = partial(draw_example, seed=seed, rank=rank, world=world, dropout=config.train.condition_dropout)
    autocast = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=config.train.precision == "bf16")

    # --- The method: one object around the model's blocks, and what it measures by. ---
    extract = make_extract(config.policy, cache, task.space, accelerator.device, trust_remote_code)
    measurements = Measurements(config, task, cache, model, ema, extract, accelerator, autocast)
    stage = measurements.stage = Stage(
        model.blocks,
        config.policy,
        total_examples=total,
        measure=measurements,
        targets=alignment_targets(config.policy, cache, accelerator.device),
        features=extract,
        log=lambda line: journal.write_decision(line, measurements.seconds),
        **build.stage_options(config, accelerator),
    )
    losses = StepLosses(config, cache, model.config, stage, optim, accelerator)

    # --- From where: the beginning, or the newest checkpoint. ---
    parts = checkpoint.Parts(model, ema, optimizer, losses.heads, stage, loader)
    if saved is not None:
        checkpoint.restore(saved, parts)
    restored_at = stage.examples_seen if saved else None
    ddp, optimizer = wrap(accelerator, model, optimizer)
    guard = Guard(config.train, model, loader, accelerator, FaultState.from_json(saved.state.faults if saved else {}))
    every = intervals(config.train)
    validation: dict[str, float] = {}

    def save() -> None:
        # What was just restored is on disk already, and what came of a bad step is no state to go on from.
        if guard.calm and stage.examples_seen != restored_at:
            card = build.model_card(config, cache, ema, stage.examples_seen)
            keep, writes = config.train.keep_last, accelerator.is_main_process
            checkpoint.save(run_dir, parts, task.space, card, guard.state, journal.seconds, keep, writes)
        accelerator.wait_for_everyone()

    with Journal(config, run_dir, accelerator, stage.examples_seen, saved, quiet, grace_sec) as journal:
        journal.say(measurements.describe())
        while stage.examples_seen < total and not on_any_rank(accelerator, journal.stop_requested):
            # The method speaks first: it measures when that is due, and says where to draw times and how to align.
            seen = stage.examples_seen
            decision = stage.decision
            aligned = stage.alignment_weight > 0
            guard.note_reading(seen, stage.observation.discrepancy)
            validation_due = crossed(seen, seen - batch_size, every.validation)
            journal.announce(decision, seen, again=validation_due)
            if validation_due:
                validation = measurements.validate(journal.log, seen)

            # A batch: every draw is keyed by the position of its example in the run.
            journal.share.start()
            batch = loader.next_batch(with_teacher=aligned)
            first = seen + rank * len(batch.indices)
            x_0, condition, mask = task.prepare(batch, range(first, first + len(batch.indices)))
            t = stage.timesteps(len(x_0), device="cpu")
            example = draw(x_0, condition, mask, t, position=seen, teacher=batch.teacher).to(accelerator.device)
            journal.share.loaded()

            # Gradients, in pieces where memory is short; ranks exchange them with the last.
            model.train()
            sums = torch.zeros(2, device=accelerator.device)
            flow = []
            pieces = example.split(config.train.accumulation)
            for piece in pieces:
                with autocast, sync_only(accelerator, ddp, piece is pieces[-1]):
                    loss, found = losses(ddp, piece)
                    accelerator.backward(loss.sum() / len(example.t))
                sums += found.sum(1) / len(example.t)
                flow.append(found[0])
            norm = clip_gradients(model, optim.grad_clip)

            # The step, on all ranks or on none: one that went wrong moves no weight, and its examples count as seen.
            sums, wrong = guard.judge(seen, sums, norm, example.teacher, flow)
            rate = learning_rate(optim, seen / total)
            set_rate(optimizer, rate)
            drops = []
            if wrong is None:
                with measured_drops(stage.due.loss_drops, model, example, accelerator) as drops:
                    optimizer.step()
                losses.heads.step(rate, aligned)
                journal.note_step(sums)
            else:
                guard.skip(journal.log, journal.meter, seen, wrong, optim.learning_rate)
            stage.after_step(batch_size, stepped=wrong is None, loss_drops=drops)
            if wrong is None:
                update_average(ema, model, optimizer, optim, stage.steps)
            optimizer.zero_grad(set_to_none=True)
            losses.heads.zero_grad()
            journal.share.stepped()

            # Lines of the log, and checkpoints.
            seen = stage.examples_seen
            checkpoint_due = crossed(seen, seen - batch_size, every.checkpoint) and seen < total
            if crossed(seen, seen - batch_size, every.log) or checkpoint_due or seen >= total:
                mean_time = float(decision.timesteps.mean())
                journal.write_steps(seen, learning_rate=rate, grad_norm=float(norm), timestep_mean=mean_time)
            if checkpoint_due:
                save()

        # --- The end: measured once more, whatever the intervals say. ---
        finished = stage.examples_seen >= total
        if finished:
            journal.announce(stage.decision, total, again=False)
            validation = measurements.validate(journal.log, total)
            journal.log.write("memory", total, peak_bytes=peak_bytes(accelerator.device))
        save()
    return TrainResult(run_dir, stage.examples_seen, journal.seconds, finished, validation)
