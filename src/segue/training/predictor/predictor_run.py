"""Training the one-pass predictor on a folder of full-band sounds: one visible loop, keyed and resumable.

A crop is brought to a random level about the one that `segue upsample` gives files, and loses its top as files do
(tasks/degradation.py): half of the time at a rate in common use, else anywhere; a share of them come from a telephone
or a lossy file. The losses are those of predictor_losses.py. What a step draws depends on the seed and the step alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from segue.data.reading import DataSource
from segue.evaluation.spectral_distances import lsd
from segue.predictor import BandPredictor, PredictorConfig, save_predictor
from segue.predictor.files import count_parameters, half_precision
from segue.predictor.level import RANDOM_LEVEL_DB, level_gain
from segue.process.noise import keyed_generator
from segue.tasks.degradation import (
    CODING_UNIFORMS,
    FAMILIES,
    Degradation,
    DegradationConfig,
    degrade,
    protocol,
    with_coding,
)
from segue.training.precision import has_fast_bf16
from segue.training.predictor.predictor_losses import losses
from segue.training.small_run import SmallRun, average, descend, early_decay, refuse_used, run_loop
from segue.training.training_audio import TrainingAudio, draw_crops, read_training_audio
from segue.types import UserError

# Half the rates that files of narrow band come at.
COMMON_HZ = (4000.0, 5512.5, 6000.0, 8000.0, 11025.0, 12000.0, 16000.0)
CUT_SHARES = (0.92, 1.0)  # of them: where the filters of resamplers end
MEASURED_SEC = 3


@dataclass(frozen=True)
class PredictorTrainConfig:
    """Settings of a predictor's training.

    Attributes:
        model: its shape and rate.
        minutes, steps: the budget; steps instead of minutes where they are given.
        cutoff_min_hz, cutoff_max_hz: where training clips end; 0: from 3,400 Hz to 85 % of half the rate.
        telephone_share, coded_share: of clips, as in `tasks.degradation.DegradationConfig`.
        batch_size, crop_sec: crops of a step.
        power_weight, spectrum_weight, contrast_weight: of the losses beside that of levels.
    """

    model: PredictorConfig
    minutes: float = 30.0
    steps: int | None = None
    cutoff_min_hz: float = 3400.0
    cutoff_max_hz: float = 0.0
    telephone_share: float = 0.0
    coded_share: float = 0.0
    batch_size: int = 8
    crop_sec: float = 1.0
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    ema_decay: float = 0.995
    power_weight: float = 0.1
    spectrum_weight: float = 1.0
    contrast_weight: float = 0.3
    seed: int = 0
    save_every_sec: float = 120.0
    validate_every_sec: float = 900.0

    def __post_init__(self) -> None:
        low_hz, high_hz = self.cutoffs_hz
        if not 1000 <= low_hz < high_hz < self.model.sample_rate_hz / 2:
            raise UserError(
                f"cutoffs from {low_hz:g} to {high_hz:g} Hz of sound at {self.model.sample_rate_hz:,} Hz; hint: give "
                "them between 1000 Hz and half of --rate"
            )

        _ = self.codings

    @property
    def codings(self) -> DegradationConfig:
        """How many clips go through a lossy code.

        Raises:
            UserError: no shares, or more than all.
        """
        return DegradationConfig(telephone_share=self.telephone_share, coded_share=self.coded_share)

    @property
    def cutoffs_hz(self) -> tuple[float, float]:
        """Lowest and highest cutoff of training clips."""
        return self.cutoff_min_hz, self.cutoff_max_hz or 0.85 * self.model.sample_rate_hz / 2


@dataclass
class PredictorRun(SmallRun):
    """A predictor's training between two steps. `online` learns, `averaged` is what is used."""

    modules = ("online", "averaged")
    optimizers = (("adam.", "optimizer", "online"),)

    online: BandPredictor
    averaged: BandPredictor
    optimizer: torch.optim.AdamW


