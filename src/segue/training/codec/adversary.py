"""Refining a codec's decoder with its encoder frozen: latents, and every cache made of them, stay as they are.

    decoder loss = reconstruction + adversary, where the adversary's gradient on the prediction is scaled to a fixed
                   share of the reconstruction's

Reconstruction alone returns the median of what a latent may stand for: loud partials too soft, gaps between them too
full. Small patch discriminators (Isola et al. 1611.07004, least squares as Mao et al. 1611.04076) with feature matching
(Larsen et al. 1512.09300) look at the predicted log magnitudes and phase advances beside analysed ones, as pictures of
time by frequency; like the other losses, they need nothing to be differentiated through a synthesis. Scaling gradients
in place of losses is EnCodec's balancer (Défossez et al. 2210.13438): an adversary that wins or fails cannot outweigh
the rest, and no weight has to be found.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from segue.codecs import SHIPPED
from segue.codecs.autoencoder import DECODER, Analysis, Autoencoder, AutoencoderCodec, save_codec
from segue.data.reading import DataSource
from segue.training.codec.codec_losses import ReconstructionLoss, validate
from segue.training.small_run import (
    STATE,
    SmallRun,
    add_up,
    average,
    descend,
    early_decay,
    read_meta,
    refuse_used,
    run_loop,
)
from segue.training.training_audio import draw_crops, read_training_audio
from segue.types import UserError


@dataclass(frozen=True)
class RefineConfig:
    """How a decoder is refined.

    Attributes:
        steps, minutes: as in CodecTrainConfig; only a run bounded by steps repeats bit for bit.
        batch_size: crops a step. crop_sec: seconds a crop.
        learning_rate: peak of the decoder's AdamW. discriminator_rate: the discriminators', constant.
        warmup_steps: of the learning rate. adversary_steps: over which the adversary's share rises from zero.
        adversarial_share: norm of the adversary's gradient over that of the reconstruction's; 0 leaves it out.
        adversarial_crops: how many crops of a batch the discriminators see; on all they would double a step's time.
        extra_share: share of crops drawn from the extra sounds, where any are given.
        ema_decay: decay of the averaged weights that are kept.
        guard_steps: steps between checks that the reconstruction of whole held-out sounds has not become worse than
            `guard_ratio` times what it was at the start; if it has, the adversary is left out from there on.
        seed: of the discriminators and of every draw.
        save_every_sec, validate_every_sec: seconds between checkpoints, and between measures on the valid split.
        latents_sha256: of the codec that is refined; filled in by `refine_codec`.
    """

    steps: int | None = None
    minutes: float = 30.0
    batch_size: int = 8
    crop_sec: float = 1.024
    learning_rate: float = 2e-4
    discriminator_rate: float = 3e-4
    warmup_steps: int = 100
    adversary_steps: int = 500
    adversarial_share: float = 0.2
    adversarial_crops: int = 2
    extra_share: float = 0.15
    ema_decay: float = 0.999
    guard_steps: int = 500
    guard_ratio: float = 1.3
    seed: int = 0
    save_every_sec: float = 120.0
    validate_every_sec: float = 240.0
    latents_sha256: str = ""


class PatchDiscriminator(nn.Module):
    """Strided convolutions over a picture [B, 3, frames, bins], to a score for every patch of it.

    Args:
        bins: how many of the lowest bins it sees; None for all. pool: (frames, bins) averaged together at first.
        strides: of each layer along frequency.
        width: features of the first layer; the others have twice as many.
    """

    def __init__(self, bins: int | None, pool: tuple[int, int], strides: tuple[int, int, int], width: int = 8) -> None:
        super().__init__()
        self.bins = bins
        self.pool = pool
        # Each layer but the first has twice the features of the first: small networks, since every step trains them.
        sizes = (3, width, 2 * width, 2 * width)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (3, 2 * s + 1), stride=(1, s), padding=(1, s)))
            for a, b, s in zip(sizes[:-1], sizes[1:], strides, strict=True)
        )
        self.score = weight_norm(nn.Conv2d(sizes[-1], 1, 3, padding=1))

    def forward(self, picture: Tensor) -> list[Tensor]:
        """The features of every layer, the scores last."""
        # The lowest bins alone, for a view of partials, or all; pooled, for a view of envelopes.
        x = F.avg_pool2d(picture[..., : self.bins], self.pool)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return [*features, self.score(x)]


class Discriminators(nn.Module):
    """Three views: the whole spectrogram, its lowest quarter in detail (partials), all of it coarsely (envelopes)."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.views = nn.ModuleList(
            [
                PatchDiscriminator(None, (1, 1), (4, 4, 2)),
                PatchDiscriminator(bins // 4, (1, 1), (2, 2, 2)),
                PatchDiscriminator(None, (2, 4), (2, 2, 2)),
            ]
        )

    def forward(self, picture: Tensor) -> list[list[Tensor]]:
        """Features and scores by view."""
        return [view(picture) for view in self.views]


