"""One window of sound through the model: silent where it was silent, no louder at its peaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.audio.analyse import Analysis
from segue.audio.stereo import axes
from segue.predictor.level import INPUT_RMS
from segue.upsampling.source import Treatment, corrected, kept

_GATE_SEC = 0.005
_LIMIT_SEC = 0.001
LOOK_SEC = 0.02  # what gate and limiter see on either side of a sample
_SHORTEST_HOPS = 16


class Resolver(Protocol):
    """What the tool needs of a model; `segue.pipeline.SuperResolver` is one.

    Attributes:
        sample_rate_hz, audio_channels: of what goes in and comes out.
        hop_samples: grid on which windows begin, and of one frame of noise.
        context_samples: how far around a sample the model looks.
        steps: of the solver, where nothing else is said.
        cutoffs_hz: lowest and highest that it was trained for.
    """

    sample_rate_hz: int
    audio_channels: int
    hop_samples: int
    context_samples: int
    steps: int
    cutoffs_hz: tuple[float, float]

    def frames(self, samples: int) -> int:
        """Frames of noise that `samples` take."""

    def noise(self, shape_frames: int, seed: int, first_frame: int) -> Tensor:
        """[C, shape_frames], each frame keyed by its position."""

    def resolve(self, low: Tensor, cutoff_hz: Tensor, noise: Tensor, *, steps: int) -> Tensor:
        """[B, A, T] with a band added above cutoff_hz [B]; noise is [B, C, L]."""


@dataclass
class Tally:
    """What happened to the samples on their way."""

    silent: int = 0
    limited: int = 0
    samples: int = 0


class Enhancer:
    """Adds a band to windows of one file, so that a window's place in the file is all that its result depends on."""

    def __init__(
        self,
        resolver: Resolver,
        analysis: Analysis,
        cutoff_hz: float,
        *,
        steps: int,
        seed: int,
        stereo: str,
        treatment: Treatment | None = None,
    ) -> None:
        self.resolver = resolver
        self.analysis = analysis
        self.cutoff_hz = cutoff_hz
        self.steps = steps
        self.seed = seed
        self.treatment = treatment or Treatment("plain", cutoff_hz, "")
        self.tally = Tally()
        turn = axes(analysis.covariance, stereo)
        self.axes = torch.from_numpy(turn).float()
        # The variance along each axis follows from the covariance, without reading the file again.
        self.levels = np.sqrt(np.maximum(np.diag(turn @ analysis.covariance @ turn.T), 0.0))

    def __call__(self, low: np.ndarray, start: int) -> np.ndarray:
        """[n, channels] at the model's rate, beginning at sample `start` of the file -> the same with its new band.

        The model is given each signal at the same loudness over the file, so that its answer scales with its input, and
        both of a pair with the same noise, so that a source keeps its place. What it adds is faded out where a channel
        is silent, and held back where it would lift a peak above the file's own.
        """
        # The offset is kept from the model and stays in the output, since only `added` is changed.
        whole = torch.from_numpy(np.ascontiguousarray(low.T))
        offset = torch.from_numpy(self.analysis.offset).float()[:, None]
        sound = whole - offset
        base = corrected(sound, self.treatment, self.resolver.sample_rate_hz)
        added = base - sound + self._added(base, start)
        # Silence stays silence: what the model adds there would be the only thing that sounds.
        gate = _gate(whole, self.analysis.silent_peak, _samples(_GATE_SEC, self.resolver))
        added = added * gate
        # Behind the gate, so that what was faded out holds nothing back.
        held = _held(whole, added, self.analysis.peak, _samples(_LIMIT_SEC, self.resolver))
        self.tally.samples += gate.numel()
        self.tally.silent += int((gate == 0).sum())
        self.tally.limited += int((held < 0.99).sum()) * len(whole)
        return (whole + held * added).T.numpy()

    def _added(self, low: Tensor, start: int) -> Tensor:
        """What the model adds to [channels, n]."""
        along = self.axes @ low
        levels = torch.from_numpy(self.levels).float()[:, None]
        # A silent axis is left out: its gain would raise noise to the level of a sound.
        audible = [i for i in range(len(along)) if self._is_audible(along[i], float(levels[i]))]
        made = torch.zeros_like(along)
        if not audible:
            return made
        # Whole hops for the codec, at the level that the model was trained at.
        samples = low.shape[1]
        hop = self.resolver.hop_samples
        length = max(-(-samples // hop), _SHORTEST_HOPS) * hop
        gain = INPUT_RMS / levels[audible]
        given = F.pad(along[audible] * gain, (0, length - samples))
        # Noise is keyed by the frame's place in the file, so that chunks of any length get the same.
        noise = self.resolver.noise(self.resolver.frames(length), self.seed, start // hop)
        cutoffs = torch.full((len(audible),), self.cutoff_hz)
        # A stereo model gets each signal on both sides: what it does with one must not hang on the other.
        sides = given[:, None].expand(-1, self.resolver.audio_channels, -1)
        noises = noise[None].expand(len(audible), -1, -1).contiguous()
        full = self.resolver.resolve(sides, cutoffs, noises, steps=self.steps).mean(dim=1)
        full = full.cpu().float()
        if self.treatment.keeps:
            full = kept(given, full, hop)
        # The model's output holds the input's band, too: only the difference is added.
        made[audible] = (full - given)[:, :samples] / gain
        return self.axes.T @ made

    def _is_audible(self, wave: Tensor, rms: float) -> bool:
        least = self.analysis.silent_peak / 4
        return rms > least and float(wave.abs().max()) > least


def _gate(wave: Tensor, silent_peak: float, samples: int) -> Tensor:
    """[channels, n] -> 1 where something sounds within `samples`, fading to 0 over as many more.

    What stands still is silent at any offset, so it is the step from sample to sample that has to be a sound's.
    """
    loud = (wave.diff(dim=1, prepend=wave[:, :1]).abs() > silent_peak).double()
    near = (_smoothed(loud, 2 * samples) > 0).double()  # sums of zeros and ones are exact
    return _smoothed(near, samples).float()


def _held(wave: Tensor, added: Tensor, peak: float, samples: int) -> Tensor:
    """[1, n] weight of `added` for all channels alike, at which |wave + added| stays below `peak` or |wave| itself."""
    room = (peak - wave.abs()).clamp(min=0.0)
    over = (wave + added).abs() > wave.abs().clamp(min=peak)
    if not over.any():
        return torch.ones_like(added[:1])
    weight = torch.where(over, room / added.abs().clamp(min=1e-12), torch.ones_like(added)).clamp(max=1.0)
    # One weight for all channels, so that a source keeps its place between them.
    lowest = weight.amin(dim=0, keepdim=True)
    # The lowest weight is held for a while on either side, so that smoothing cannot exceed it at the peak.
    widened = -F.max_pool1d(-lowest, 2 * samples + 1, 1, samples)
    return _smoothed(widened.double(), samples).float()


def _smoothed(weight: Tensor, samples: int) -> Tensor:
    """Moving average [channels, n] over 2 `samples` + 1 in float64, the ends repeated."""
    # Sums run over the whole window: float32 would lose the small steps behind large ones.
    padded = torch.cat([weight[:, :1].expand(-1, samples + 1), weight, weight[:, -1:].expand(-1, samples)], dim=1)
    sums = padded.cumsum(dim=1)
    return ((sums[:, 2 * samples + 1 :] - sums[:, : -2 * samples - 1]) / (2 * samples + 1)).clamp(0.0, 1.0)


def _samples(seconds: float, resolver: Resolver) -> int:
    return max(1, round(seconds * resolver.sample_rate_hz))
