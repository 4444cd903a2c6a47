"""Training the autoencoder codec on a folder of sounds: one visible loop, seeded, resumable, bounded by time or steps.

    loss = log-magnitude L1 + loud log-magnitude (Huber) + spectral convergence + log-mel L1 + phase advance + light KL

Nothing is differentiated through a synthesis: the network predicts STFT magnitudes and phase advances, and is compared
with the analysis of the sound. Convergence is Arik et al.'s (1808.06719). The advance term (our definition) is the
squared distance of a complex prediction from the unit vector at the true advance, weighted by the square root of the
magnitude: its minimum is the mean direction, shortened where the advance cannot be known.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.codecs.autoencoder import (
    Analysis,
    Autoencoder,
    AutoencoderCodec,
    AutoencoderConfig,
    save_codec,
)
from segue.evaluation.mel import mel_edges_hz, triangular_bands
from segue.training.codec_loop import (
    adam_tensors,
    learning_rate_at,
    part,
    progress_of,
    read_state,
    refuse_used,
    restore_adam,
    run_loop,
    write_state,
)
from segue.training.sounds import Material, Sounds, draw_crops, read_material


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
        extra_share: share of crops drawn from the extra sounds, where any are given.
        ema_decay: decay of the averaged weights that are kept.
        seed: of the weights and of every draw.
        save_every_sec, validate_every_sec: seconds between checkpoints, and between measures on the valid split.
    """

    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    steps: int | None = None
    minutes: float = 60.0
    batch_size: int = 16
    crop_sec: float = 0.512
    learning_rate: float = 8e-4
    warmup_steps: int = 200
    kl_weight: float = 0.005
    extra_share: float = 0.15
    ema_decay: float = 0.999
    seed: int = 0
    save_every_sec: float = 120.0
    validate_every_sec: float = 240.0


def draw_batch(notes: Sounds, extra: Sounds, config: CodecTrainConfig, generator: torch.Generator) -> Tensor:
    """[B, T] crops as the configuration asks for them."""
    samples = round(config.crop_sec * config.model.sample_rate_hz)
    return draw_crops(notes, extra, config.extra_share, config.batch_size, samples, generator)


# --- losses ---------------------------------------------------------------------------------------------------------


class ReconstructionLoss:
    """Distances between an analysis and its prediction, each of order one."""

    def __init__(self, config: AutoencoderConfig, device: torch.device | str) -> None:
        self.floor = config.floor
        edges_hz = mel_edges_hz(80, 0.0, config.sample_rate_hz / 2)
        self.mel = triangular_bands(edges_hz, 2 * config.hop_samples, config.sample_rate_hz).to(device).T

    def __call__(self, predicted: Analysis, target: Analysis) -> dict[str, Tensor]:
        """Scalar terms by name."""
        a, b = predicted.log_magnitude.clamp(max=3).exp(), target.log_magnitude.exp()
        mel_a, mel_b = ((m @ self.mel).log() for m in (a, b))
        error = predicted.log_magnitude - target.log_magnitude
        # Quadratic up to 2 nepers: partials stand out of a young model's blur by as much, and L1 pulls no harder there.
        loud_error = F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=2.0)
        turn = torch.view_as_real(predicted.advance - target.advance).square().sum(-1)
        # One ratio a crop: a norm over the batch would let loud crops drown soft ones.
        convergence = _norm(a - b) / (_norm(b) + 0.02)
        return {
            "log_magnitude": error.abs().mean(),
            "loud_log_magnitude": _weighted(loud_error, b.sqrt()),
            "convergence": convergence.mean(),
            "log_mel": (mel_a - mel_b).abs().mean(),
            "advance": _weighted(turn, target.weight.sqrt()),
        }


def _weighted(x: Tensor, weight: Tensor) -> Tensor:
    """Mean over a crop by weight, then over crops; crops without sound count little."""
    return ((weight * x).sum((1, 2)) / (weight.sum((1, 2)) + 1)).mean()


def _norm(x: Tensor) -> Tensor:
    return (x.square().sum((1, 2)) + 1e-12).sqrt()