def picture_of(analysis: Analysis) -> Tensor:
    """What discriminators see [B, 3, frames, bins]: scaled log magnitude, and unit advance, faint where sound is.

    An analysis and a prediction are treated alike: the modulus of a predicted advance, which a synthesis does not use,
    would give it away.
    """
    # The same clamp as in the loss (codec_losses.py).
    level = analysis.log_magnitude.clamp(max=3)
    before = F.pad(level, (0, 0, 1, 0), value=-14.0)[:, :-1]
    # A phase advance means something only where there is sound, now and a frame before.
    presence = (0.15 * (level + before)).exp()
    turn = torch.view_as_real(analysis.advance)
    # The modulus goes; near zero it has no direction, and the floors keep its gradient finite.
    turn = turn / turn.square().sum(-1, keepdim=True).add(1e-6).sqrt().clamp_min(0.05) * presence[..., None]
    return torch.cat([(level[..., None] + 7) / 3.5, turn], dim=-1).permute(0, 3, 1, 2)


def discriminator_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """Least squares: 1 on analyses, 0 on predictions; the mean over views. 0.5 is guessing."""
    views = zip(real, fake, strict=True)
    return add_up((1 - r[-1]).square().mean() + f[-1].square().mean() for r, f in views) / len(real)


def decoder_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> dict[str, Tensor]:
    """Adversarial losses of the decoder: its sound is to be scored 1, and to give the same features."""
    fooling = add_up((1 - f[-1]).square().mean() for f in fake) / len(fake)
    # Relative to the real features: layers of large values would outweigh the others.
    distances = [
        (a - b).abs().mean() / b.abs().mean().clamp_min(1e-6)
        for r, f in zip(real, fake, strict=True)
        for b, a in zip(r[:-1], f[:-1], strict=True)
    ]
    return {"fooling": fooling, "feature_matching": add_up(distances) / len(distances)}


@dataclass
class RefineRun(SmallRun):
    """A refinement between two steps. `network` and `ema` share the frozen encoder's values.

    Attributes:
        adversary: whether it is still asked. reference: what held-out sounds cost at the start.
    """

    modules = ("network", "ema", "discriminators")
    optimizers = (
        ("adam.", "optimizer", "network"),
        ("discriminator_adam.", "discriminator_optimizer", "discriminators"),
    )
    numbers = ("step", "seconds", "adversary", "reference")

    network: Autoencoder
    ema: Autoencoder
    discriminators: Discriminators
    optimizer: torch.optim.AdamW
    discriminator_optimizer: torch.optim.AdamW
    adversary: bool = True
    reference: float = 0.0


def start(codec: AutoencoderCodec, config: RefineConfig, device: torch.device | str) -> RefineRun:
    """The codec's weights, fresh discriminators; everything outside the decoder is frozen."""
    network = Autoencoder(codec.config)
    ema = Autoencoder(codec.config)
    for copy in (network, ema):
        copy.load_state_dict(codec.network.state_dict())
        copy.to(device).requires_grad_(False)
    # Only the decoder learns: latents stay what they are.
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(DECODER))
    # Weights are drawn from the seed without disturbing anybody's random state.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        discriminators = Discriminators(network.bins).to(device)
    optimizer = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad],
        lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True,
    )  # fmt: skip
    discriminator_optimizer = torch.optim.AdamW(
        discriminators.parameters(), lr=config.discriminator_rate, betas=(0.5, 0.9), weight_decay=0.01, fused=True
    )
    generator = torch.Generator().manual_seed(config.seed)
    return RefineRun(network, ema, discriminators, optimizer, discriminator_optimizer, generator=generator)


def refine_step(run: RefineRun, loss: ReconstructionLoss, batch: Tensor, config: RefineConfig) -> dict[str, float]:
    """One step of the discriminators, then one of the decoder, on [B, T] crops; returns the loss and its parts."""
    network = run.network
    run.set_learning_rate(run.optimizer, config)
    # The encoder is frozen: no gradient is kept for it.
    with torch.no_grad():
        target = network.analyse(batch)
        mean, log_variance = network.encode(target)
        noise = torch.randn(mean.shape, generator=run.generator).to(mean)
        latents = mean + (0.5 * log_variance).exp() * noise
    prediction = network.predict(latents)
    outputs = (prediction.log_magnitude, prediction.advance)
    losses = loss(prediction, target)
    value = add_up(losses.values())
    # On the outputs alone: the decoder is gone through once, for both losses together.
    gradients = torch.autograd.grad(value, outputs)
    if run.adversary and config.adversarial_share > 0:
        # The share rises from zero, since fresh discriminators know nothing.
        share = config.adversarial_share * min(1.0, (run.step + 1) / config.adversary_steps)
        fake, real = (picture_of(a)[: config.adversarial_crops] for a in (prediction, target))
        adversarial = _adversary(run, fake, real, outputs, losses)
        gradients = tuple(g + balanced(a, g, share) for g, a in zip(gradients, adversarial, strict=True))
    # Gradients on the decoder's outputs go back through it together.
    run.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(outputs, gradients)
    norm = descend(run.optimizer, [p for p in network.parameters() if p.requires_grad], 2.0)
    # Averaged like the weights of training; frozen parts are the same in both.
    for name in (part for part in DECODER if hasattr(network, part)):
        average(getattr(run.ema, name), getattr(network, name), early_decay(config.ema_decay, run.step))
    run.step += 1
    return {"loss": value.item(), "grad_norm": norm.item(), **{k: v.item() for k, v in losses.items()}}


