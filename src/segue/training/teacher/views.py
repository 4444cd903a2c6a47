"""What a teacher is trained with: its settings, and the crops of sounds that every step draws anew."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from segue.ssl.compact import CompactConfig
from segue.training.training_audio import Sounds, TrainingAudio


@dataclass(frozen=True)
class TeacherTrainConfig:
    """How a teacher is trained.

    Attributes:
        model: shapes of the encoder.
        steps: optimiser steps in all; None to be bounded by `minutes`. Only a run bounded by steps repeats bit for bit.
        minutes: time spent in training, over all resumes; it drives the schedules where `steps` is None.
        batch_size: crops a step, two of each sound. crop_sec: seconds a crop.
        learning_rate: peak of AdamW's, reached after `warmup_steps`, then a cosine down to a hundredth.
        mask_share, span_frames: share of frames masked, in spans of so many.
        clip_weight, pitch_weight: of these losses; the masked loss has 1. temperature: of the clip loss's softmax.
        target_layers: upper layers averaged to make a target.
        speed_semitones: crops are played up to so much faster or slower; both crops of every second sound alike.
        mix_gain: another crop of the batch is mixed in at up to this gain.
        predictor_width, predictor_depth: of the masked loss's predictor.
        extra_share: share of sounds drawn from the extra folders, where any are given.
        ema_decay: decay of the averaged copy at the start; it rises to 1 along a cosine, and is at most
            (1 + n) / (10 + n) at step n.
        seed: of the weights and of every draw.
        save_every_sec, validate_every_sec: seconds between checkpoints, and between measures on the valid split.
    """

    model: CompactConfig = field(default_factory=CompactConfig)
    steps: int | None = None
    minutes: float = 60.0
    batch_size: int = 96
    crop_sec: float = 0.96
    learning_rate: float = 8e-4
    warmup_steps: int = 150
    mask_share: float = 0.6
    span_frames: int = 4
    clip_weight: float = 1.0
    pitch_weight: float = 4.0
    temperature: float = 0.2
    target_layers: int = 3
    speed_semitones: float = 4.0
    mix_gain: float = 0.2
    predictor_width: int = 128
    predictor_depth: int = 1
    extra_share: float = 0.3
    ema_decay: float = 0.996
    seed: int = 0
    save_every_sec: float = 120.0
    validate_every_sec: float = 240.0


@dataclass(frozen=True)
class Views:
    """Crops to train on.

    Attributes:
        wave: [B, T]; rows k and B/2 + k are two crops of one sound, near each other.
        semitones: [B] by how much each is played faster; equal in both crops of every second sound.
    """

    wave: Tensor
    semitones: Tensor

    def to(self, device: torch.device | str) -> Views:
        """The same on another device."""
        return Views(self.wave.to(device), self.semitones.to(device))


def draw_views(audio: TrainingAudio, config: TeacherTrainConfig, generator: torch.Generator) -> Views:
    """Crops with speeds and levels of their own, a soft other one mixed in."""
    count = config.batch_size // 2
    extras = torch.rand(count, generator=generator) < (config.extra_share if len(audio.others) else 0.0)
    first = int(extras.sum())
    semitones = (2 * torch.rand(2, count, generator=generator) - 1) * config.speed_semitones
    # Every second sound has both crops at one speed, which the first head compares.
    semitones[1, ::2] = semitones[0, ::2]
    views = [_views(audio.others, semitones[:, :first], config, generator)] if first else []
    views += [_views(audio.training, semitones[:, first:], config, generator)] if first < count else []
    wave = torch.cat(views, dim=1).flatten(0, 1)
    gain_db = -24 + 24 * torch.rand(len(wave), 1, generator=generator)
    other = wave[torch.randperm(len(wave), generator=generator)]
    wave = wave + config.mix_gain * torch.rand(len(wave), 1, generator=generator).square() * other
    return Views(wave * 10 ** (gain_db / 20), semitones.flatten())


def _views(sounds: Sounds, semitones: Tensor, config: TeacherTrainConfig, generator: torch.Generator) -> Tensor:
    """[2, count, T] for semitones [2, count]; half of the crops straddle the sound's start, where attacks are."""
    samples = round(config.crop_sec * config.model.sample_rate_hz)
    count = semitones.shape[1]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    starts = torch.from_numpy(sounds.starts)
    chosen = torch.randint(len(sounds), (count,), generator=generator)
    # The sounds lie end to end in one array; `starts` has one entry more than there are sounds.
    begin, length = starts[chosen], starts[chosen + 1] - starts[chosen]
    speed = 2 ** (semitones / 12)
    # How far a crop may begin: faster ones need more samples of their sound.
    room = (length - samples * speed).clamp_min(0)
    at_start = (uniform(count) < 0.5) * torch.ones(2, 1) > 0.5
    # The second crop lies within half a crop of the first: so that their words partly overlap.
    anywhere = (room * uniform(count) + samples / 2 * (uniform(2, count) - 0.5)).clamp_min(0).minimum(room)
    # A crop at the start may begin a quarter of its length before it: silence, then the attack.
    offset = torch.where(at_start, samples * (-0.25 + 0.3125 * uniform(2, count)), anywhere)
    place = offset[..., None] + torch.arange(samples) * speed[..., None]
    inside = (place >= 0) & (place < (length - 1)[:, None])
    # Places outside are set to silence below; their indices must lie inside nevertheless.
    low = place.floor().long().clamp_min(0).minimum((length - 1)[:, None])
    high = (low + 1).minimum((length - 1)[:, None])
    fraction = place - place.floor()
    a, b = (sounds.data[begin[:, None] + index].float() / 32768 for index in (low, high))
    return torch.where(inside, a + fraction * (b - a), torch.zeros(()))


def draw_visible(batch: int, frames: int, config: TeacherTrainConfig, generator: torch.Generator) -> Tensor:
    """[B, V] sorted indices of the frames that stay visible; the others are masked in spans, somewhere in every row."""
    visible = max(1, frames - round(config.mask_share * frames))
    span = config.span_frames
    # One draw a span: the frames of a span are masked or visible together.
    spans = torch.rand(batch, frames // span + 2, generator=generator).repeat_interleave(span, dim=1)
    # Shifted in each row, so that spans do not always begin at the same frames.
    shift = torch.randint(span, (batch, 1), generator=generator)
    score = spans.gather(1, shift + torch.arange(frames))
    # Stable, so that frames of one span, which have equal scores, stay in order on every machine.
    return score.argsort(dim=1, stable=True)[:, :visible].sort(dim=1).values
