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
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from segue.codecs import SHIPPED
from segue.codecs.autoencoder import DECODER, Analysis, Autoencoder, AutoencoderCodec, save_codec
from segue.training.codec import ReconstructionLoss, validate
from segue.training.codec_loop import (
    STATE,
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
from segue.training.sounds import draw_crops, read_material
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
        self.bins, self.pool = bins, pool
        sizes = (3, width, 2 * width, 2 * width)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (3, 2 * s + 1), stride=(1, s), padding=(1, s)))
            for a, b, s in zip(sizes[:-1], sizes[1:], strides, strict=True)
        )
        self.score = weight_norm(nn.Conv2d(sizes[-1], 1, 3, padding=1))

    def forward(self, picture: Tensor) -> list[Tensor]:
        """The features of every layer, the scores last."""
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
    level = analysis.log_magnitude.clamp(max=3)
    before = F.pad(level, (0, 0, 1, 0), value=-14.0)[:, :-1]
    presence = (0.15 * (level + before)).exp()
    turn = torch.view_as_real(analysis.advance)
    turn = turn / turn.square().sum(-1, keepdim=True).add(1e-6).sqrt().clamp_min(0.05) * presence[..., None]
    return torch.cat([(level[..., None] + 7) / 3.5, turn], dim=-1).permute(0, 3, 1, 2)


def discriminator_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """Least squares: 1 on analyses, 0 on predictions; the mean over views. 0.5 is guessing."""
    return sum((1 - r[-1]).square().mean() + f[-1].square().mean() for r, f in zip(real, fake, strict=True)) / len(real)


def decoder_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> dict[str, Tensor]:
    """What the decoder is told by the discriminators: to be scored 1, and to give the same features."""
    fooling = sum((1 - f[-1]).square().mean() for f in fake) / len(fake)
    distances = [
        (a - b).abs().mean() / b.abs().mean().clamp_min(1e-6)
        for r, f in zip(real, fake, strict=True)
        for b, a in zip(r[:-1], f[:-1], strict=True)
    ]
    return {"fooling": fooling, "feature_matching": sum(distances) / len(distances)}


@dataclass
class RefineState:
    """All that a resumed run needs. `network` and `ema` share the frozen encoder's values."""

    network: Autoencoder
    ema: Autoencoder
    discriminators: Discriminators
    optimizer: torch.optim.AdamW
    discriminator_optimizer: torch.optim.AdamW
    generator: torch.Generator
    step: int = 0
    seconds: float = 0.0
    adversary: bool = True
    reference: float = 0.0


def init_refinement(codec: AutoencoderCodec, config: RefineConfig, device: torch.device | str) -> RefineState:
    """The codec's weights, fresh discriminators; everything outside the decoder is frozen."""
    network, ema = Autoencoder(codec.config), Autoencoder(codec.config)
    for copy in (network, ema):
        copy.load_state_dict(codec.network.state_dict())
        copy.to(device).requires_grad_(False)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(DECODER))
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
    return RefineState(network, ema, discriminators, optimizer, discriminator_optimizer, generator)


def save_refinement(state: RefineState, config: RefineConfig, origin: dict, folder: Path) -> None:
    """One file for the state (discriminators included), one for the codec (without them)."""
    tensors = {f"network.{k}": v for k, v in state.network.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in state.ema.state_dict().items()}
    tensors |= {f"discriminators.{k}": v for k, v in state.discriminators.state_dict().items()}
    tensors |= adam_tensors(state.optimizer, state.network, "adam.")
    tensors |= adam_tensors(state.discriminator_optimizer, state.discriminators, "discriminator_adam.")
    tensors["generator"] = state.generator.get_state()
    numbers = {k: getattr(state, k) for k in ("step", "seconds", "adversary", "reference")}
    write_state(folder, tensors, {**numbers, "config": asdict(config), "origin": origin})
    save_codec(state.ema, folder)


def load_refinement(
    codec: AutoencoderCodec, config: RefineConfig, folder: Path, device: torch.device | str
) -> RefineState:
    """Go on from a saved state.

    Raises:
        UserError: there is none, or it refines another codec or under other options.
    """
    meta, tensors = read_state(folder, asdict(config))
    state = init_refinement(codec, config, device)
    for name in ("network", "ema", "discriminators"):
        getattr(state, name).load_state_dict(part(tensors, f"{name}."))
    restore_adam(state.optimizer, state.network, part(tensors, "adam."))
    restore_adam(state.discriminator_optimizer, state.discriminators, part(tensors, "discriminator_adam."))
    state.generator.set_state(tensors["generator"])
    for name in ("step", "seconds", "adversary", "reference"):
        setattr(state, name, meta[name])
    return state