def start(config: PredictorTrainConfig, device: torch.device | str) -> PredictorRun:
    """Fresh weights of the configured seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        online = BandPredictor(config.model)
    averaged = BandPredictor(config.model)
    averaged.load_state_dict(online.state_dict())
    online.to(device)
    online.bf16 = has_fast_bf16(torch.device(device))
    averaged.to(device).requires_grad_(False)
    optimizer = torch.optim.AdamW(online.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    return PredictorRun(online, averaged, optimizer, generator=torch.Generator().manual_seed(config.seed))


@dataclass(frozen=True)
class Batch:
    """A step's crops: true and narrow [B, T] at the model's level, cutoffs [B], noise [B, T] and gains [B]."""

    wave: Tensor
    low: Tensor
    cutoff_hz: Tensor
    noise: Tensor
    gain: Tensor

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(x.to(device) for x in (self.wave, self.low, self.cutoff_hz, self.noise, self.gain)))


def draw_batch(audio: TrainingAudio, config: PredictorTrainConfig, step: int) -> Batch:
    """The crops of a step, by the seed and the step alone."""
    rate_hz = config.model.sample_rate_hz
    samples = round(config.crop_sec * rate_hz)
    generator = keyed_generator(config.seed, "predictor crops", step)
    wave = draw_crops(audio.training, audio.others, 0.3, config.batch_size, samples, generator)
    # Numbers of rows and of settings; drawn after the crops from the same generator.
    u = torch.rand(config.batch_size, 6, generator=generator)
    drawn = [degradation_from(config, row) for row in u[:, :5].tolist()]
    if config.codings.codes:
        # From a generator of their own, so that everything else is drawn as without them.
        keyed = keyed_generator(config.seed, "predictor codings", step)
        codings = torch.rand(config.batch_size, CODING_UNIFORMS, generator=keyed).tolist()
        drawn = [with_coding(d, config.codings, row) for d, row in zip(drawn, codings)]
    low = degrade(wave, rate_hz, drawn)
    gain = level_gain(low[:, None])[:, 0, 0] * 10 ** ((2 * u[:, 5] - 1) * RANDOM_LEVEL_DB / 20)
    noise = torch.randn(wave.shape, generator=generator)
    cutoff_hz = torch.tensor([degradation.cutoff_hz for degradation in drawn])
    return Batch(wave * gain[:, None], low * gain[:, None], cutoff_hz, noise, gain)


def degradation_from(config: PredictorTrainConfig, u: list[float]) -> Degradation:
    """The filter that five numbers, evenly drawn from [0, 1), stand for."""
    low_hz, high_hz = config.cutoffs_hz
    common = [hz for hz in COMMON_HZ if low_hz <= hz <= high_hz]
    if common and u[0] < 0.5:
        # Telephone speech and its rate are the commonest case by far: every second of these.
        index = 0 if u[1] < 0.5 else int((2 * u[1] - 1) * len(common))
        cutoff_hz = common[index] * (CUT_SHARES[0] + (CUT_SHARES[1] - CUT_SHARES[0]) * u[2])
    else:
        cutoff_hz = low_hz * (high_hz / low_hz) ** u[1]
    family = "fft" if u[3] < 0.5 else FAMILIES[int((2 * u[3] - 1) * len(FAMILIES))]
    return Degradation(max(low_hz, cutoff_hz), family, 4 + int(7 * u[4]))


def train_step(run: PredictorRun, batch: Batch, config: PredictorTrainConfig) -> dict[str, float]:
    """One optimiser step; returns the loss and its parts."""
    run.set_learning_rate(run.optimizer, config)
    made = run.online(batch.low, batch.cutoff_hz, batch.noise)
    parts = losses(run.online, made, batch.wave, batch.cutoff_hz, batch.gain)
    value = parts["level"] + config.power_weight * parts["power"]
    value = value + config.spectrum_weight * parts["spectrum"] + config.contrast_weight * parts["contrast"]
    run.optimizer.zero_grad(set_to_none=True)
    value.backward()
    norm = descend(run.optimizer, run.online.parameters(), 1.0)
    average(run.averaged, run.online, early_decay(config.ema_decay, run.step))
    run.step += 1
    return {"loss": value.item(), "grad_norm": norm.item(), **{k: v.item() for k, v in parts.items()}}


@torch.inference_mode()
def validate(model: BandPredictor, waves: list[Tensor], cutoff_hz: float) -> dict[str, float]:
    """LSD over all bins and above the cutoff, level error and mean mix of harmonic, shifted and noise; held-out clips.

    The weights are those of the file, in half precision; the filter is that of the protocol nuwave2.
    """
    model = half_precision(model)
    rate_hz = model.config.sample_rate_hz
    filters = protocol("nuwave2", cutoff_hz)
    sums: dict[str, list[float]] = {}
    for number, whole in enumerate(waves):
        wave = whole[None, : MEASURED_SEC * rate_hz].to(model.window.device)
        if wave.shape[1] < 2048 or not wave.any():
            continue
        low = degrade(wave, rate_hz, filters)
        gain = level_gain(low[:, None])[:, 0, 0]
        noise = torch.randn(wave.shape, generator=keyed_generator(0, "predictor validation", number)).to(low)
        cutoff = torch.tensor([cutoff_hz], device=low.device)
        made = model(low * gain, cutoff, noise)
        parts = losses(model, made, wave * gain, cutoff, gain)
        distances = {
            f"lsd_{band}": float(lsd(made.wave / gain, wave, rate_hz, "nuwave2", band=band, cutoff_hz=cutoff_hz))
            for band in ("full", "high")
        }
        figures = distances | {name: float(value) for name, value in parts.items()}
        for name, value in zip(("harmonic", "shifted", "noise"), made.mix.mean(dim=(0, 1, 3)).tolist()):
            figures[f"mix_{name}"] = value
        for name, value in figures.items():
            sums.setdefault(name, []).append(value)
    return {name: round(math.fsum(values) / len(values), 4) for name, values in sums.items()}


def train_predictor(
    source: Path | DataSource,
    out: Path,
    config: PredictorTrainConfig,
    *,
    extra: tuple[Path, ...] = (),
    resume: bool = False,
    skip_bad: bool = False,
    device: torch.device | str = "cpu",
) -> BandPredictor:
    """Train, and leave in `out`: predictor.safetensors (averaged weights), state.safetensors (to resume), log, config.

    Trains on split "train" of `source` (and of every folder in `extra`, which gives three crops of ten), measures on
    "valid", and never reads "test". The predictor is written beside every checkpoint. By steps, a resumed run equals
    an uninterrupted one bit for bit.

    Args:
        skip_bad: leave files out that cannot be used, instead of refusing.

    Raises:
        UserError: unusable sounds, an output folder that holds another run, or a resume under other options.
    """
    refuse_used(out, resume)
    rate_hz = config.model.sample_rate_hz
    audio = read_training_audio(source, extra, rate_hz, skip_bad)
    run = start(config, device)
    if resume:
        run.load(out, config)
    low_hz, high_hz = config.cutoffs_hz
    measured_hz = max(4000.0, low_hz) if high_hz > 4000.0 else low_hz

    def checkpoint() -> None:
        run.save(out, config)
        save_predictor(run.averaged, out, {"cutoffs_hz": [low_hz, high_hz], "steps_trained": run.step})

    run_loop(
        run,
        config,
        out,
        title="training the predictor",
        facts={**audio.hours(rate_hz), "parameters": count_parameters(run.online)},
        step=lambda: train_step(run, draw_batch(audio, config, run.step).to(device), config),
        measure=lambda: validate(run.averaged, audio.valid_waves, measured_hz),
        checkpoint=checkpoint,
    )
    return half_precision(run.averaged)