def total_loss(
    network: Autoencoder, loss: ReconstructionLoss, wave: Tensor, noise: Tensor, kl_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The training loss and its terms; `noise` [B, C, L] draws from the posterior."""
    with torch.no_grad():
        target = network.analyse(wave)
    mean, log_variance = network.encode(target)
    terms = loss(network.predict(mean + (0.5 * log_variance).exp() * noise), target)
    reconstruction = sum(terms.values())
    terms["kl"] = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return reconstruction + kl_weight * terms["kl"], terms


# --- the loop -------------------------------------------------------------------------------------------------------


@dataclass
class TrainState:
    """All that a resumed run needs, saved as one file."""

    network: Autoencoder
    ema: Autoencoder
    optimizer: torch.optim.AdamW
    generator: torch.Generator
    step: int = 0
    seconds: float = 0.0


def init_state(config: CodecTrainConfig, device: torch.device | str) -> TrainState:
    """Fresh weights and generator of the configured seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network, ema = Autoencoder(config.model), Autoencoder(config.model)
    ema.load_state_dict(network.state_dict())
    network, ema = network.to(device), ema.to(device).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    return TrainState(network, ema, optimizer, torch.Generator().manual_seed(config.seed))


def save_state(state: TrainState, config: CodecTrainConfig, folder: Path) -> None:
    """All of it as one file; see `write_state`."""
    tensors = {f"network.{k}": v for k, v in state.network.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in state.ema.state_dict().items()}
    tensors |= adam_tensors(state.optimizer, state.network, "adam.")
    tensors["generator"] = state.generator.get_state()
    write_state(folder, tensors, {"step": state.step, "seconds": state.seconds, "config": asdict(config)})


def load_state(config: CodecTrainConfig, folder: Path, device: torch.device | str) -> TrainState:
    """Go on from a saved state.

    Raises:
        UserError: there is none, or it was made with another model, batch, seed or data mixture.
    """
    meta, tensors = read_state(folder, asdict(config))
    state = init_state(config, device)
    state.network.load_state_dict(part(tensors, "network."))
    state.ema.load_state_dict(part(tensors, "ema."))
    restore_adam(state.optimizer, state.network, part(tensors, "adam."))
    state.generator.set_state(tensors["generator"])
    state.step, state.seconds = meta["step"], meta["seconds"]
    return state


def train_step(
    state: TrainState, loss: ReconstructionLoss, batch: Tensor, config: CodecTrainConfig
) -> dict[str, float]:
    """One optimiser step on [B, T] crops; returns the loss and its terms."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate_at(state.step, progress_of(state, config), config)
    frames = math.ceil(batch.shape[-1] / config.model.hop_samples)
    noise = torch.randn(len(batch), config.model.channels, frames, generator=state.generator)
    value, terms = total_loss(state.network, loss, batch, noise.to(batch.device), config.kl_weight)
    state.optimizer.zero_grad(set_to_none=True)
    value.backward()
    norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), 2.0)
    if torch.isfinite(norm):
        state.optimizer.step()
    decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        torch._foreach_lerp_(list(state.ema.parameters()), list(state.network.parameters()), 1 - decay)
    state.step += 1
    return {"loss": value.item(), "grad_norm": norm.item(), **{k: v.item() for k, v in terms.items()}}


@torch.inference_mode()
def measure_latents(network: Autoencoder, waves: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C] of the posterior means over whole sounds, in float64."""
    device = network.latent_mean.device
    latents = torch.cat([_mean_latents(network, w.to(device)).double().cpu() for w in waves], dim=1)
    return latents.mean(1), latents.std(1).clamp_min(1e-4)


def _mean_latents(network: Autoencoder, wave: Tensor) -> Tensor:
    return network.encode(network.analyse(wave[None]))[0][0]


@torch.inference_mode()
def validate(network: Autoencoder, loss: ReconstructionLoss, waves: list[Tensor]) -> dict[str, float]:
    """Loss terms on whole sounds, from posterior means, and the posterior's spread."""
    sums: dict[str, float] = {}
    for wave in waves:
        target = network.analyse(wave[None].to(network.latent_mean.device))
        mean, log_variance = network.encode(target)
        terms = {k: v.item() for k, v in loss(network.predict(mean), target).items()}
        terms["posterior_std"] = (0.5 * log_variance).exp().mean().item()
        terms["latent_std"] = mean.std().item()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value / len(waves)
    return sums


def train_codec(
    source: Path,
    out: Path,
    config: CodecTrainConfig,
    *,
    extra: tuple[Path, ...] = (),
    resume: bool = False,
    device: torch.device | str = "cpu",
) -> AutoencoderCodec:
    """Train, and leave in `out`: codec.safetensors (averaged weights), state.safetensors (to resume), log, config.

    Trains on split "train" of `source` (and of every folder in `extra`), measures on "valid", never reads "test". The
    codec is written beside every checkpoint, so an interrupted run leaves a usable one.

    Raises:
        UserError: unusable sounds, an output folder that holds another run, or a resume under other options.
    """
    refuse_used(out, resume)
    material = read_material(source, extra, config.model.sample_rate_hz)
    state = load_state(config, out, device) if resume else init_state(config, device)
    loss = ReconstructionLoss(config.model, device)

    def step() -> dict[str, float]:
        batch = draw_batch(material.training, material.others, config, state.generator)
        return train_step(state, loss, batch.to(state.network.latent_mean.device), config)

    run_loop(
        state,
        config,
        out,
        title="training the codec",
        facts={**material.hours(config.model.sample_rate_hz), "parameters": _count(state.network)},
        step=step,
        measure=lambda: validate(state.ema, loss, material.valid_waves),
        checkpoint=lambda: _checkpoint(state, config, material, out),
    )
    return AutoencoderCodec(state.ema)


def _checkpoint(state: TrainState, config: CodecTrainConfig, material: Material, out: Path) -> None:
    generator, training = torch.Generator().manual_seed(0), material.training
    chosen = torch.randperm(len(training), generator=generator)[:256].tolist()
    mean, std = measure_latents(state.ema, [training.wave(i)[: 160 * state.ema.config.hop_samples] for i in chosen])
    state.ema.latent_mean.copy_(mean)
    state.ema.latent_std.copy_(std)
    save_state(state, config, out)
    save_codec(state.ema, out)


def _count(network: Autoencoder) -> int:
    return sum(p.numel() for p in network.parameters())
