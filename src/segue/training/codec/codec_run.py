"""Training the autoencoder codec on a folder of sounds: one visible loop, seeded, resumable, bounded by time or steps.

    loss = log-magnitude L1 + loud log-magnitude (Huber) + spectral convergence + log-mel L1 + phase advance + light KL

The losses are in codec_losses.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from segue.codecs.autoencoder import Autoencoder, AutoencoderCodec, AutoencoderConfig, save_codec
from segue.codecs.blocks import FrameNetwork
from segue.codecs.mid_side import GIVEN, MidSideAutoencoder, MidSideConfig
from segue.data.reading import DataSource
from segue.training.codec.codec_losses import Loss, ReconstructionLoss, consistency, total_loss, validate
from segue.training.codec.mid_side_losses import MidSideLoss
from segue.training.small_run import SmallRun, average, descend, early_decay, refuse_used, run_loop
from segue.training.training_audio import Sounds, TrainingAudio, draw_crops, read_training_audio

STATISTICS_SOUNDS = 256  # of the training split, for the mean and the deviation of latents
STATISTICS_FRAMES = 160  # of each of them
_CONSISTENT_NEPERS = 1.4  # gains of the consistency loss: up to 12 dB either way
DECODED_FROM = 0.75  # of a stereo codec's budget: from there on its decoded sound is compared, too
LINEAR_CROPS = 200  # that a stereo codec's linear part is fitted to
LINEAR_FRAMES = 40  # of each of them


@dataclass(frozen=True)
class CodecTrainConfig:
    """How a codec is trained.

    Attributes:
        model: shapes of the autoencoder.
        steps: optimiser steps in all; None to be bounded by `minutes`. Only a run bounded by steps repeats bit for bit.
        minutes: time spent in training, over all resumes; it drives the learning rate where `steps` is None.
        batch_size: crops a step. crop_sec: seconds a crop.
        learning_rate: peak of AdamW's, reached after `warmup_steps`, then a cosine down to a hundredth.
        kl_weight: weight of the KL divergence to N(0, 1), averaged over latent elements.
        mask_share: share of crops that lose a span of latent channels, up to half of them, before they are decoded.
        consistency_weight: weight of the loss that keeps all latent channels but the first GIVEN the same under another
            gain, so that loudness has channels of its own. A stereo codec gives the level to one by design.
        extra_share: share of crops drawn from the extra sounds, where any are given.
        ema_decay: decay of the averaged weights that are kept.
        seed: of the weights and of every draw.
        save_every_sec, validate_every_sec: seconds between checkpoints, and between measures on the valid split.
    """

    model: AutoencoderConfig | MidSideConfig = field(default_factory=AutoencoderConfig)
    steps: int | None = None
    minutes: float = 60.0
    batch_size: int = 16
    crop_sec: float = 0.512
    learning_rate: float = 8e-4
    warmup_steps: int = 200
    kl_weight: float = 0.005
    mask_share: float = 0.0
    consistency_weight: float = 0.0
    extra_share: float = 0.15
    ema_decay: float = 0.999
    seed: int = 0
    save_every_sec: float = 120.0
    validate_every_sec: float = 240.0


def config_for(model: AutoencoderConfig | MidSideConfig, **changes) -> CodecTrainConfig:
    """The defaults of a kind of network: a stereo one takes longer crops, fewer of them, and smaller steps."""
    if isinstance(model, MidSideConfig):
        crop_sec = 32 * model.hop_samples / model.sample_rate_hz
        changes = {"batch_size": 8, "crop_sec": crop_sec, "learning_rate": 5e-4, "ema_decay": 0.998, **changes}
    return CodecTrainConfig(model=model, **changes)


def draw_batch(notes: Sounds, extra: Sounds, config: CodecTrainConfig, generator: torch.Generator) -> Tensor:
    """[B, T] crops as the configuration asks for them."""
    samples = round(config.crop_sec * config.model.sample_rate_hz)
    return draw_crops(notes, extra, config.extra_share, config.batch_size, samples, generator)


def network_of(config: AutoencoderConfig | MidSideConfig) -> FrameNetwork:
    """A network of the configured kind and shapes."""
    return MidSideAutoencoder(config) if isinstance(config, MidSideConfig) else Autoencoder(config)


def loss_of(network: FrameNetwork, device: torch.device | str) -> Loss:
    """The reconstruction loss of a network's kind."""
    if isinstance(network, MidSideAutoencoder):
        return MidSideLoss(network, device)
    return ReconstructionLoss(network.config, device)


def draw_mask(count: int, config: CodecTrainConfig, generator: torch.Generator) -> Tensor:
    """[count, C, 1], zero on spans of channels: a decoder that must do without some uses the others in common.

    Level and width of a stereo codec are never masked.
    """
    channels = config.model.channels
    mask = torch.ones(count, channels, 1)
    if not config.mask_share:
        return mask
    first = GIVEN if isinstance(config.model, MidSideConfig) else 0
    chance, length, start = torch.rand(3, count, generator=generator)
    for row in (chance < config.mask_share).nonzero()[:, 0].tolist():
        span = 1 + int(length[row] * (channels - first) / 2)
        begin = first + int(start[row] * (channels - first - span + 1))
        mask[row, begin : begin + span] = 0
    return mask


@dataclass
class CodecRun(SmallRun):
    """A codec's training between two steps; `ema` holds the averaged weights, which are kept."""

    modules = ("network", "ema")
    optimizers = (("adam.", "optimizer", "network"),)

    network: FrameNetwork
    ema: FrameNetwork
    optimizer: torch.optim.AdamW


