"""How far a codec's prediction is from the analysis of the sound: the parts of its training loss.

Nothing is differentiated through a synthesis: the network predicts STFT magnitudes and phase advances, and is compared
with the analysis of the sound. Convergence is Arik et al.'s (1808.06719). The advance term (our definition) is the
squared distance of a complex prediction from the unit vector at the true advance, weighted by the square root of the
magnitude: its minimum is the mean direction, shortened where the advance cannot be known.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.codecs.autoencoder import Analysis, AutoencoderConfig
from segue.codecs.blocks import FrameNetwork
from segue.codecs.mid_side import GIVEN, MidSideAutoencoder
from segue.evaluation.mel import mel_edges_hz, triangular_bands
from segue.training.codec.mid_side_losses import MidSideLoss

Loss = Callable[..., dict[str, Tensor]]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 matrices are faster there: on GPUs, and on CPUs with tiles for them."""
    return device.type == "cuda" or (device.type == "cpu" and torch.cpu._is_amx_tile_supported())


class ReconstructionLoss:
    """Distances between an analysis and its prediction, each of order one."""

    def __init__(self, config: AutoencoderConfig, device: torch.device | str) -> None:
        self.floor = config.floor
        edges_hz = mel_edges_hz(80, 0.0, config.sample_rate_hz / 2)
        self.mel = triangular_bands(edges_hz, 2 * config.hop_samples, config.sample_rate_hz).to(device).T

    def __call__(self, predicted: Analysis, target: Analysis) -> dict[str, Tensor]:
        """Scalar losses by name."""
        assert target.weight is not None  # an analysis of sound has one, a prediction has none
        # Clamped, since exp of a young network's output could overflow.
        a = predicted.log_magnitude.clamp(max=3).exp()
        b = target.log_magnitude.exp()
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
    # Plus one: a crop of silence has no weights to divide by.
    return ((weight * x).sum((1, 2)) / (weight.sum((1, 2)) + 1)).mean()


def _norm(x: Tensor) -> Tensor:
    return (x.square().sum((1, 2)) + 1e-12).sqrt()


def total_loss(
    network: FrameNetwork,
    loss: Loss,
    wave: Tensor,
    noise: Tensor,
    kl_weight: float,
    mask: Tensor | float = 1.0,
    decoded: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The training loss and its parts; `noise` [B, C, L] draws from the posterior, `mask` [B, C, 1] goes over it.

    `decoded` adds the distance of the decoded sound, of a stereo codec.
    """
    with torch.no_grad():
        target = network.analyse(wave)
    # Where a machine multiplies matrices of bfloat16 faster, the network runs in it; losses stay in float32.
    fast = isinstance(network, MidSideAutoencoder) and has_fast_bfloat16(wave.device)
    with torch.autocast(wave.device.type, torch.bfloat16, enabled=fast):
        mean, log_variance = network.encode(target)
        prediction = network.predict((mean + (0.5 * log_variance).exp() * noise) * mask)
    losses = loss(prediction, target)
    if decoded:
        assert isinstance(loss, MidSideLoss)
        losses["decoded"] = 1.5 * loss.decoded(prediction, wave)
    # KL is reported beside the others, and weighted in the total alone.
    reconstruction = sum(losses.values())
    losses["kl"] = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return reconstruction + kl_weight * losses["kl"], losses


def consistency(network: FrameNetwork, wave: Tensor, gain: Tensor) -> Tensor:
    """How far a gain [B] moves the latents, all but the first GIVEN: squared distance over their variance.

    After PoDAR (2605.10084): loudness then has channels of its own.
    """
    with torch.no_grad():
        plain, louder = network.analyse(wave), network.analyse(wave * gain.view(-1, *[1] * (wave.ndim - 1)))
    means = [network.encode(analysis)[0][:, GIVEN:] for analysis in (plain, louder)]
    # Relative to their variance, or shrinking all latents would pay.
    spread = means[0].detach().var(dim=(0, 2)).mean().clamp_min(1e-4)
    return (means[0] - means[1]).square().mean() / spread


@torch.inference_mode()
def validate(network: FrameNetwork, loss: Loss, waves: list[Tensor]) -> dict[str, float]:
    """Losses on whole sounds, from posterior means, and the posterior's spread."""
    sums: dict[str, float] = {}
    for wave in waves:
        target = network.analyse(wave[None].to(network.latent_mean.device))
        mean, log_variance = network.encode(target)
        losses = {k: v.item() for k, v in loss(network.predict(mean), target).items()}
        losses["posterior_std"] = (0.5 * log_variance).exp().mean().item()
        losses["latent_std"] = mean.std().item()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value / len(waves)
    return sums
