"""A stereo autoencoder over mid and side spectra: the wide-band network behind `segue codec train --channels 2`.

As in codecs/autoencoder.py, latents hold no absolute phase and everything runs on STFT frames. Mid is half the sum of
left and right, and side half their difference. The network sees, and predicts, of every frame: the log magnitudes of
mid and of side, how far the phase of both advances from frame to frame, and how side is turned against mid, which
decides what is left and what is right. Two latent channels are given and not learned (our definition): the level of the
frame, and the width, which is side's level over that of the whole. All else is relative to the two, so that no other
channel changes with the gain of a recording, and a width at its lower end is exactly mono.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.codecs.blocks import FrameConfig, FrameNetwork, blocks

GIVEN = 2  # latent channels that are given: level and width
LOWEST_WIDTH = -6.0  # nepers: side 52 dB below the whole
MONO_WIDTH = -5.5  # at this width and below, a decoded sound is mono
_LEVEL = (-7.0, 3.5)  # centre and scale of the two in raw latents
_WIDTH = (-3.0, 1.5)
_BAND = (-6.0, 3.0)  # of a band's log magnitude over its frame's level
_POOLED = (4, 8)  # bins to a band in the second quarter of the spectrum, and in its upper half


@dataclass(frozen=True)
class MidSideConfig(FrameConfig):
    """Shapes of the stereo autoencoder: about 43 latent frames a second, the first channels level and width."""

    hop_hz = 1378

    sample_rate_hz: int = 44100
    hop_samples: int = 1024
    channels: int = 64
    encoder_width: int = 384
    decoder_width: int = 448


@dataclass(frozen=True)
class MidSideAnalysis:
    """What the network sees of a stereo sound, and what it predicts; bands are bins, pooled above a quarter.

    Attributes:
        mid, side: [B, frames, bands], natural log of magnitude + floor.
        advance: [B, frames, phase bins], complex; its angle is the common phase advance of mid and side since the frame
            before, less that of the bin's centre; the modulus is 1 in an analysis, the certainty in a prediction.
        turn: [B, frames, bands], complex; side against mid: their coherence in an analysis (modulus 1 where a band is a
            bin), a guess of it in a prediction.
        given: [B, L, 2], level and width in nepers.
        weight: [B, frames, phase bins] of the advance, [B, frames, bands] of the turn; None in a prediction.
    """

    mid: Tensor
    side: Tensor
    advance: Tensor
    turn: Tensor
    given: Tensor
    weight: tuple[Tensor, Tensor] | None = None


class MidSideAutoencoder(FrameNetwork):
    """The network. Latents here are raw; AutoencoderCodec standardises them."""

    sides = 2
    centre_advance: Tensor

    def __init__(self, config: MidSideConfig) -> None:
        super().__init__(config.hop_samples, config.refinements)
        self.config = c = config
        # The lowest quarter bin by bin, with phases; above it bands are enough, and noise has no phase.
        self.phase_bins = self.stft_hop // 2
        self.bands = self.phase_bins + self.phase_bins // _POOLED[0] + self.stft_hop // _POOLED[1]
        features = 3 * self.bands + 3 * self.phase_bins
        wide, deep = c.encoder_width, c.decoder_width
        self.features = features
        self.enter = nn.Linear(features, wide)
        self.encoder_fast = blocks(c.encoder_blocks[0], wide, c.expansion, c.kernel)
        self.down = nn.Linear(2 * wide, wide)
        self.encoder_slow = blocks(c.encoder_blocks[1], wide, c.expansion, c.kernel)
        self.to_posterior = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, 2 * (c.channels - GIVEN)))
        self.from_latent = nn.Linear(c.channels, deep)
        self.decoder_slow = blocks(c.decoder_blocks[0], deep, c.expansion, c.kernel)
        self.up = nn.Linear(deep, 2 * deep)
        self.decoder_fast = blocks(c.decoder_blocks[1], deep, c.expansion, c.kernel)
        self.to_spectrum = nn.Sequential(nn.LayerNorm(deep), nn.Linear(deep, features))
        # A linear codec of two frames together, which `start_linear` fits; the blocks learn what it misses.
        self.linear_in = nn.Linear(2 * features, c.channels - GIVEN)
        self.linear_out = nn.Linear(c.channels, 2 * features)
        self.register_buffer("latent_mean", torch.zeros(c.channels))
        self.register_buffer("latent_std", torch.ones(c.channels))
        # A hop of a quarter window advances the centre of bin k by k quarter turns.
        turns = torch.arange(self.phase_bins) % 4
        self.register_buffer(
            "centre_advance", torch.polar(torch.ones(self.phase_bins), turns * torch.pi / 2), persistent=False
        )

    def analyse(self, wave: Tensor) -> MidSideAnalysis:
        """[B, 1 or 2, T] -> two frames per latent frame; T is padded with silence to whole latent frames."""
        floor = self.config.floor
        length = ceil(wave.shape[-1] / self.config.hop_samples) * self.config.hop_samples
        wave = F.pad(wave, (0, length - wave.shape[-1]))
        left, right = wave[:, 0], wave[:, -1]
        mid, side = self.stft(torch.cat([left + right, left - right]) / 2).chunk(2)
        powers = [x.real.square() + x.imag.square() for x in (mid, side)]
        pooled = [self.pool(x) for x in powers]
        # Level and width of whole latent frames, of all bins.
        sums = [x.sum(-1).unflatten(1, (-1, 2)).mean(-1) for x in powers]
        whole = (sums[0] + sums[1]).sqrt()
        width = ((sums[1].sqrt() + 1e-10) / (whole + floor)).log().clamp(LOWEST_WIDTH, 0.0)
        given = torch.stack([(whole + floor).log(), width], dim=-1)
        # The louder of the two decides how far both advance; the first frame has none before it.
        low = [x[..., : self.phase_bins] for x in (mid, side)]
        turned = sum(x * F.pad(x, (0, 0, 1, 0))[:, :-1].conj() for x in low) * self.centre_advance.conj()
        size = turned.abs()
        across = self.pool(side * mid.conj())
        both = (pooled[0] * pooled[1]).sqrt()
        return MidSideAnalysis(
            (pooled[0].sqrt() + floor).log(),
            (pooled[1].sqrt() + floor).log(),
            turned / size.clamp_min(1e-20),
            across / both.clamp_min(1e-20),
            given,
            (size.sqrt(), both.sqrt()),
        )

    def features_of(self, analysis: MidSideAnalysis) -> Tensor:
        """[B, frames, features], relative to level and width, of order one."""
        assert analysis.weight is not None, "a prediction is not encoded again"
        level, width = self._at_frames(analysis.given)
        centre, scale = _BAND
        # Phases of silence are noise; weighed by how loud they are in their frame, they fade out of the input.
        strength = [(x * (-level).exp()).clamp(max=1.0).sqrt() for x in analysis.weight]
        advance = analysis.advance * strength[0]
        turn = analysis.turn * strength[1]
        features = [
            (analysis.mid - level - centre) / scale,
            # A side that is not there has no shape.
            (analysis.side - level - width - centre) / scale * (width > LOWEST_WIDTH),
            turn.real,
            turn.imag[..., : self.phase_bins],
            advance.real,
            advance.imag,
        ]
        return torch.cat(features, dim=-1)

    def encode(self, analysis: MidSideAnalysis) -> tuple[Tensor, Tensor]:
        """Posterior mean and log-variance, each [B, C, L]."""
        features = self.features_of(analysis)
        x = self.encoder_fast(self.enter(features))
        x = self.down(x.reshape(x.shape[0], x.shape[1] // 2, -1))
        mean, log_variance = self.to_posterior(self.encoder_slow(x)).float().chunk(2, dim=-1)
        mean = mean + self.linear_in(features.reshape(x.shape[0], x.shape[1], -1)).float()
        # What is given has a small spread of its own, so that the decoder bears a model's small errors.
        given = (analysis.given - _pair(analysis.given, 0)) / _pair(analysis.given, 1)
        mean = torch.cat([given, mean], dim=-1)
        log_variance = torch.cat([torch.full_like(given, -8.0), log_variance.clamp(-12, 4)], dim=-1)
        return mean.transpose(1, 2), log_variance.transpose(1, 2)

    def predict(self, latents: Tensor) -> MidSideAnalysis:
        """[B, C, L] raw latents -> the analysis that they stand for."""
        z = latents.transpose(1, 2)
        given = z[..., :GIVEN] * _pair(z, 1) + _pair(z, 0)
        level, width = self._at_frames(given)
        x = self.decoder_slow(self.from_latent(z))
        x = self.up(x).reshape(x.shape[0], 2 * x.shape[1], -1)
        out = self.to_spectrum(self.decoder_fast(x)).float()
        out = out + self.linear_out(z).reshape(out.shape).float()
        k, p = self.bands, self.phase_bins
        mid, side, turn_real, turn_imag, advance_real, advance_imag = out.split([k, k, k, p, p, p], dim=-1)
        centre, scale = _BAND
        return MidSideAnalysis(
            scale * mid + centre + level,
            scale * side + centre + level + width,
            torch.complex(advance_real, advance_imag),
            torch.complex(turn_real, F.pad(turn_imag, (0, k - p))),
            given,
        )

    @torch.no_grad()
    def start_linear(self, waves: list[Tensor]) -> None:
        """Fit the linear codec inside to sounds [2, T]: principal components of the features of a latent frame.

        All else adds nothing yet, so that a young codec is this one. Level and width are in the features' scale.
        """
        rows = [self.features_of(self.analyse(wave[None]))[0].reshape(-1, 2 * self.features) for wave in waves]
        x = torch.cat(rows)
        mean = x.mean(0)
        keep = self.config.channels - GIVEN
        # Seeded: the randomised method is as good as the exact one here, and needs seconds.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, spread, axes = torch.svd_lowrank(x - mean, q=keep + 16, niter=3)
        scale = (spread[:keep] / len(x) ** 0.5).clamp_min(1e-4)
        self.linear_in.weight.copy_((axes[:, :keep] / scale).T)
        self.linear_in.bias.copy_(-self.linear_in.weight @ mean)
        self.linear_out.weight[:, GIVEN:].copy_(axes[:, :keep] * scale)
        self.linear_out.weight[:, :GIVEN].zero_()
        self.linear_out.bias.copy_(mean)
        for last in (self.to_posterior[1], self.to_spectrum[1]):
            assert isinstance(last, nn.Linear)
            last.weight.mul_(0.1)
            last.bias.zero_()
            if last.out_features == 2 * keep:
                # Little noise at first: the linear codec knows none.
                last.bias[keep:] = -4.0

    def synthesise(self, prediction: MidSideAnalysis, samples: int) -> Tensor:
        """An analysis -> [B, 2, samples]: phases by adding up advances, then fast Griffin-Lim iterations."""
        mid, side = self.sound(*self.spectra(prediction))[:, :samples].chunk(2)
        # Left and right of a side that is zero are the same numbers.
        return torch.stack([mid + side, mid - side], dim=1)

    def spectra(self, prediction: MidSideAnalysis) -> tuple[Tensor, Tensor]:
        """Magnitudes and first phases of mid, then of side, each [2 B, frames, bins]."""
        floor = self.config.floor
        # Clamped where untrained latents could overflow; the floor that the analysis added is taken off.
        mid, side = (
            self.spread((x.clamp(max=3).exp() - floor).clamp_min(0)) for x in (prediction.mid, prediction.side)
        )
        side = side * (self._at_frames(prediction.given)[1] > MONO_WIDTH)
        phase = self._phases(prediction.advance)
        return torch.cat([mid, side]), torch.cat([phase, phase + self.spread(self._turns(prediction.turn))])

    def _turns(self, turn: Tensor) -> Tensor:
        """[B, frames, bands] -> angles of side against mid, spread as far as they are unsure; the same in every call.

        Sides that are not alike must not be decoded as one sound: left and right would then differ in level as no
        recording's do. Angles drawn evenly up to a on both sides have a mean cosine of sin(a) / a, the modulus asked
        for; a is sqrt(6 u) (1 + .28 u) to within .04, u being one less the modulus.
        """
        unsure = (1 - turn.abs()).clamp(0, 1)
        furthest = (6 * unsure).sqrt() * (1 + 0.28 * unsure)
        generator = torch.Generator().manual_seed(1)
        drawn = 2 * torch.rand(turn.shape[1:], generator=generator).to(turn.device) - 1
        return turn.angle() + furthest * drawn

    def _phases(self, advance: Tensor) -> Tensor:
        """[B, frames, phase bins] -> [B, frames, bins] angles; those above are random, but always the same."""
        frames = advance.shape[1]
        phase = advance.angle().cumsum(1) + self.centre_phase(frames, self.phase_bins, advance.device)
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(frames, self.bins - self.phase_bins, generator=generator).to(advance.device)
        return torch.cat([phase, (2 * torch.pi * noise).expand(len(phase), -1, -1)], dim=-1)

    def _at_frames(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, 2] -> level and width, each [B, frames, 1]."""
        return given.repeat_interleave(2, dim=1).split(1, dim=-1)

    def pool(self, x: Tensor) -> Tensor:
        """[..., bins] -> [..., bands]: means over the bins of a band; Nyquist's is left out."""
        low, middle, high = x[..., : 2 * self.stft_hop].split(self._parts(), dim=-1)
        pooled = [part.unflatten(-1, (-1, n)).mean(-1) for part, n in zip((middle, high), _POOLED, strict=True)]
        return torch.cat([low, *pooled], dim=-1)

    def spread(self, x: Tensor) -> Tensor:
        """[..., bands] -> [..., bins]: every bin as its band, Nyquist's zero."""
        low, middle, high = x.split([n // k for n, k in zip(self._parts(), (1, *_POOLED), strict=True)], dim=-1)
        wide = [part.repeat_interleave(n, dim=-1) for part, n in zip((middle, high), _POOLED, strict=True)]
        return F.pad(torch.cat([low, *wide], dim=-1), (0, 1))

    def _parts(self) -> list[int]:
        """Bins that are kept, that are pooled by four, and by eight."""
        return [self.phase_bins, self.phase_bins, self.stft_hop]


def _pair(like: Tensor, which: int) -> Tensor:
    """[2]: the centre (0) or the scale (1) of level and width in raw latents."""
    return like.new_tensor([_LEVEL[which], _WIDTH[which]])