def start(config: CodecTrainConfig, device: torch.device | str) -> CodecRun:
    """Fresh weights and generator of the configured seed."""
    # The seed decides the weights; other random states stay as they were.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network, ema = (network_of(config.model) for _ in range(2))
    ema.load_state_dict(network.state_dict())
    network.to(device)
    ema.to(device).requires_grad_(False)
    # What was fitted (`start_linear`) has thousands of inputs, and moves slowly: steps of full size would undo the fit.
    fitted = [p for name, p in network.named_parameters() if name.startswith("linear_")]
    others = [p for name, p in network.named_parameters() if not name.startswith("linear_")]
    groups = [{"params": others}] + ([{"params": fitted, "rate_scale": 0.05}] if fitted else [])
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    return CodecRun(network, ema, optimizer, generator=torch.Generator().manual_seed(config.seed))


def train_step(run: CodecRun, loss: Loss, batch: Tensor, config: CodecTrainConfig) -> dict[str, float]:
    """One optimiser step on [B, T] crops; returns the loss and its parts."""
    run.set_learning_rate(run.optimizer, config)
    frames = math.ceil(batch.shape[-1] / config.model.hop_samples)
    # Drawn on the CPU, whose generator is saved: a run repeats on any device.
    noise = torch.randn(len(batch), config.model.channels, frames, generator=run.generator)
    # Late, since it costs half as much again as a step: by then magnitudes are near what can be decoded.
    decoded = isinstance(run.network, MidSideAutoencoder) and run.progress(config) >= DECODED_FROM
    mask = draw_mask(len(batch), config, run.generator).to(batch.device)
    value, losses = total_loss(run.network, loss, batch, noise.to(batch.device), config.kl_weight, mask, decoded)
    if config.consistency_weight:
        gain = (2 * torch.rand(len(batch), generator=run.generator) - 1) * _CONSISTENT_NEPERS
        losses["consistency"] = consistency(run.network, batch, gain.exp().to(batch.device))
        value = value + config.consistency_weight * losses["consistency"]
    run.optimizer.zero_grad(set_to_none=True)
    value.backward()
    norm = descend(run.optimizer, run.network.parameters(), 2.0)
    average(run.ema, run.network, early_decay(config.ema_decay, run.step))
    run.step += 1
    return {"loss": value.item(), "grad_norm": norm.item(), **{k: v.item() for k, v in losses.items()}}


@torch.inference_mode()
def measure_latents(network: FrameNetwork, waves: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C] of the posterior means over whole sounds, in float64."""
    device = network.latent_mean.device
    latents = torch.cat([_mean_latents(network, w.to(device)).double().cpu() for w in waves], dim=1)
    # A channel that never moves must not be divided by zero.
    return latents.mean(1), latents.std(1).clamp_min(1e-4)


def _mean_latents(network: FrameNetwork, wave: Tensor) -> Tensor:
    return network.encode(network.analyse(wave[None]))[0][0]


def train_codec(
    source: Path | DataSource,
    out: Path,
    config: CodecTrainConfig,
    *,
    extra: tuple[Path, ...] = (),
    resume: bool = False,
    skip_bad: bool = False,
    device: torch.device | str = "cpu",
) -> AutoencoderCodec:
    """Train, and leave in `out`: codec.safetensors (averaged weights), state.safetensors (to resume), log, config.

    Trains on split "train" of `source` (and of every folder in `extra`), measures on "valid", never reads "test"; the
    splits are those of `segue encode`. The codec is written beside every checkpoint, so an interrupted run leaves a
    usable one.

    Args:
        skip_bad: leave files out that cannot be used, instead of refusing.

    Raises:
        UserError: unusable sounds, an output folder that holds another run, or a resume under other options.
    """
    refuse_used(out, resume)
    run = start(config, device)
    audio = read_training_audio(source, extra, config.model.sample_rate_hz, skip_bad, run.network.sides)
    if resume:
        run.load(out, config)
    elif isinstance(run.network, MidSideAutoencoder):
        start_linear(run.network, audio.training)
        run.ema.load_state_dict(run.network.state_dict())
    loss = loss_of(run.network, device)

    # The generator belongs to the run: its state is saved, and a resumed run draws on.
    def step() -> dict[str, float]:
        batch = draw_batch(audio.training, audio.others, config, run.generator)
        return train_step(run, loss, batch.to(run.network.latent_mean.device), config)

    run_loop(
        run,
        config,
        out,
        title="training the codec",
        facts={**audio.hours(config.model.sample_rate_hz), "parameters": sum(p.numel() for p in run.ema.parameters())},
        step=step,
        measure=lambda: validate(run.ema, loss, audio.valid_waves),
        checkpoint=lambda: _checkpoint(run, config, audio, out),
    )
    return AutoencoderCodec(run.ema)


def start_linear(network: MidSideAutoencoder, sounds: Sounds) -> None:
    """A linear codec to begin with, fitted to crops over all sounds."""
    # A generator of its own, as for checkpoints.
    generator = torch.Generator().manual_seed(0)
    samples = LINEAR_FRAMES * network.config.hop_samples
    crops = [sounds.crop(sounds.draw(generator), samples, generator) for _ in range(LINEAR_CROPS)]
    network.start_linear([crop.to(network.latent_mean.device) for crop in crops])


def _checkpoint(run: CodecRun, config: CodecTrainConfig, audio: TrainingAudio, out: Path) -> None:
    # A generator of its own: writing a checkpoint must not change what training draws next.
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(audio.training), generator=generator)[:STATISTICS_SOUNDS].tolist()
    samples = STATISTICS_FRAMES * run.ema.config.hop_samples
    mean, std = measure_latents(run.ema, [audio.training.wave(i)[..., :samples] for i in chosen])
    run.ema.latent_mean.copy_(mean)
    run.ema.latent_std.copy_(std)
    # State and codec hold the same statistics, whichever of them is read.
    run.save(out, config)
    save_codec(run.ema, out)