def _adversary(run: RefineRun, fake: Tensor, real: Tensor, outputs: tuple, losses: dict[str, Tensor]):
    """Train the discriminators on this batch, then score the prediction: gradients on it; adds to `losses`."""
    critic = run.discriminators
    optimizer = run.discriminator_optimizer
    losses["discriminator"] = discriminator_loss(critic(real), critic(fake.detach()))
    optimizer.zero_grad(set_to_none=True)
    losses["discriminator"].backward()
    descend(optimizer, critic.parameters(), 10.0)
    # Scored by the discriminators as they are after their step.
    with torch.no_grad():
        wanted = critic(real)
    # Features of real sounds are targets: no gradient runs into them.
    scores = decoder_loss(wanted, critic(fake))
    losses |= scores
    return torch.autograd.grad(scores["fooling"] + 2 * scores["feature_matching"], outputs)


def balanced(adversarial: Tensor, reconstruction: Tensor, share: float) -> Tensor:
    """A gradient scaled to `share` of another's norm; zero where either is not finite."""
    norm = adversarial.norm()
    wanted = share * reconstruction.norm()
    if not bool(torch.isfinite(norm) & torch.isfinite(wanted)):
        return torch.zeros_like(adversarial)
    return adversarial * (wanted / norm.clamp_min(1e-20))


def guard(run: RefineRun, loss: ReconstructionLoss, waves: list[Tensor], config: RefineConfig) -> None:
    """At the first step keep what held-out sounds cost; later, every `guard_steps`, drop an adversary that harms them.

    A pure function of the state at a step, so that a run bounded by steps repeats.
    """
    if run.step % config.guard_steps:
        return
    measured = validate(run.ema, loss, waves)
    total = sum(measured[k] for k in ("log_magnitude", "log_mel", "convergence"))
    if run.step == 0:
        run.reference = total
    run.adversary = run.adversary and total <= config.guard_ratio * run.reference


def refine_codec(
    codec: AutoencoderCodec,
    source: Path | DataSource,
    out: Path,
    config: RefineConfig,
    *,
    origin: dict | None = None,
    extra: tuple[Path, ...] = (),
    resume: bool = False,
    skip_bad: bool = False,
    device: torch.device | str = "cpu",
) -> AutoencoderCodec:
    """Train the decoder of a codec on, with an adversary, and leave in `out` what `train_codec` leaves.

    Latents of the codec that comes out are those of the one that went in, bit for bit. Reads splits as `train_codec`.

    Args:
        origin: how the codec was trained, for the card.
        skip_bad: leave files out that cannot be used, instead of refusing.

    Raises:
        UserError: unusable sounds, an output folder that holds another run, or a resume under other options.
    """
    refuse_used(out, resume)
    if not 0 <= config.adversarial_share <= 1:
        raise UserError(f"adversarial share {config.adversarial_share}; hint: give 0 (none) to 1 (as much as the rest)")
    rate_hz = codec.sample_rate_hz
    audio = read_training_audio(source, extra, rate_hz, skip_bad)
    # The latents' weights are part of the configuration: a run of another codec is not resumed.
    config = replace(config, latents_sha256=codec.weights_sha256(latents_only=True))
    run = start(codec, config, device)
    if resume:
        run.load(out, config)
    loss = ReconstructionLoss(codec.config, device)
    samples = round(config.crop_sec * rate_hz)

    def step() -> dict[str, float]:
        # Before the step, so that a resumed run meets the same checks.
        guard(run, loss, audio.valid_waves, config)
        sounds = (audio.training, audio.others, config.extra_share)
        batch = draw_crops(*sounds, config.batch_size, samples, run.generator)
        return refine_step(run, loss, batch.to(device), config)

    def checkpoint() -> None:
        run.save(out, config, origin=origin or {})
        save_codec(run.ema, out)

    run_loop(
        run,
        config,
        out,
        title="refining the decoder",
        facts={
            **audio.hours(rate_hz),
            "discriminator_parameters": sum(p.numel() for p in run.discriminators.parameters()),
        },
        step=step,
        measure=lambda: {**validate(run.ema, loss, audio.valid_waves), "adversary": run.adversary},
        checkpoint=checkpoint,
    )
    return AutoencoderCodec(run.ema)


def origin_of(name_or_folder: str) -> dict:
    """How a codec was trained: from its card, else its training state; empty where neither is there."""
    folder = SHIPPED if name_or_folder == "autoencoder" else Path(name_or_folder)
    if (folder / "card.json").is_file():
        return json.loads((folder / "card.json").read_text(encoding="utf-8"))["training"]
    if not (folder / STATE).is_file():
        return {}
    state = read_meta(folder)
    return {"steps": state["step"], "hours": round(state["seconds"] / 3600, 2), "config": state["config"]}
