"""A predictor's guess of the missing band, as a diffusion model starts from it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from segue.predictor.files import load_predictor, predictor_file, predictor_hash
from segue.predictor.predictor import BandPredictor
from segue.predictor.resolver import MEAN_SHARE, NOISE_STREAM, SHIPPED
from segue.process.noise import noise_of_frames
from segue.types import UserError

_ROWS_ON_CPU = 8  # of a second
SHIPPED_NAME = "shipped"  # in settings and cards, in place of a folder


class Guesser:
    """A frozen predictor whose guess is part of another model's condition, frame by frame of that model's codec.

    Attributes:
        hop_samples: of the codec, a multiple of the predictor's own.
        mean_share: how far its levels move towards mean power (`BandPredictor.forward`).
        context_samples: how far from a sample the input can affect the guess there, in whole frames.
    """

    def __init__(self, model: BandPredictor, hop_samples: int, mean_share: float = MEAN_SHARE) -> None:
        self.model = model
        self.hop_samples = hop_samples
        self.mean_share = mean_share
        reach = model.config.context_frames * model.config.hop_samples
        self.context_samples = -(-reach // hop_samples) * hop_samples

    @classmethod
    def load(
        cls, place: str, rate_hz: int, hop_samples: int, sha256: str = "", mean_share: float = MEAN_SHARE
    ) -> Guesser:
        """From `find_predictor`, for a codec of this rate and hop.

        Raises:
            UserError: as `find_predictor`, or a predictor for another rate.
        """
        model, _ = load_predictor(find_predictor(place, rate_hz, sha256))
        config = model.config
        if config.sample_rate_hz != rate_hz or hop_samples % config.hop_samples:
            raise UserError(
                f"predictor {place}: made for {config.sample_rate_hz} Hz in frames of {config.hop_samples} samples, "
                f"and the codec has {rate_hz} Hz and {hop_samples}; hint: segue super-resolution train --rate {rate_hz}"
            )
        return cls(model, hop_samples, mean_share)

    @classmethod
    def of_card(cls, found: dict, rate_hz: int, hop_samples: int) -> Guesser | None:
        """The predictor that a model's card names (`ModelCard.predictor`), at its levels; None where it names none.

        Raises:
            UserError: it is gone, or another one now.
        """
        if not found:
            return None
        return cls.load(found["source"], rate_hz, hop_samples, found["sha256"], found["mean_share"])

    def to(self, device: torch.device | str) -> Guesser:
        """The same, computed on another device."""
        return Guesser(self.model.to(device), self.hop_samples, self.mean_share)

    def noise(self, frames: int, seed: int, first_frame: int = 0) -> Tensor:
        """[hop, frames]: what `Predictor.noise` draws, in frames of the codec."""
        own = self.model.config.hop_samples
        ratio = self.hop_samples // own
        wave = noise_of_frames(own, ratio * frames, seed, NOISE_STREAM, ratio * first_frame).T
        return wave.reshape(frames, self.hop_samples).T

    @torch.no_grad()
    def __call__(self, low: Tensor, cutoff_hz: Tensor, noise: Tensor) -> Tensor:
        """Full-band waves [B, A, T] of band-limited ones, as `Predictor.resolve` makes them.

        Args:
            low: [B, A, T] at the level that `segue upsample` brings files to.
            cutoff_hz: [B].
            noise: [B, hop, L] standard normal, L frames that hold the T samples; both sides of a row have the same.
        """
        sides, samples = low.shape[1:]
        wave = noise.transpose(1, 2).flatten(1)[:, :samples].repeat_interleave(sides, dim=0)
        cutoffs = cutoff_hz.to(low.device).repeat_interleave(sides)
        # A core's own memory holds the spectra of a few rows: a batch takes three quarters of the time in parts.
        at_once = _ROWS_ON_CPU if low.device.type == "cpu" else len(wave)
        parts = (x.split(at_once) for x in (low.flatten(0, 1), cutoffs, wave))
        return torch.cat([self.model(*part, self.mean_share).wave for part in zip(*parts)]).view_as(low)


def find_predictor(place: str, rate_hz: int, sha256: str = "") -> Path:
    """The file of a predictor that a setting or a card names.

    Args:
        place: its folder or file, or SHIPPED_NAME.
        rate_hz: of the codec; the shipped predictor of this very rate is taken.
        sha256: the hash that it must have. A predictor that has moved into the package since is found there.

    Raises:
        UserError: there is none, or only others.
    """
    of_rate = predictor_file(SHIPPED[rate_hz]) if rate_hz in SHIPPED else None
    named = None if place == SHIPPED_NAME else predictor_file(place)
    there = [path for path in (named, of_rate if sha256 or place == SHIPPED_NAME else None) if path is not None]
    for path in there:
        if not sha256 or predictor_hash(path) == sha256:
            return path
    if sha256 and there:
        raise UserError(f"{there[0]}: not the predictor that the model was trained with ({sha256}); hint: put it back")
    if place == SHIPPED_NAME:
        rates = ", ".join(str(hz) for hz, folder in sorted(SHIPPED.items()) if predictor_file(folder))
        raise UserError(
            f"no predictor is shipped for {rate_hz} Hz, only for {rates}; hint: segue super-resolution train --rate "
            f"{rate_hz}, and its folder as degradation.predictor"
        )
    raise UserError(f"{place}: no predictor, which the model starts from; hint: one of segue super-resolution train")
