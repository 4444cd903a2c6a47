"""Teacher features: those of a cache, and those of latents that a model predicts.

`Extract` turns standardised latents [B, C, L] into standardised teacher features [B, S, F]: through codec and teacher,
or by a regression that was fitted on the cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil

import soxr
import torch
from torch import Tensor

from segue.codecs import codec_of
from segue.codecs.latent_space import LatentSpace
from segue.data.cache import LatentCache
from segue.memory import malloc_trim
from segue.models.backbone import BackboneConfig
from segue.process.noise import keyed_generator
from segue.ssl import load_teacher
from segue.stage.alignment import standardise
from segue.stage.policy import Policy
from segue.types import UserError

Extract = Callable[[Tensor], Tensor]

FIT_CLIPS = 1024  # most; of more than FIT_WHOLE, frames are left out instead:
FIT_WHOLE = 256  # a clip's frames say much the same, and 1,024 clips with every fourth teach as much as 512 whole ones
CONTEXT_FRAMES = 7
HIDDEN = 512
FIT_AT_ONCE = 32  # clips: the fit of all at once would be the peak of a small run's memory
RIDGE = 1e-2  # of the mean square of a hidden unit


def teacher_statistics(cache: LatentCache) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [F] of the cached teacher features over the training set.

    Raises:
        UserError: the cache has no teacher.
    """
    statistics = cache.meta.get("teacher_statistics")
    if statistics is None:
        raise UserError(
            f"{cache.path}: holds no teacher features, which this recipe needs; hint: encode into a new folder with "
            "--teacher compact (or another one), or choose a recipe without a teacher, such as static-uniform"
        )
    return torch.tensor(statistics["mean"]), torch.tensor(statistics["std"])


