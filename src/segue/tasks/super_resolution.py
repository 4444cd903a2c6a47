"""Super-resolution: data is the top of a clip's spectrum, condition is what a low-pass filter leaves of the clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from segue.codecs.base import Codec
from segue.codecs.latent_space import LatentSpace
from segue.data.cache import Batch, LatentCache
from segue.memory import malloc_trim
from segue.models.audio_skip import SKIP_FRAMES, SKIP_KINKS, SkipModel, skip_features
from segue.predictor import Guesser, level_gain
from segue.predictor.level import RANDOM_LEVEL_DB
from segue.process.noise import BatchDraws, keyed_noise
from segue.tasks.base import Task
from segue.tasks.degradation import (
    CODING_UNIFORMS,
    UNIFORMS,
    DegradationConfig,
    degrade,
    drawn_from,
    with_coding,
)
from segue.types import Condition, UserError

# Levels are 6 % of the channels and most of the audible error; trials: docs/super-resolution-method.md.
LEVEL_WEIGHT = 8.0
# What a guess lacks of levels then has a deviation of about 1. At 8 it would stand out of the noise at nearly every t,
# and a model would hardly learn to predict it unseen, as it must at t = 1.
GUESSED_LEVEL_WEIGHT = 2.0
SKIP_FIT_CLIPS = 1024
SHARE_FIT_CLIPS = 256  # one number a channel
SKIP_FIT_AT_ONCE = 64
RIDGE = 1e-5  # of the mean square of a feature


class SuperResolution(Task):
    """Gain-shape latents in two parts: bands below the cutoff are known, those above are generated.

    A cached latent is the waveform, so the degraded clip is made from it in the training step. x_0 is the clean clip's
    latent with the known bands zero, the condition is the degraded clip's with the missing bands zero: their sum is a
    whole latent. Where the codec cannot tell bands apart (an autoencoder's latents), x_0 is the whole clean latent and
    the condition the whole degraded one: the low band is generated, too (docs/super-resolution-method.md compares
    the two).

    With `config.predictor`, what is missing in the condition is a predictor's guess, and x_0 what the clean latent has
    beyond a share of it (Condition.mean). Of complex numbers the magnitude alone is generated, and the phase is the
    guess's (Condition.turn): nothing in the low band says what the phase was, and a mean over all phases is 0, so that
    otherwise nothing of the guess's fine structure would be left.

    Attributes:
        share: [C] of the guess in each channel, the least squares of clean on guess, from 0 to 1; None without a
            predictor.
    """

    name = "super-resolution"

    def __init__(self, space: LatentSpace, config: DegradationConfig, samples: int, seed: int) -> None:
        """
        Args:
            space: of the codec that the cache was made with; see `weigh_levels`.
            config: what is drawn.
            samples: T of a cached row.
            seed: of the run.

        Raises:
            UserError: cutoffs that leave nothing to generate.
        """
        super().__init__(space)
        self.config = config
        self.samples = samples
        self.seed = seed
        codec = space.codec
        self._guesser: Guesser | None = None
        self.share: Tensor | None = None
        if config.predictor:
            guesser = Guesser.load(config.predictor, codec.sample_rate_hz, codec.hop_samples)
            self._guesser = guesser.to(space.device)
            self.share = torch.zeros(codec.channels, device=space.device)
        highest_hz = max(config.cutoff_max_hz, config.held_out.cutoff_hz)
        all_known = bool(_bands(codec, torch.tensor([highest_hz])).all())
        # A cutoff at which every band is known leaves nothing to learn.
        if highest_hz >= codec.sample_rate_hz / 2 or all_known:
            raise UserError(
                f"degradation cutoffs up to {highest_hz:g} Hz, and the cache is at {codec.sample_rate_hz:,} Hz: "
                "nothing would be missing; encode at a higher --sample-rate-hz, or set lower cutoffs"
            )

    def initialise(self, model: nn.Module, cache: LatentCache, saved: Mapping[str, Tensor] | None = None) -> None:
        """Fit the shares of the guess, where there is one, or else the model's skip (models/audio_skip.py).

        The skip is a ridge regression from known levels to missing ones. Levels are most of the audible error and of
        LSD, and nearly a linear function of the known ones: the closed form finds in seconds what took a network of 4 M
        parameters more than 8,000 examples, and the network learns the rest. From a model that is already trained, its
        own prediction of the levels at t = 1 is subtracted first.
        """
        if self._guesser is not None:
            self.share = self._fitted_share(cache) if saved is None else saved["guess_share"].to(self.space.device)
            if saved is None:
                model.get_buffer("guess_share").copy_(self.share)
        elif saved is None:
            self._fit_skip(cast(SkipModel, model), cache)

    def _fit_skip(self, network: SkipModel, cache: LatentCache) -> None:
        levels = network.config.audio_skip
        if not levels:
            return
        rows = cache.rows("train")
        rows = rows[:: max(1, len(rows) // SKIP_FIT_CLIPS)][:SKIP_FIT_CLIPS]
        side = SKIP_FRAMES // 2
        # Every known level, its kinks, at every frame of the window, and the bias.
        features_at_frame = SKIP_FRAMES * (1 + len(SKIP_KINKS)) * levels + 1
        gram = torch.zeros(features_at_frame, features_at_frame, dtype=torch.float64)
        cross = torch.zeros(features_at_frame, levels, dtype=torch.float64)
        for first in range(0, len(rows), SKIP_FIT_AT_ONCE):
            # What the convolution reads at each real frame, and a column of ones for its bias.
            part = rows[first : first + SKIP_FIT_AT_ONCE]
            draws = BatchDraws(self.seed, first, len(part), device=self.space.device)
            x_0, condition, mask = self.prepare(cache.batch(part), draws)
            # The model is still on the CPU.
            x_0, condition = x_0.cpu(), condition.to("cpu")
            mask = torch.ones(len(x_0), x_0.shape[-1], dtype=torch.bool) if mask is None else mask.cpu()
            audio, known = condition.known_audio()
            features = nn.functional.pad(skip_features(audio[:, :levels], known[:, :levels, 0]), (side, side))
            windows = features.unfold(-1, SKIP_FRAMES, 1).permute(0, 2, 1, 3).flatten(2)[mask].double()
            design = torch.cat([windows, torch.ones_like(windows[:, :1])], dim=1)

            # What it has to add to the network's prediction.
            predicted = self._predicted(network, x_0, condition, mask, first)
            wanted = (condition.fill_known(x_0) - predicted)[:, :levels].transpose(1, 2)[mask].double()
            gram += design.T @ design
            cross += design.T @ wanted
        # Ridge: without it, levels that never move make the system singular.
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        solution = torch.linalg.solve(gram, cross).float()
        network.skip_weight.copy_(solution[:-1].T.reshape(network.skip_weight.shape))
        network.skip_bias.copy_(solution[-1])
        # The sums are large, and the allocator would keep their memory through training.
        del gram, cross, windows, design
        malloc_trim()

    def _fitted_share(self, cache: LatentCache) -> Tensor:
        """[C]: least squares of clean on guess, over the real frames in which a channel is missing."""
        rows = cache.rows("train")
        rows = rows[:: max(1, len(rows) // SHARE_FIT_CLIPS)][:SHARE_FIT_CLIPS]
        both = torch.zeros(self.space.codec.channels, dtype=torch.float64, device=self.space.device)
        own = torch.zeros_like(both)
        for first in range(0, len(rows), SKIP_FIT_AT_ONCE):
            part = rows[first : first + SKIP_FIT_AT_ONCE]
            draws = BatchDraws(self.seed, first, len(part), device=self.space.device)
            clean, condition, _ = self._clean_and_condition(cache.batch(part), draws)
            clean = magnitudes(clean, self.space.codec)
            guess = condition.known_audio()[0].masked_fill(condition.known_audio()[1], 0.0).double()
            both += (clean * guess).sum((0, 2))
            own += guess.square().sum((0, 2))
        return fitted_share(both, own)

    @torch.no_grad()
    def _predicted(self, model: SkipModel, x_0: Tensor, condition: Condition, mask: Tensor, first: int) -> Tensor:
        """The network's prediction from noise alone, without the skip; a fresh network predicts 0."""
        # A fresh network ends in zeros, so that asking it would be a waste.
        if not model.patch_out.weight.any():
            return torch.zeros_like(x_0)
        # The old skip must not be subtracted from what the new one has to explain.
        model.skip_weight.zero_()
        model.skip_bias.zero_()
        noise = keyed_noise(x_0.shape[1:], 0, "priming", range(first, first + len(x_0)))
        return model(noise, torch.ones(len(x_0)), condition, mask).prediction

    def prepare(self, batch: Batch, draws: BatchDraws | None = None) -> tuple[Tensor, Condition, Tensor | None]:
        """See Task.prepare. Captions are not used."""
        clean, condition, mask = self._clean_and_condition(batch, draws)
        if condition.mean is not None:
            clean = magnitudes(clean, self.space.codec) - condition.mean
        # Known bands are no part of what is generated: they are zero there.
        return clean.masked_fill(condition.known_audio()[1], 0.0), condition, mask

    def _clean_and_condition(self, batch: Batch, draws: BatchDraws | None) -> tuple[Tensor, Condition, Tensor | None]:
        """The whole standardised latents of a batch, their condition and mask."""
        batch = batch.to(self.space.device)
        codec = self.space.codec
        mask = batch.mask
        # A latent that is cached is the waveform: decode it, take its top away, and encode what is left.
        wave = codec.decode(batch.latents.float(), self.samples)
        if draws is None:
            drawn = [self.config.held_out] * len(wave)
        else:
            # The filters are designed on the CPU, whatever computes: their numbers are drawn there.
            on_cpu = replace(draws, device="cpu")
            drawn = [drawn_from(self.config, u) for u in on_cpu.uniform("degradation", UNIFORMS).tolist()]
            if self.config.codes:
                codings = on_cpu.uniform("coding", CODING_UNIFORMS).tolist()
                drawn = [with_coding(d, self.config, u) for d, u in zip(drawn, codings)]
        low = degrade(wave, codec.sample_rate_hz, drawn)
        cutoff_hz = torch.tensor([degradation.cutoff_hz for degradation in drawn], device=wave.device)
        if self._guesser is None:
            condition = low_band_condition(self.space, low, cutoff_hz, mask)
            return self.space.standardise(batch.latents, mask), condition, mask
        # At the level of files in use, which the predictor knows; the clean wave with it, so that they stay a pair.
        gain, noise = self._level_and_noise(low, mask, draws)
        guess = self._guesser(low * gain, cutoff_hz, noise)
        condition = low_band_condition(self.space, low * gain, cutoff_hz, mask, guess, self.share)
        return self.space.encode(wave * gain, mask), condition, mask

    def _level_and_noise(self, low: Tensor, mask: Tensor | None, draws: BatchDraws | None) -> tuple[Tensor, Tensor]:
        """[B, 1, 1] gains and the predictor's noise [B, hop, L]; held-out clips get the same at every measurement."""
        hop = self.space.codec.hop_samples
        frames = -(-low.shape[-1] // hop)
        gain = level_gain(low, None if mask is None else mask.sum(1) * hop)
        if draws is None:
            return gain, keyed_noise((hop, frames), 0, "predictor", range(len(low))).to(low.device)
        louder_db = RANDOM_LEVEL_DB * (2 * draws.uniform("level") - 1)
        return gain * 10 ** (louder_db[:, None, None] / 20), draws.normal("predictor", hop, frames)


def fitted_share(both: Tensor, own: Tensor) -> Tensor:
    """[C] float32: the share s from 0 to 1 at which the mean square of clean - s guess is least.

    Args:
        both: [C] float64, sums of clean * guess.
        own: [C] float64, sums of guess * guess; a channel in which there is none has a share of 0.
    """
    return (both / own.clamp(min=1e-12)).clamp(0.0, 1.0).float()


def weigh_levels(space: LatentSpace, weight: float = LEVEL_WEIGHT) -> LatentSpace:
    """The cache's space, with levels of a larger scale: they weigh more in the loss, and appear at higher noise."""
    levels = levels_of(space.codec)
    if not levels:
        return space
    scale = torch.ones_like(space.std)
    scale[:levels] = weight
    # Divided by less: levels then have a larger scale, and more weight in a squared loss.
    return space.scaled(space.mean, space.std.clamp(min=1e-2) / scale)


def low_band_condition(
    space: LatentSpace,
    low: Tensor,
    cutoff_hz: Tensor,
    mask: Tensor | None = None,
    guess: Tensor | None = None,
    share: Tensor | None = None,
) -> Condition:
    """The condition of a band-limited wave: its latents, which of their channels are known, and the cutoff.

    Args:
        space: where its codec has bands, those above the cutoff are set to 0, and those below are not generated.
        low: [B, A, T] at the codec's rate.
        cutoff_hz: [B], where each wave's band ends.
        mask: [B, L] bool of real frames.
        guess: [B, A, T] a predictor's waves, whose latents stand where nothing is known.
        share: [C] of them that is the mean of the path; required with `guess`.
    """
    codec = space.codec
    audio = space.encode(low, mask)
    bands = _bands(codec, cutoff_hz)
    if tells_bands(codec):
        # The bands that are generated are no part of what is known.
        audio = audio.masked_fill(~bands[..., None], 0.0)
    condition = Condition(audio=audio, known_mask=bands[..., None], cutoff=cutoff_hz / (codec.sample_rate_hz / 2))
    if guess is None or share is None:
        return condition
    latents = space.encode(guess, mask)
    guessed = magnitudes(latents, codec)
    mean = (share[:, None] * guessed).masked_fill(bands[..., None], 0.0)
    audio = audio.where(bands[..., None], guessed)
    return replace(condition, audio=audio, mean=mean, turn=turn_of(latents, codec))


def magnitudes(latents: Tensor, codec: Codec) -> Tensor:
    """[B, C, L] with the magnitude of each of the codec's complex numbers in both of its channels. Our definition."""
    if codec.pairs is None:
        return latents
    real, imaginary = codec.pairs.to(latents.device)
    size = torch.hypot(latents[:, real], latents[:, imaginary])
    return latents.clone().index_copy_(1, real, size).index_copy_(1, imaginary, size)


def turn_of(latents: Tensor, codec: Codec) -> Tensor:
    """[B, C, L] cosine and sine of the phase of each complex number in its two channels, 1 in all others."""
    turn = torch.ones_like(latents)
    if codec.pairs is None:
        return turn
    real, imaginary = codec.pairs.to(latents.device)
    phase = torch.atan2(latents[:, imaginary], latents[:, real])
    return turn.index_copy_(1, real, phase.cos()).index_copy_(1, imaginary, phase.sin())


def tells_bands(codec: Codec) -> bool:
    """Whether the codec's channels belong to bands, so that some can be kept and others generated."""
    return codec.levels > 0


def levels_of(codec: Codec) -> int:
    """How many of the codec's first channels are levels of bands."""
    return codec.levels


def _bands(codec: Codec, cutoff_hz: Tensor) -> Tensor:
    """[B, C] bool: the channels that are known and need not be generated."""
    if tells_bands(codec):
        return codec.bands_below(cutoff_hz)
    return torch.zeros(len(cutoff_hz), codec.channels, dtype=torch.bool, device=cutoff_hz.device)
