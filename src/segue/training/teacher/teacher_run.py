"""Training the compact teacher on a folder of sounds, without labels: one visible loop, seeded and resumable.

Two crops of each sound are played at other speeds and levels. The target, an averaged copy of the encoder, gets all of
their frames; the encoder itself gets two fifths of them. It learns from three losses:

    masked: a small predictor predicts the target's features in the masked frames. The encoder gets visible frames
        only (M2D, Niizumi et al. 2210.14648); targets are means of normalised upper layers (data2vec, Baevski et
        al. 2202.03555), whitened over the batch: a constant is the worst prediction, and no few directions (such as
        loudness) outweigh the rest.
    clip: the time mean of one crop names the other crop of its sound among those of the batch (InfoNCE with an averaged
        copy, He et al. 1911.05722; crops of one sound as positives, COLA, Saeed et al. 2010.10915). One head compares
        crops of equal speed, another crops of different speeds: sample-based instruments play a recording faster for a
        higher note, so the first can use the pitch and the second has to use the instrument.
    pitch: a linear function of the time mean rises by as many semitones as one crop is played faster than the other
        (SPICE, Gfeller et al. 1910.11664), meant to keep the pitch, which the second head discards.

Our trials on the demo set: without the clip loss, a linear probe's family accuracy stays at the level of log-mel
statistics; with it, family accuracy doubles and pitch accuracy falls below that level. The pitch loss hardly fell and
did not help. To predict whitened log-mel as well as the masked features helped in part (pitch .82 after 800 steps,
where this recipe had .75 after 1,900; family .70 and .71), but that run was stopped early.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.data.reading import DataSource
from segue.ssl.compact import CompactTeacher, save_teacher
from segue.training.small_run import SmallRun, average, descend, early_decay, refuse_used, run_loop
from segue.training.teacher.statistics import (
    collapse_figures,
    fit_mel,
    fit_statistics,
    refuse_collapsed,
    some_waves,
)
from segue.training.teacher.teacher_losses import (
    EncoderWithHeads,
    Student,
    clip_loss,
    make_targets,
    masked_loss,
    pitch_loss,
)
from segue.training.teacher.views import TeacherTrainConfig, Views, draw_views, draw_visible
from segue.training.training_audio import read_training_audio

STATISTICS_SEC = 4  # of each sound that statistics are taken of
STATISTICS_SOUNDS = (384, 128)  # of the source, and of the extra folders


@dataclass
class TeacherRun(SmallRun):
    """A teacher's training between two steps. `online` learns, `target` is its averaged copy."""

    modules = ("online", "target")
    renamed: ClassVar = {"online.listener.": "online.network.", "adam.listener.": "adam.network."}
    optimizers = (("adam.", "optimizer", "online"),)

    online: Student
    target: EncoderWithHeads
    optimizer: torch.optim.AdamW


def start(config: TeacherTrainConfig, device: torch.device | str) -> TeacherRun:
    """Fresh weights and generator of the configured seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        online = Student(config.model, config.predictor_width, config.predictor_depth)
        target = EncoderWithHeads(config.model)
    target.load_state_dict(online.network.state_dict())
    online.to(device)
    target.to(device).requires_grad_(False)
    # Biases, norms and the mask token are not decayed.
    decayed = [p for p in online.parameters() if p.dim() > 1]
    plain = [p for p in online.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
    return TeacherRun(online, target, optimizer, generator=torch.Generator().manual_seed(config.seed))


def train_step(run: TeacherRun, views: Views, config: TeacherTrainConfig) -> dict[str, float]:
    """One optimiser step; returns the loss and its parts."""
    progress = min(1.0, run.progress(config))
    run.set_learning_rate(run.optimizer, config)
    value, losses = total_loss(run, views, config)
    run.optimizer.zero_grad(set_to_none=True)
    value.backward()
    norm = descend(run.optimizer, run.online.parameters(), 3.0)
    # The target stands still at the end: its decay rises to 1 along a cosine.
    decay = 1 - (1 - config.ema_decay) * (1 + math.cos(math.pi * progress)) / 2
    average(run.target, run.online.network, early_decay(decay, run.step))
    run.step += 1
    return {"loss": value.item(), "grad_norm": norm.item(), **{k: v.item() for k, v in losses.items()}}


def total_loss(run: TeacherRun, views: Views, config: TeacherTrainConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The training loss, and its parts: `found` and `found_faster` say how often each head names the other crop."""
    network = run.online.network
    # The target encodes all frames, the learning encoder the visible ones.
    with torch.no_grad():
        patches = run.target.encoder.mel.patches(run.target.encoder.mel(views.wave))
    frames = patches.shape[1]
    # Fresh masks in every step, from the run's own generator, which is saved.
    visible = draw_visible(len(patches), frames, config, run.generator).to(patches.device)
    wanted, wanted_names = make_targets(run.target, patches, config.target_layers)
    outputs = network.encoder(patches, visible)
    # What each loss compares.
    predicted = run.online.predictor(outputs[-1], visible, frames)
    names = [predict(x) for predict, x in zip(run.online.names, network.names(outputs), strict=True)]
    clips = [clip_loss(x, y, config.temperature) for x, y in zip(names, wanted_names, strict=True)]
    readings = run.online.pitch(outputs[-1].mean(1))[:, 0]
    losses = {
        "masked": masked_loss(predicted, wanted, visible),
        "clip": (clips[0][0] + clips[1][0]) / 2,
        # At least a semitone, so that training without changes of speed does not divide by zero.
        "pitch": pitch_loss(readings, views.semitones, max(config.speed_semitones, 1.0)),
        "found": clips[0][1],
        "found_faster": clips[1][1],
    }
    return losses["masked"] + config.clip_weight * losses["clip"] + config.pitch_weight * losses["pitch"], losses