def alignment_targets(
    policy: Policy, cache: LatentCache, device: torch.device | str, width: int = 0
) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation [F] that alignment standardises by; None where nothing is aligned.

    Args:
        width: D of the model, for alignment.target "self".

    Raises:
        UserError: the cache has no teacher, where the target is one.
    """
    if policy.alignment.weight == 0:
        return None
    if policy.alignment.target != "teacher":
        # Clean latents are standardised already, and hidden states are normalised token by token.
        size = cache.channels if policy.alignment.target == "latents" else width
        return torch.zeros(size, device=device), torch.ones(size, device=device)
    mean, std = teacher_statistics(cache)
    return mean.to(device), std.to(device)


@dataclass(frozen=True)
class FrameGrid:
    """The rates at which a model's tokens and a teacher's frames follow each other.

    Attributes:
        tokens_per_sec: of the model.
        frames_per_sec: of the teacher.
        patch_frames: latent frames to a token.
    """

    tokens_per_sec: float
    frames_per_sec: float
    patch_frames: int

    @classmethod
    def of(cls, cache: LatentCache, dit: BackboneConfig, target: str = "teacher") -> FrameGrid:
        """The grid of a model of this shape and of what it is aligned with; of a teacher, the cache has one."""
        latent_rate_hz = cache.meta["sample_rate_hz"] / cache.meta["hop_samples"]
        tokens_rate_hz = latent_rate_hz / dit.patch_frames
        rates_hz = {"latents": latent_rate_hz, "self": tokens_rate_hz}
        frames_rate_hz = rates_hz.get(target) or cache.meta["teacher_frame_rate_hz"]
        return cls(tokens_rate_hz, frames_rate_hz, dit.patch_frames)

    def tokens(self, latent_frames: int) -> int:
        """N, the number of tokens of L latent frames."""
        return ceil(latent_frames / self.patch_frames)

    def span(self, frames: int, latent_frames: int) -> float:
        """Time that S teacher frames cover, over the time that the tokens of L latent frames cover."""
        return (frames / self.frames_per_sec) / (self.tokens(latent_frames) / self.tokens_per_sec)

    def tokens_mask(self, mask: Tensor | None) -> Tensor | None:
        """[B, L] mask of latent frames -> [B, N]: a token is real where one of its frames is."""
        if mask is None:
            return None
        tokens = self.tokens(mask.shape[1])
        padded = torch.nn.functional.pad(mask, (0, tokens * self.patch_frames - mask.shape[1]))
        return padded.view(len(mask), tokens, self.patch_frames).any(-1)


def make_extract(
    policy: Policy,
    cache: LatentCache,
    space: LatentSpace,
    device: torch.device | str,
    trust_remote_code: bool = False,
) -> Extract | None:
    """The function from latents to teacher features that this policy needs, or None.

    Raises:
        UserError: no teacher in the cache, or one that does not fit the codec.
    """
    probed = policy.probes or policy.probes_gain
    if not probed and not (policy.alignment.weight > 0 and policy.alignment.space == "output"):
        return None
    if policy.probe.space == "latent":
        return latent_extract(cache, space, device)
    return waveform_extract(cache, space, device, trust_remote_code)


def waveform_extract(
    cache: LatentCache, space: LatentSpace, device: torch.device | str, trust_remote_code: bool = False
) -> Extract:
    """Standardised latents [B, C, L] -> standardised teacher features [B, S, F], through the codec and the teacher.

    Raises:
        UserError: no teacher in the cache, another one under its name now, or one whose rate the codec cannot meet.
    """
    mean, std = (x.to(device) for x in teacher_statistics(cache))
    source = cache.meta["teacher_source"]
    rate_hz = cache.meta["sample_rate_hz"]
    teacher = load_teacher(source["name"], source["layer"], trust_remote_code).to(device)
    if teacher.sample_rate_hz > rate_hz:
        raise UserError(
            f"{cache.path}: the teacher {source['name']} works at {teacher.sample_rate_hz:,} Hz, the codec at "
            f"{rate_hz:,} Hz; probe with --set probe.space=latent, or take a codec of that rate"
        )
    if cache.meta["teacher"] != _plain(teacher.fingerprint()):
        raise UserError(f"{cache.path}: made with another teacher than {source['name']} is now; encode again")
    # A codec of its own: the task's may be another device's, or never loaded.
    load = partial(codec_of, cache.meta["codec_source"], cache.meta["codec"])
    space = LatentSpace(load, space.mean.to(device), space.std.to(device))
    samples = round(cache.meta["seconds"] * rate_hz)

    def extract(x_0: Tensor) -> Tensor:
        # Teachers are mono: they get the mean of the sides, as when the cache was made.
        wave = space.decode(x_0, samples).mean(dim=1)
        if teacher.sample_rate_hz != rate_hz:
            wave = _resample(wave, rate_hz, teacher.sample_rate_hz)
        return standardise(teacher.encode(wave.to(device)), mean, std)

    return extract


def latent_extract(cache: LatentCache, space: LatentSpace, device: torch.device | str) -> Extract:
    """Standardised latents [B, C, L] -> standardised teacher features [B, S, F], by a regression (our definition).

    Random features of each frame and its neighbours (rectified, as extreme learning machines have them) and the frames
    themselves, then ridge regression onto the cached features, in closed form: it takes half a second, and is the same
    on every machine up to rounding. It needs neither codec nor teacher, and finds only a part of the features.
    """
    # Random weights of the hidden units, and the rows that the regression is fitted on.
    mean, std = teacher_statistics(cache)
    rows = cache.rows("train")
    rows = rows[:: max(1, len(rows) // FIT_CLIPS)][:FIT_CLIPS]
    some = slice(None, None, max(1, len(rows) // FIT_WHOLE))
    frames = _teacher_of(cache, rows[:1])[0].shape[1]
    generator = keyed_generator(0, "latent ears")  # the name of the stream decides the draws, so it stays
    inputs = cache.channels * CONTEXT_FRAMES
    # By the root of their number: sums of as many standardised latents then have a deviation of about 1.
    weight = torch.randn(inputs, HIDDEN, generator=generator) / inputs**0.5
    bias = torch.randn(HIDDEN, generator=generator) * 0.5
    # The features of a teacher frame are predicted from the latent frame at its middle.
    span = (frames / cache.meta["teacher_frame_rate_hz"]) / cache.meta["seconds"]
    under = ((torch.arange(frames) + 0.5) * (span * cache.frames / frames)).long().clamp(max=cache.frames - 1)

    def hidden(x: Tensor, weight: Tensor, bias: Tensor, under: Tensor) -> Tensor:
        side = CONTEXT_FRAMES // 2
        windows = torch.nn.functional.pad(x, (side, side)).unfold(-1, CONTEXT_FRAMES, 1)  # [B, C, L, context]
        flat = windows.permute(0, 2, 1, 3).flatten(2)[:, under]
        ones = torch.ones_like(flat[..., :1])
        return torch.cat([torch.relu(flat @ weight + bias), flat, ones], dim=-1)

    # Ridge regression in closed form; sums over chunks of rows keep the memory small.
    size = HIDDEN + inputs + 1
    # Sums in float64, as normal equations square the condition number of the design; products of a chunk in float32.
    gram = torch.zeros(size, size, dtype=torch.float64)
    cross = torch.zeros(size, len(mean), dtype=torch.float64)
    for first in range(0, len(rows), FIT_AT_ONCE):
        part = rows[first : first + FIT_AT_ONCE]
        latents, mask = cache.latents(part)
        features, real = _teacher_of(cache, part)
        design = hidden(space.to("cpu").standardise(latents, mask), weight, bias, under[some])[real[:, some]]
        gram += design.T @ design
        cross += design.T @ standardise(features[:, some], mean, std)[real[:, some]]
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    solution = torch.linalg.solve(gram, cross).float().to(device)
    weight, bias, under = weight.to(device), bias.to(device), under.to(device)
    # Handed back before the first step, whose peak is counted without the fit (training/run_memory.py).
    del gram, cross, design
    malloc_trim()

    def extract(x_0: Tensor) -> Tensor:
        return hidden(x_0, weight, bias, under) @ solution

    return extract


def fit_bytes(cache: LatentCache) -> int:
    """Peak memory of the fit of `latent_extract`, in bytes."""
    inputs = cache.channels * CONTEXT_FRAMES
    features = HIDDEN + inputs + 1
    frames = FIT_AT_ONCE * ceil(cache.meta["seconds"] * cache.meta["teacher_frame_rate_hz"])
    chunk = frames * (4 * inputs + (4 + 4) * features)  # windows; design, its real frames
    gram = 3 * 8 * features * (features + cache.meta["teacher_dim"])  # the sum, a summand or the factors, one more
    return chunk + gram + 2 * 4 * HIDDEN * inputs


def teacher_mask(cache: LatentCache, rows: list[int]) -> Tensor:
    """[M, S] bool: which teacher frames of these rows are real."""
    rate_hz = cache.meta["teacher_frame_rate_hz"]
    frames = torch.tensor([ceil(cache.row(i)["length_sec"] * rate_hz) for i in rows])
    return torch.arange(ceil(cache.meta["seconds"] * rate_hz)) < frames[:, None]


def _teacher_of(cache: LatentCache, rows: list[int]) -> tuple[Tensor, Tensor]:
    """Teacher features [B, S, F] of a cache that has them, and their mask [B, S]."""
    found = cache.teacher(rows)
    assert found is not None  # `teacher_statistics` has refused a cache without a teacher
    return found


def _resample(wave: Tensor, rate_hz: int, wanted_hz: int) -> Tensor:
    return torch.from_numpy(soxr.resample(wave.cpu().numpy().T, rate_hz, wanted_hz).T.copy())


def _plain(fingerprint: dict) -> dict:
    return json.loads(json.dumps(fingerprint))
