"""The training loop, as one function.

    held-out clips -> discrepancy -> controller -> decision: timesteps, alignment weight, block strength
    cached latents -> task -> (x_0, Condition) -> model at stage.timesteps -> flow loss + stage.alignment -> optimiser

The method is one object, `segue.Stage`, which is called here as docs/foreign-loops.md shows it for any other loop. With
a static policy the loop is plain flow matching, bit for bit.
"""

from __future__ import annotations

from pathlib import Path

import torch

from segue.data.cache import LatentCache
from segue.files import make_folder
from segue.process.noise import BatchDraws
from segue.stage.stage import Stage
from segue.training import build, checkpoint
from segue.training.config import RunConfig, crossed, intervals
from segue.training.features import alignment_targets
from segue.training.guards import LAG, Guard
from segue.training.journal import Journal, Sounds, TrainResult
from segue.training.losses import StepLosses
from segue.training.measurements import Measurements, measured_drops
from segue.training.optim import clip_gradients, learning_rate, make_optimizer, set_rate, step_unless, update_average
from segue.training.ranks import sync_only
from segue.training.sharding import wrap
from segue.training.windows import make_loader


def train(
    config: RunConfig,
    cache: LatentCache,
    run_dir: Path | str,
    *,
    resume: bool = False,
    device: str = "auto",
    quiet: bool = False,
    cache_on_device: str = "auto",
    trust_remote_code: bool = False,
    grace_sec: float = 30.0,
    sounds: Sounds | None = None,
) -> TrainResult:
    """Train a model on a latent cache.

    Args:
        config: model, optimiser, length, and the policy that drives the run.
        cache: latents, text embeddings and teacher features.
        run_dir: folder of log and checkpoints; made if it does not exist.
        resume: go on from the newest checkpoint, if there is one; on a CPU, bit for bit as an uninterrupted run.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1" or "mps".
        quiet: show no progress.
        cache_on_device: "yes", "no", or "auto": whether training rows live in the device's memory (data/resident.py).
        trust_remote_code: run the code that comes with the teacher, where the discrepancy needs it.
        grace_sec: after SIGTERM the run saves and ends within this time; a step that takes longer is given up.
        sounds: called with the averaged model by the first rank, as often as train.sample_every says.

    Raises:
        UserError: unfit settings, repeated faults, a frozen discrepancy, damaged checkpoints, a full disk, a lost rank.
    """
    # --- Devices and ranks. Every rank runs this function, on its own part of each batch. ---
    make_folder(run_dir := Path(run_dir))
    accelerator, config = build.begin(config, device)
    rank, world = accelerator.process_index, accelerator.num_processes
    total, batch_size, seed = config.train.total_examples, config.train.batch_size, config.train.seed

    # --- The task in its latent space, the model, the running average of its weights (ema), and the data. ---
    saved = checkpoint.read_newest(run_dir, accelerator, cache.meta) if resume else None
    task = build.make_task(config, cache, saved.statistics if saved else None, accelerator.device)
    model = build.build_model(config, cache, seed)
    task.initialise(model, cache, saved.weights if saved else None)
    ema = build.make_average(config, accelerator, model)
    optim = build.optim_config(config, model)
    optimizer = make_optimizer(model, optim)
    loader = make_loader(config, cache, model.config.patch_frames, accelerator, cache_on_device)
    autocast = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=config.train.precision == "bf16")

    # --- The method: one object around the model's blocks, and the measurements that it asks for. ---
    measurements = Measurements(config, task, cache, model, ema, accelerator, autocast, trust_remote_code)
    stage = measurements.stage = Stage(
        model.blocks,
        config.policy,
        total_examples=total,
        measure=measurements,
        targets=alignment_targets(config.policy, cache, accelerator.device, model.config.width),
        features=measurements.extract,
        log=lambda line: journal.write_decision(line, measurements.seconds),
        **build.stage_options(config, accelerator, model),
    )
    losses = StepLosses(config, cache, model.config, stage, optim, accelerator, ema)

    # --- The start: at the beginning, or from the newest checkpoint. ---
    parts = checkpoint.Parts(model, ema, optimizer, losses.heads, stage, loader)
    keeper = checkpoint.Keeper(run_dir, config, cache, accelerator, task.space, parts)
    faults = keeper.restore(saved)
    ddp, optimizer = wrap(accelerator, model, optimizer)
    guard = Guard(config.train, optim, model, loader, accelerator, faults)
    every = intervals(config.train)

    with loader, Journal(config, run_dir, accelerator, stage.examples_seen, saved, quiet, grace_sec) as journal:
        journal.print_line(loader.describe())
        journal.print_line(measurements.describe())
        while stage.examples_seen < total and not guard.stopping(journal):
            # The decision in force. Reading it measures the discrepancy, where that is due.
            seen = stage.examples_seen
            decision = stage.decision
            guard.note_reading(seen, stage.observation)
            validation_due = crossed(seen, seen - batch_size, every.validation)
            journal.announce(decision, seen, again=validation_due)
            if validation_due:
                journal.print_line(measurements.validate(journal.log, seen))

            # A batch, on the device. Every random draw is keyed by the position of the batch in the run.
            journal.share.start()
            batch = loader.next_batch(with_teacher=losses.reads_teacher)
            draws = BatchDraws(seed, seen, loader.batch_size, rank, world, accelerator.device)
            x_0, condition, mask = task.prepare(batch, draws)
            t = stage.timesteps(len(x_0), accelerator.device)
            example = losses.draw(x_0, condition, mask, t, draws, batch.teacher)
            journal.share.loaded()

            # Gradients, in pieces where memory is short; ranks exchange them after the last piece.
            model.train()
            sums, flow = torch.zeros(2, device=accelerator.device), []
            pieces = example.split(config.train.accumulation)
            for piece in pieces:
                with autocast, sync_only(accelerator, ddp, piece is pieces[-1]):
                    loss, found = losses(ddp, piece)
                    accelerator.backward(loss.sum() / len(example.t))
                sums += found.sum(1) / len(example.t)
                flow.append(found[0])
            norm, norms = clip_gradients(model, optim.grad_clip)

            # The step; a faulty one is a zero update on all ranks. Its verdict is waited for where loss drops are due.
            bad = guard.check(journal, seen, sums, norm, norms, example.teacher, flow)
            stepped = not (stage.due.loss_drops and bool(bad))
            rate = set_rate(optimizer, learning_rate(optim, seen / total))
            with measured_drops(stage.due.loss_drops and stepped, model, example, accelerator) as drops:
                step_unless(bad, optimizer)
            losses.heads.step(rate, example.teacher is not None, bad)
            stage.after_step(batch_size, stepped=stepped, loss_drops=drops)
            update_average(ema, model, optimizer, optim, stage.steps, bad)
            optimizer.zero_grad(set_to_none=True)
            losses.heads.zero_grad()
            journal.share.stepped()

            # Lines of the log, and checkpoints. Verdicts of the last steps are read where something is written.
            seen = stage.examples_seen
            checkpoint_due = crossed(seen, seen - batch_size, every.checkpoint) and seen < total
            log_due = crossed(seen, seen - batch_size, every.log) or checkpoint_due or seen >= total
            guard.read(journal, keep=0 if log_due else LAG)
            if log_due:
                journal.write_steps(seen, decision, learning_rate=rate)
            if checkpoint_due:
                keeper.save(guard, journal.seconds)
            if sounds and crossed(seen, seen - batch_size, every.sounds) and seen < total:
                journal.make_sounds(sounds, ema, task.space, seen)

        # --- The end: measured once more, whatever the intervals are. ---
        guard.read(journal, keep=0)
        if finished := stage.examples_seen >= total:
            journal.announce(stage.decision, total, again=False)
            journal.print_line(measurements.validate(journal.log, total))
            journal.write_memory(accelerator.device)
        keeper.save(guard, journal.seconds)
    return TrainResult(run_dir, stage.examples_seen, journal.seconds, finished, measurements.validation)