def _raw(run: TeacherRun) -> Callable[[Tensor], Tensor]:
    encoder = run.target.encoder
    return lambda wave: encoder.features(wave.to(encoder.mel.mean.device))


@torch.no_grad()
def validate(run: TeacherRun, config: TeacherTrainConfig, waves: list[Tensor]) -> dict[str, float]:
    """Losses on crops of held-out sounds, under fixed masks, and the collapse figures of the averaged copy."""
    samples = round(config.crop_sec * config.model.sample_rate_hz)
    # Short sounds are filled up with silence, as training crops are.
    crops = [F.pad(w[:samples], (0, max(0, samples - len(w)))) for w in waves]
    batch = torch.stack(crops if len(crops) > 1 else crops * 2)  # each of the two heads takes every second sound
    keep = run.generator
    # Fixed masks: losses of different steps then compare.
    run.generator = torch.Generator().manual_seed(0)
    try:
        views = Views(torch.cat([batch, 0.5 * batch]), torch.zeros(2 * len(batch)))
        _, losses = total_loss(run, views.to(run.target.encoder.mel.mean.device), config)
    finally:
        # Put back whatever happens, or the next step would draw from the wrong generator.
        run.generator = keep
    return {**{k: round(v.item(), 4) for k, v in losses.items()}, **collapse_figures(_raw(run), waves)}


def train_teacher(
    source: Path | DataSource,
    out: Path,
    config: TeacherTrainConfig,
    *,
    extra: tuple[Path, ...] = (),
    resume: bool = False,
    skip_bad: bool = False,
    device: torch.device | str = "cpu",
) -> CompactTeacher:
    """Train, and leave in `out`: teacher.safetensors (the averaged copy), run.safetensors (to resume), log, config.

    Trains on split "train" of `source` (and of every folder in `extra`), measures on "valid", never reads "test", and
    reads no label of any; the splits are those of `segue encode`. The teacher is written beside every checkpoint.

    Args:
        skip_bad: leave files out that cannot be used, instead of refusing.

    Raises:
        UserError: unusable sounds, an output folder that holds another run, a resume under other options, or a teacher
            that has collapsed.
    """
    refuse_used(out, resume)
    rate_hz = config.model.sample_rate_hz
    audio = read_training_audio(source, extra, rate_hz, skip_bad)
    waves = some_waves(audio.training, STATISTICS_SOUNDS[0], STATISTICS_SEC * rate_hz)
    waves += some_waves(audio.others, STATISTICS_SOUNDS[1], STATISTICS_SEC * rate_hz)
    run = start(config, device)
    if resume:
        run.load(out, config)
    else:
        # A resumed run brings its statistics along; only a fresh one fits them.
        for encoder in (run.target.encoder, run.online.network.encoder):
            fit_mel(encoder, waves)

    def step() -> dict[str, float]:
        return train_step(run, draw_views(audio, config, run.generator).to(device), config)

    def checkpoint() -> None:
        # The averaged weights have moved on: their statistics are those of this checkpoint.
        fit_statistics(run.target.encoder, waves)
        run.save(out, config)
        save_teacher(run.target.encoder, out)

    run_loop(
        run,
        config,
        out,
        title="training the teacher",
        facts={
            **audio.hours(rate_hz),
            "parameters": sum(p.numel() for p in run.target.encoder.parameters()),
        },
        step=step,
        measure=lambda: validate(run, config, audio.valid_waves),
        checkpoint=checkpoint,
    )
    refuse_collapsed(collapse_figures(_raw(run), audio.valid_waves), out)
    return CompactTeacher(run.target.encoder, str(out))
