"""SSL guidance in this loop: the projector as a head, the cached teacher features as targets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from segue.data.cache import LatentCache
from segue.models.dit import DiTConfig
from segue.stage.ssl_guidance import (
    GuidanceConfig,
    Projector,
    alignment_loss,
    output_alignment,
    standardise,
    tap_index,
    time_weight,
)
from segue.training.config import OptimConfig
from segue.training.heads import Head
from segue.types import UserError


def teacher_statistics(cache: LatentCache) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [F] of the cached teacher features over the training set.

    Raises:
        UserError: the cache has no teacher.
    """
    statistics = cache.meta.get("teacher_statistics")
    if statistics is None:
        raise UserError(
            f"{cache.path}: holds no teacher features, and this recipe follows a teacher; encode into a new folder "
            "with --teacher compact (or another one), or take a recipe without one, such as static-uniform"
        )
    return torch.tensor(statistics["mean"]), torch.tensor(statistics["std"])


class Guidance:
    """What the step needs to follow the teacher.

    Attributes:
        tap: index of the block whose tokens are aligned; None in output space.
        head: the projector; None in output space.
    """

    def __init__(
        self,
        config: GuidanceConfig,
        cache: LatentCache,
        dit: DiTConfig,
        optim: OptimConfig,
        seed: int,
        accelerator,
        listen: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """
        Args:
            listen: standardised latents [B, C, L] -> standardised features [B, S, F], differentiable; for output space.

        Raises:
            UserError: no teacher in the cache, or a tap outside the stack.
        """
        self.config, self._listen = config, listen
        self._mean, self._std = (x.to(accelerator.device) for x in teacher_statistics(cache))
        latent_rate_hz = cache.meta["sample_rate_hz"] / cache.meta["hop_samples"]
        self._tokens_per_sec = latent_rate_hz / dit.patch_frames
        self._patch, self._frame_rate_hz = dit.patch_frames, cache.meta["teacher_frame_rate_hz"]
        self.tap = self.head = None
        if config.space == "hidden":
            self.tap = tap_index(config.tap, dit.depth)
            projector = Projector(dit.width, len(self._mean), config.projector, config.hidden, seed=seed)
            self.head = Head("projector", projector.to(accelerator.device), optim, accelerator)

    def loss(
        self, hidden: Tensor | None, x_0_hat: Tensor, t: Tensor, mask: Tensor | None, teacher: tuple[Tensor, Tensor]
    ) -> Tensor:
        """w(t) times the alignment of each example, [B].

        Args:
            hidden: [B, N, D] tokens after the tapped block, or None in output space.
            x_0_hat: [B, C, L] one-step prediction, standardised.
            t: [B].
            mask: [B, L] bool of real latent frames, or None.
            teacher: [B, S, F] features as cached, and [B, S] bool.
        """
        features, real = teacher
        target = standardise(features, self._mean, self._std)
        if hidden is None:
            return time_weight(t, self.config.t_min) * output_alignment(x_0_hat, self._listen, target, real)
        frames = features.shape[1]
        tokens_mask = None if mask is None else _tokens_of(mask, hidden.shape[1], self._patch)
        span = (frames / self._frame_rate_hz) / (hidden.shape[1] / self._tokens_per_sec)
        projected = self.head.module(hidden, frames, tokens_mask, span)
        return time_weight(t, self.config.t_min) * alignment_loss(projected, target, real)


def _tokens_of(mask: Tensor, tokens: int, patch: int) -> Tensor:
    """[B, L] mask of latent frames -> [B, N]: a token is real where one of its frames is."""
    padded = torch.nn.functional.pad(mask, (0, tokens * patch - mask.shape[1]))
    return padded.view(len(mask), tokens, patch).any(-1)
