"""Inference: waveforms from captions, or full-band waveforms from band-limited ones.

pipeline = Pipeline.load("runs/mine")
waves = pipeline.generate(["a soft violin playing C 5"], seconds=2.0, seed=0)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from segue.codecs import codec_of
from segue.codecs.base import Codec
from segue.codecs.latent_space import LatentSpace
from segue.codecs.spectral import SpectralCodec
from segue.conditioners import load_conditioner
from segue.conditioners.base import TextConditioner
from segue.hub import model_place
from segue.models.adapters import Adapter
from segue.models.dit import DiT
from segue.models.fields import Values, asked_values, field_tensors
from segue.models.files import SavedModel, load_model, model_file
from segue.models.lengths import draw_seconds
from segue.process.cfg import Combine, combine, guided
from segue.process.noise import keyed_noise
from segue.process.path import velocity_of
from segue.process.solvers import SOLVERS, solve, time_grid
from segue.tasks.super_resolution import levels_of, low_band_condition
from segue.types import TIMES, Condition, UserError

SHIPPED = Path(__file__).parent / "weights" / "text-to-audio" / "model.safetensors"
SHIPPED_SUPER_RESOLUTION = Path(__file__).parent / "weights" / "super-resolution" / "model.safetensors"
NOISE_BLOCK = 16  # frames of one draw
MOST_STEPS = 10_000  # more are a slip; the grid of times alone would fill the memory
MOST_SECONDS = 3600.0


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise UserError(f"--steps {steps}: give at least 1")
    if steps > MOST_STEPS:
        raise UserError(f"--steps {steps}: hint: give at most {MOST_STEPS:,}; a few dozen do")


@dataclass(frozen=True)
class Sampling:
    """Settings of the solver and of classifier-free guidance.

    Attributes:
        steps: solver steps.
        solver: "euler", "heun" (two evaluations a step), "multistep" or "dpm" (second order, one evaluation a step).
        guidance_scale: of classifier-free guidance; 1 = none. 2 was best on the demo set (docs/log.md).
        guidance_rescale: 0..1, share of Lin et al.'s rescaling (arXiv 2305.08891).
        guidance_interval: times (low, high) between which guidance acts (arXiv 2404.07724).
    """

    steps: int = 24
    solver: str = "multistep"
    guidance_scale: float = 2.0
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        if self.solver not in SOLVERS:
            raise UserError(f"--solver {self.solver}: use one of {', '.join(SOLVERS)}")


class Pipeline:
    """A text-to-audio model with its codec and text encoder."""

    def __init__(self, saved: SavedModel, codec: Codec, conditioner: TextConditioner, device: str = "cpu") -> None:
        """Bring the parts together.

        Raises:
            UserError: a model for another task, or not the codec or the text encoder that it was trained with.
        """
        if saved.card.task != "generation":
            raise UserError(f"a model for {saved.card.task}, not for generation; use segue upsample")
        _check_same("codec", codec.fingerprint(), saved.card.codec)
        _check_same("text encoder", conditioner.fingerprint(), saved.card.text)
        self.saved = saved
        self.codec = codec.to(device)
        self.conditioner = conditioner.to(device)
        self.device = device
        self.space = LatentSpace(self.codec, saved.mean.to(device), saved.std.to(device))
        self.model = saved.model.to(device)

    @classmethod
    def load(cls, run: Path | str | None = None, weights: str = "ema", device: str = "cpu") -> Pipeline:
        """Bring a trained model together with its codec and text encoder.

        Args:
            run: run folder (its newest checkpoint), checkpoint folder, model.safetensors, or the name of a model on the
                hub (OWNER/NAME or OWNER/NAME@REVISION) that `segue push` put there; None: the shipped model.
            weights: "ema" (averaged) or "model" (as trained).
            device: that computes.

        Raises:
            UserError: nothing to load there, or parts that are missing or do not fit.
        """
        saved = load_model(SHIPPED if run is None else model_file(model_place(run)), weights)
        codec = codec_of(saved.card.codec_source, saved.card.codec)
        text = saved.card.text
        conditioner = load_conditioner(text["name"], text["max_tokens"])
        return cls(saved, codec, conditioner.for_seconds(saved.card.seconds), device)

    @property
    def own_sampling(self) -> Sampling:
        """The solver and the guidance that the model is used with where nothing else is asked for."""
        if not isinstance(self.model, Adapter):
            return Sampling()
        own = self.model.own_sampling
        return Sampling(own.steps, "dpm" if self.model.predicts == "v" else "euler", own.guidance_scale)

    @torch.inference_mode()
    def latents(
        self,
        captions: Sequence[str],
        *,
        frames: int,
        seed: int | Sequence[int] = 0,
        sampling: Sampling | None = None,
        numbers: Sequence[int] | None = None,
        on_step: Callable[[], None] | None = None,
        seconds: float | None = None,
        noise: Tensor | None = None,
        values: Sequence[Values] | None = None,
    ) -> Tensor:
        """Standardised latents [B, C, frames] for B captions; of a model with a fixed window, the whole window.

        Args:
            captions: what to generate.
            frames: L.
            seed: of the noise; one for all captions, or one for each.
            sampling: solver and guidance.
            numbers: of the captions in the whole list; a caption's noise depends on its seed and its number alone, so
                that a long list may be cut into batches anywhere.
            on_step: called after every evaluation of the model.
            seconds: what models that are conditioned on it are told; default: the length of the training clips.
            noise: [B, C, frames] to begin with, in place of the seed's.
            values: of the model's fields, for each caption (`values_for`); default: a sound of `seconds`.
        """
        sampling = sampling or self.own_sampling
        seconds = self.saved.card.seconds if seconds is None else seconds
        tokens, tokens_mask = self.conditioner.for_seconds(seconds).encode(captions)
        condition = Condition(tokens, tokens_mask).to(self.device)
        channels = self.saved.model.config.channels
        times, scale = time_grid(sampling.steps), 1.0
        guide: Combine = combine
        if isinstance(self.model, Adapter):
            condition = replace(condition, seconds=torch.full((len(captions),), seconds, device=self.device))
            frames, times, guide = self.model.window(frames), self.model.times(sampling.steps), self.model.combiner()
            scale = self.model.start_scale(float(times[0]))
        elif self.model.config.numbers or self.model.config.labels:
            values = values or [dict(zip(TIMES, (0.0, seconds)))] * len(captions)
            found = field_tensors(self.model.config.numbers, self.model.config.labels, values)
            condition = replace(condition, **{name: value.to(self.device) for name, value in found.items()})
        if noise is None:
            noise = _noise_of((channels, frames), seed, numbers, len(captions))

        def velocity(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            if on_step is not None:
                on_step()
            prediction = self.model(x, t, condition).prediction
            # A small floor: that of training would leave hiss, and no solver evaluates at t = 0 itself.
            return velocity_of(prediction, self.model.predicts, x, t, floor=1e-4)

        field = guided(
            velocity,
            condition,
            sampling.guidance_scale,
            sampling.guidance_rescale,
            sampling.guidance_interval,
            guide,
        )
        return solve(field, scale * noise.to(self.device), times, sampling.solver)

    def values_for(
        self,
        captions: Sequence[str],
        seconds: float | None = None,
        conditions: Mapping[str, float | str] | None = None,
        seeds: Sequence[int] = (),
        numbers: Sequence[int] = (),
    ) -> list[dict[str, float | str]]:
        """What the model is told of each sound beside its caption: its length, and the conditions that are asked for.

        Args:
            seconds: length of the sounds; None: each is as long as training sounds of such captions are
                (models/lengths.py), and silent behind its end.
            conditions: values by the names of the model's fields; others are unknown to it.
            seeds, numbers: of the sounds, as their noise is keyed.

        Raises:
            UserError: a field that the model does not know, or a value that it cannot take.
        """
        lengths, whole = self.saved.card.lengths, self.saved.card.seconds
        own = (self.model.config.numbers, self.model.config.labels) if isinstance(self.model, DiT) else ((), ())
        asked, _ = asked_values(*own, conditions or {})
        totals = [
            draw_seconds(lengths, caption, seed, number) if seconds is None and lengths else seconds
            for caption, seed, number in zip(captions, seeds or [0] * len(captions), numbers or range(len(captions)))
        ]
        return [{TIMES[0]: 0.0, TIMES[1]: whole if total is None else total, **asked} for total in totals]

    def samples_of(self, seconds: float | None) -> int:
        """Samples of a clip of so many seconds; None: as long as the training clips.

        Raises:
            UserError: a length that is not positive, or too long.
        """
        seconds = self.saved.card.seconds if seconds is None else seconds
        if not 0 < seconds < float("inf"):
            raise UserError(f"--seconds {seconds}: give a positive length")
        if seconds > MOST_SECONDS:
            raise UserError(f"--seconds {seconds:g}: hint: give at most {MOST_SECONDS:g}, a clip is made in one piece")
        samples = round(seconds * self.codec.sample_rate_hz)
        if samples < 1:
            raise UserError(f"--seconds {seconds:g}: hint: give more, that is less than one sample")
        return samples

    @torch.inference_mode()
    def generate(
        self,
        captions: Sequence[str],
        *,
        seconds: float | None = None,
        seed: int | Sequence[int] = 0,
        sampling: Sampling | None = None,
        batch_size: int = 16,
        numbers: Sequence[int] | None = None,
        on_step: Callable[[], None] | None = None,
        conditions: Mapping[str, float | str] | None = None,
    ) -> Tensor:
        """Waveforms [B, A, T] at codec.sample_rate_hz for B captions, A = codec.audio_channels.

        Args:
            captions: what to generate.
            seconds: length; where it is not given, the training clips' length, in which a sound may end earlier, where
                training sounds did (`values_for`).
            seed: of the noise; one for all captions, or one for each: several takes of a caption differ by it. The same
                seed, captions and batch size give the same waveforms, bit for bit on a CPU.
            sampling: solver and guidance.
            batch_size: captions computed together.
            numbers: of the captions in a longer list, so that any one of it can be generated again alone; 0, 1, 2...
            on_step: called after every evaluation of the model.
            conditions: values of the model's own fields, such as {"bpm": 120}; see `values_for`.

        Raises:
            UserError: no caption, an empty one, a length that is not positive, or a condition that it cannot take.
        """
        samples = self.samples_of(seconds)
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: give at least 1")
        if not captions or any(not caption.strip() for caption in captions):
            raise UserError('an empty prompt; say what to generate, for example "a soft violin playing C 5"')
        seeds = [seed] * len(captions) if isinstance(seed, int) else list(seed)
        numbers = range(len(captions)) if numbers is None else numbers
        values = self.values_for(captions, seconds, conditions, seeds, numbers)
        own = [self._own_samples(samples, of_sound) for of_sound in values]
        waves = []
        for part in _batches(own, batch_size):
            size = own[part.start]
            x_0 = self.latents(
                captions[part],
                frames=self.codec.latent_frames(size),
                seed=seeds[part],
                sampling=sampling,
                numbers=numbers[part],
                on_step=on_step,
                seconds=seconds,
                values=values[part],
            )
            waves.append(torch.nn.functional.pad(self.space.decode(x_0, size).cpu(), (0, samples - size)))
        return torch.cat(waves)

    def _own_samples(self, samples: int, values: Values) -> int:
        """Samples to generate of a sound in a file of so many: all, or, where training had no long silence, its own."""
        if not self.saved.card.lengths.get("fitted"):
            return samples
        return min(samples, max(1, round(float(values[TIMES[1]]) * self.codec.sample_rate_hz)))


class SuperResolver:
    """A super-resolution model with its codec: it generates the band above a cutoff, and keeps the band below.

    Attributes:
        sample_rate_hz, audio_channels: of input and output.
        hop_samples: samples per latent frame; chunks start at multiples of it.
        context_samples: how far from a sample the input can affect what is generated there, to within 1e-3.
        steps: default number of solver steps.
        cutoffs_hz: lowest and highest cutoff that it was trained for.
    """

    steps = 4

    def __init__(self, saved: SavedModel, codec: Codec, device: str = "cpu") -> None:
        """Bring the parts together.

        Raises:
            UserError: a model for another task, or another codec than the model was trained with.
        """
        if saved.card.task != "super-resolution":
            raise UserError(
                f"a model for {saved.card.task}, not for super-resolution; use segue generate, or train one with "
                "segue train sr-demo"
            )
        _check_same("codec", codec.fingerprint(), saved.card.codec)
        self.saved = saved
        self.codec = codec.to(device)
        self.device = device
        self.model = saved.model.to(device)
        config = saved.model.config
        self.space = LatentSpace(self.codec, saved.mean.to(device), saved.std.to(device))
        self._spectrum = SpectralCodec(codec.sample_rate_hz)  # where the two bands are joined
        self.sample_rate_hz = codec.sample_rate_hz
        self.audio_channels = codec.audio_channels
        self.hop_samples = codec.hop_samples
        trained = saved.card.degradation
        self.cutoffs_hz = (trained.get("cutoff_min_hz", 0.0), trained.get("cutoff_max_hz", codec.sample_rate_hz / 2))
        # One evaluation depends on depth * window tokens to each side. Several evaluations depend on more, but not
        # measurably: with the shipped model, chunks equal the whole within 2e-7 (docs/super-resolution.md).
        reach = config.depth * config.attention_window * config.patch_frames
        self.context_samples = (reach + 4) * codec.hop_samples

    @classmethod
    def load(cls, run: Path | str | None, weights: str = "ema", device: str = "cpu") -> SuperResolver:
        """From what `Pipeline.load` takes; None: the shipped model of this task.

        Raises:
            UserError: nothing to load there, or a model for another task.
        """
        if run is None and not SHIPPED_SUPER_RESOLUTION.is_file():
            raise UserError(
                "no super-resolution model is shipped; name the folder of one: segue train sr-demo makes it"
            )
        saved = load_model(SHIPPED_SUPER_RESOLUTION if run is None else model_file(model_place(run)), weights)
        return cls(saved, codec_of(saved.card.codec_source, saved.card.codec), device)

    def frames(self, samples: int) -> int:
        """Latent frames of a wave."""
        return self.codec.latent_frames(samples)

    def noise(self, frames: int, seed: int, first_frame: int = 0) -> Tensor:
        """[C, frames] standard normal, keyed by blocks of frames: a chunk draws what the whole file draws there."""
        channels = self.codec.channels
        blocks = range(first_frame // NOISE_BLOCK, -(-(first_frame + frames) // NOISE_BLOCK))
        drawn = keyed_noise((channels, NOISE_BLOCK), seed, "super-resolution", blocks)
        start = first_frame - blocks.start * NOISE_BLOCK
        return drawn.transpose(0, 1).flatten(1)[:, start : start + frames]

    @torch.inference_mode()
    def resolve(self, low: Tensor, cutoff_hz: Tensor, noise: Tensor, *, steps: int = 4) -> Tensor:
        """Full-band waves [B, A, T] of band-limited ones.

        Below the cutoff the result is the input, by construction: in the spectrum of 32 ms windows, bins up to the
        cutoff are the input's, and bins from two above it are the model's. Band levels are those of the first solver
        step, which are the model's expectation; later steps generate the fine structure. Levels drawn at random would
        vary as real ones do, which is not audible, and would sometimes be wrong, which is.

        Args:
            low: [B, A, T] at sample_rate_hz, A = audio_channels, with nothing above the cutoff.
            cutoff_hz: [B].
            noise: [B, C, L], L = frames(T); rows may share it.
            steps: evaluations of the model.

        Raises:
            UserError: fewer than one step.
        """
        _check_steps(steps)
        low = low.to(self.device)
        samples = low.shape[-1]
        condition = low_band_condition(self.space, low, cutoff_hz).to(self.device)

        # The missing band: levels from the first step, fine structure from all of them.
        levels: list[Tensor] = []
        count = levels_of(self.codec)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            prediction = self.model(x, t, condition).prediction
            if not levels:
                levels.append(prediction[:, :count])
            prediction = torch.cat([levels[0], prediction[:, count:]], dim=1)
            return velocity_of(prediction, self.model.predicts, x, t, floor=1e-4)

        x_0 = solve(velocity, noise.to(self.device), time_grid(steps), "euler")

        # Both bands together: in the latents, and then, exactly, in the spectrum of the waveform.
        missing = x_0.masked_fill(condition.known_audio()[1][..., None], 0.0)
        whole = self.space.decode(condition.fill_known(missing), samples)
        return self._joined(low, whole, cutoff_hz).cpu()

    def _joined(self, low: Tensor, high: Tensor, cutoff_hz: Tensor) -> Tensor:
        """A wave [B, A, T] with the spectrum of `low` up to the cutoff, and that of `high` from two bins above it."""
        size = self._spectrum.window_samples
        hop = self._spectrum.hop_samples
        window = self._spectrum.window.to(self.device)
        below, above = (
            torch.stft(x.flatten(0, 1), size, hop, window=window, pad_mode="constant", return_complex=True)
            for x in (low, high)
        )
        bin_hz = self.sample_rate_hz / size
        bins_hz = torch.arange(size // 2 + 1, device=self.device) * bin_hz
        of_sides = cutoff_hz.to(self.device).repeat_interleave(low.shape[1])
        share = ((bins_hz - of_sides[:, None]) / (2 * bin_hz)).clamp(0, 1)[..., None]
        joined = torch.lerp(below, above, share.to(below.dtype))
        return torch.istft(joined, size, hop, window=window, length=low.shape[-1]).view_as(low)


def _batches(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Neighbours of one size, at most so many together."""
    begin = 0
    for end in range(1, len(sizes) + 1):
        if end == len(sizes) or end - begin == most or sizes[end] != sizes[begin]:
            yield slice(begin, end)
            begin = end


def _noise_of(shape: tuple[int, int], seed: int | Sequence[int], numbers: Sequence[int] | None, count: int) -> Tensor:
    """[count, *shape] standard normal, a draw for each caption by its seed and its number in the list.

    Raises:
        ValueError: not as many seeds or numbers as captions.
    """
    seeds = [seed] * count if isinstance(seed, int) else seed
    numbers = range(count) if numbers is None else numbers
    drawn = [keyed_noise(shape, s, "generation", [n]) for s, n in zip(seeds, numbers, strict=True)]
    if len(drawn) != count:
        raise ValueError(f"{len(drawn)} seeds for {count} captions")
    return torch.cat(drawn)


def _check_same(part: str, have: dict, want: dict) -> None:
    have = json.loads(json.dumps(have))  # as the card has been through: no tuples
    other = [f"{key} {have.get(key)} for {value}" for key, value in want.items() if have.get(key) != value]
    if other:
        raise UserError(f"the model was trained with another {part} ({', '.join(other)}); load that one")
