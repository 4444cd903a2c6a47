"""A predictor as `segue upsample` takes models: the same calls as `segue.pipeline.SuperResolver`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from segue.predictor.files import load_predictor, predictor_file
from segue.predictor.level import level_gain
from segue.predictor.predictor import BandPredictor
from segue.process.noise import noise_of_frames
from segue.types import UserError

WEIGHTS = Path(__file__).parents[1] / "weights"
SHIPPED = {16_000: WEIGHTS / "predictor-16k", 48_000: WEIGHTS / "predictor-48k"}  # by rate
# How far levels move from the median towards mean power; chosen in docs/super-resolution-method.md.
MEAN_SHARE = 0.15
NOISE_STREAM = "predictor"
_LOWEST_HZ = 1000.0  # below it, the copy that is shifted upwards has too few bins


class Predictor:
    """A one-pass super-resolution model: it predicts the band above a cutoff, and keeps the band below.

    Attributes:
        sample_rate_hz, audio_channels: of input and output. A stereo file's signals are computed one by one, with the
            same noise.
        hop_samples: samples per frame of 8 ms; chunks start at multiples of it.
        context_samples: how far from a sample the input can affect what is generated there.
        steps: 0; there is no solver.
        cutoffs_hz: lowest and highest cutoff that it was trained for.
        card: what its file says of it.
    """

    steps = 0
    audio_channels = 1

    def __init__(self, model: BandPredictor, card: dict, device: str = "cpu") -> None:
        self.model = model.to(device)
        self.card = card
        self.device = device
        config = model.config
        self.sample_rate_hz = config.sample_rate_hz
        self.hop_samples = config.hop_samples
        self.context_samples = config.context_frames * config.hop_samples
        low_hz, high_hz = card.get("cutoffs_hz", (_LOWEST_HZ, config.sample_rate_hz / 2))
        self.cutoffs_hz = (float(low_hz), float(high_hz))

    @classmethod
    def load(cls, place: Path | str | None = None, device: str = "cpu", rate_hz: int = 16_000) -> Predictor:
        """From a folder that `segue super-resolution train` wrote, or a predictor.safetensors; None: a shipped one.

        Args:
            rate_hz: of the output; the shipped model of the lowest rate that reaches it is taken.

        Raises:
            UserError: no predictor is there, or none is shipped for the rate.
        """
        path = predictor_file(shipped_for(rate_hz) if place is None else place)
        if path is None:
            raise UserError(f"{place}: no predictor; hint: give a folder that segue super-resolution train wrote")
        return cls(*load_predictor(path), device)

    def frames(self, samples: int) -> int:
        """Frames of noise of a wave."""
        return -(-samples // self.hop_samples)

    def noise(self, frames: int, seed: int, first_frame: int = 0) -> Tensor:
        """[hop, frames] standard normal, keyed by blocks of frames: a chunk draws what the whole file draws there."""
        return noise_of_frames(self.hop_samples, frames, seed, NOISE_STREAM, first_frame)

    def level_gain(self, low: Tensor) -> Tensor:
        """[B, 1, 1] what brings sounds [B, A, T] to the level that the model knows."""
        return level_gain(low)

    @torch.inference_mode()
    def resolve(self, low: Tensor, cutoff_hz: Tensor, noise: Tensor, *, steps: int = 0) -> Tensor:
        """Full-band waves [B, 1, T] of band-limited ones; below the cutoff the result is the input. See `level_gain`.

        Args:
            low: [B, 1, T] at sample_rate_hz.
            cutoff_hz: [B].
            noise: [B, hop, L], L = frames(T).
            steps: 0, since one pass is all.

        Raises:
            UserError: steps, or a cutoff that leaves nothing to copy from.
        """
        if steps:
            raise UserError(f"--steps {steps}: this model has no steps; hint: leave out --steps, or give --steps 0")
        if not float(cutoff_hz.min()) >= _LOWEST_HZ:
            raise UserError(f"a band that ends at {float(cutoff_hz.min()):g} Hz; hint: at least {_LOWEST_HZ:g} Hz")
        low = low.to(self.device)
        wave = noise.to(self.device).transpose(1, 2).flatten(1)[:, : low.shape[-1]]
        # A signal at a time: a pair's memory is that of one.
        made = [
            self.model(row, cutoff[None], own[None], MEAN_SHARE).wave
            for row, cutoff, own in zip(low, cutoff_hz.to(self.device), wave)
        ]
        return torch.stack(made).cpu()


def shipped_for(rate_hz: int) -> Path:
    """The folder of the shipped predictor of the lowest rate that reaches `rate_hz`.

    Raises:
        UserError: no shipped one does.
    """
    fitting = [folder for own_hz, folder in sorted(SHIPPED.items()) if own_hz >= rate_hz]
    if not fitting:
        raise UserError(
            f"--rate {rate_hz}: the shipped models make at most {max(SHIPPED)} Hz; hint: --rate {max(SHIPPED)}, or one "
            "of your own: segue super-resolution train"
        )
    return fitting[0]