def refine_step(state: RefineState, loss: ReconstructionLoss, batch: Tensor, config: RefineConfig) -> dict[str, float]:
    """One step of the discriminators, then one of the decoder, on [B, T] crops; returns the loss and its terms."""
    network = state.network
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate_at(state.step, progress_of(state, config), config)
    with torch.no_grad():
        target = network.analyse(batch)
        mean, log_variance = network.encode(target)
        noise = torch.randn(mean.shape, generator=state.generator).to(mean)
        latents = mean + (0.5 * log_variance).exp() * noise
    prediction = network.predict(latents)
    outputs = (prediction.log_magnitude, prediction.advance)
    terms = loss(prediction, target)
    value = sum(terms.values())
    gradients = torch.autograd.grad(value, outputs)
    if state.adversary and config.adversarial_share > 0:
        share = config.adversarial_share * min(1.0, (state.step + 1) / config.adversary_steps)
        fake, real = (picture_of(a)[: config.adversarial_crops] for a in (prediction, target))
        told = _adversary(state, fake, real, outputs, terms)
        gradients = tuple(g + balanced(a, g, share) for g, a in zip(gradients, told, strict=True))
    state.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(outputs, gradients)
    norm = torch.nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], 2.0)
    if torch.isfinite(norm):
        state.optimizer.step()
    decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for name in DECODER:
            averaged, current = (list(getattr(n, name).parameters()) for n in (state.ema, network))
            torch._foreach_lerp_(averaged, current, 1 - decay)
    state.step += 1
    return {"loss": value.item(), "grad_norm": norm.item(), **{k: v.item() for k, v in terms.items()}}


def _adversary(state: RefineState, fake: Tensor, real: Tensor, outputs: tuple, terms: dict[str, Tensor]):
    """Train the discriminators on this batch, then ask them: gradients on the prediction; adds to `terms`."""
    critic, optimizer = state.discriminators, state.discriminator_optimizer
    terms["discriminator"] = discriminator_loss(critic(real), critic(fake.detach()))
    optimizer.zero_grad(set_to_none=True)
    terms["discriminator"].backward()
    norm = torch.nn.utils.clip_grad_norm_(critic.parameters(), 10.0)
    if torch.isfinite(norm):
        optimizer.step()
    with torch.no_grad():
        wanted = critic(real)
    told = decoder_loss(wanted, critic(fake))
    terms |= told
    return torch.autograd.grad(told["fooling"] + 2 * told["feature_matching"], outputs)


def balanced(adversarial: Tensor, reconstruction: Tensor, share: float) -> Tensor:
    """A gradient scaled to `share` of another's norm; zero where either is not finite."""
    norm, wanted = adversarial.norm(), share * reconstruction.norm()
    if not bool(torch.isfinite(norm) & torch.isfinite(wanted)):
        return torch.zeros_like(adversarial)
    return adversarial * (wanted / norm.clamp_min(1e-20))


def guard(state: RefineState, loss: ReconstructionLoss, waves: list[Tensor], config: RefineConfig) -> None:
    """At the first step keep what held-out sounds cost; later, every `guard_steps`, drop an adversary that harms them.

    A pure function of the state at a step, so that a run bounded by steps repeats.
    """
    if state.step % config.guard_steps:
        return
    measured = validate(state.ema, loss, waves)
    total = sum(measured[k] for k in ("log_magnitude", "log_mel", "convergence"))
    if state.step == 0:
        state.reference = total
    state.adversary = state.adversary and total <= config.guard_ratio * state.reference


def refine_codec(
    codec: AutoencoderCodec,
    source: Path,
    out: Path,
    config: RefineConfig,
    *,
    origin: dict | None = None,
    extra: tuple[Path, ...] = (),
    resume: bool = False,
    device: torch.device | str = "cpu",
) -> AutoencoderCodec:
    """Train the decoder of a codec on, with an adversary, and leave in `out` what `train_codec` leaves.

    Latents of the codec that comes out are those of the one that went in, bit for bit. Reads splits as `train_codec`.

    Args:
        origin: how the codec was trained, for the card.

    Raises:
        UserError: unusable sounds, an output folder that holds another run, or a resume under other options.
    """
    refuse_used(out, resume)
    if not 0 <= config.adversarial_share <= 1:
        raise UserError(f"adversarial share {config.adversarial_share}; mend: give 0 (none) to 1 (as much as the rest)")
    rate_hz = codec.sample_rate_hz
    material = read_material(source, extra, rate_hz)
    config = replace(config, latents_sha256=codec.weights_sha256(latents_only=True))
    state = load_refinement(codec, config, out, device) if resume else init_refinement(codec, config, device)
    loss = ReconstructionLoss(codec.config, device)
    samples = round(config.crop_sec * rate_hz)

    def step() -> dict[str, float]:
        guard(state, loss, material.valid_waves, config)
        sounds = (material.training, material.others, config.extra_share)
        batch = draw_crops(*sounds, config.batch_size, samples, state.generator)
        return refine_step(state, loss, batch.to(device), config)

    run_loop(
        state,
        config,
        out,
        title="refining the decoder",
        facts={
            **material.hours(rate_hz),
            "discriminator_parameters": sum(p.numel() for p in state.discriminators.parameters()),
        },
        step=step,
        measure=lambda: {**validate(state.ema, loss, material.valid_waves), "adversary": state.adversary},
        checkpoint=lambda: save_refinement(state, config, origin or {}, out),
    )
    return AutoencoderCodec(state.ema)


def origin_of(name_or_folder: str) -> dict:
    """How a codec was trained: from its card, else its training state; empty where neither is there."""
    folder = SHIPPED if name_or_folder == "autoencoder" else Path(name_or_folder)
    if (folder / "card.json").is_file():
        return json.loads((folder / "card.json").read_text(encoding="utf-8"))["training"]
    if not (folder / STATE).is_file():
        return {}
    with safe_open(folder / STATE, "pt") as file:
        state = json.loads(file.metadata()["state"])
    return {"steps": state["step"], "hours": round(state["seconds"] / 3600, 2), "config": state["config"]}
