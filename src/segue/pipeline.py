"""Inference: waveforms from captions, or full-band waveforms from band-limited ones.

pipeline = Pipeline.load("runs/mine")
waves = pipeline.generate(["a soft violin playing C 5"], seconds=2.0, seed=0)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segue.codecs import codec_of
from segue.codecs.base import Codec
from segue.codecs.latent_space import LatentSpace
from segue.codecs.spectral import SpectralCodec
from segue.conditioners import load_conditioner
from segue.conditioners.base import TextConditioner
from segue.editing import Editor, Request, batches, check_prompts
from segue.hub import model_place
from segue.models.adapters import Adapter
from segue.models.fields import Values, field_tensors
from segue.models.files import SavedModel, load_model, model_file
from segue.models.lengths import faded_out
from segue.predictor import Guesser, level_gain
from segue.process.cfg import Combine, combine, guided
from segue.process.noise import keyed_noise, noise_of_frames
from segue.process.path import sample_path, velocity_of
from segue.process.replacement import solve_replacing
from segue.process.solvers import below, solve, time_grid
from segue.sampling import Sampling as Sampling
from segue.sampling import check_steps
from segue.tasks.known_parts import Given
from segue.tasks.super_resolution import levels_of, low_band_condition
from segue.types import TIMES, Condition, UserError

SHIPPED = Path(__file__).parent / "weights" / "text-to-audio" / "model.safetensors"
SHIPPED_SUPER_RESOLUTION = Path(__file__).parent / "weights" / "super-resolution" / "model.safetensors"


class Pipeline(Editor):
    """A text-to-audio model with its codec and text encoder.

    generate                               sounds from prompts, of any length, and loops
    vary, replace, extend, loop            of recordings (segue/editing.py)
    """

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
        return Sampling(own.steps, "dpm" if self.model.predicts == "v" else "euler", own.guidance_scale, 0.0)

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
        negative: str = "",
        given: Given | None = None,
        stream: str = "generation",
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
            negative: what guidance steers away from; "": from the model's idea of no caption.
            given: a recording of `frames` frames, of which a part is kept, or that the noise is put on.
            stream: name of the noise's draws: sounds of one seed that must not begin alike have other names.
            values: of the model's fields, for each caption (`values_for`); default: a sound of `seconds`.

        Raises:
            UserError: a negative prompt without guidance.
        """
        sampling = sampling or self.own_sampling
        seconds = self.saved.card.seconds if seconds is None else seconds
        values = values or [dict(zip(TIMES, (0.0, seconds)))] * len(captions)
        condition = self._told(captions, seconds, values)
        against = self._told([negative] * len(captions), seconds, values) if negative else None
        if negative and sampling.guidance_scale == 1:
            raise UserError(
                "a negative prompt acts through guidance, whose scale is 1 here; hint: --guidance 3, or no --negative"
            )
        channels = self.saved.model.config.channels
        times, scale = time_grid(sampling.steps), 1.0
        guide: Combine = combine
        if isinstance(self.model, Adapter):
            frames, times, guide = self.model.window(frames), self.model.times(sampling.steps), self.model.combiner()
            scale = self.model.start_scale(float(times[0]))

        def drawn(name: str) -> Tensor:
            return _noise_of((channels, frames), seed, numbers, len(captions), name).to(self.device)

        noise = drawn(stream) if noise is None else noise.to(self.device)

        def velocity(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            if on_step is not None:
                on_step()
            prediction = self.model(x, t, condition).prediction
            # A small floor: that of training would leave hiss, and no solver evaluates at t = 0 itself.
            return velocity_of(prediction, self.model.predicts, x, t, floor=1e-4)

        # A recording: noise is put on it, or a part of it is kept, as the model was trained for it or by replacement.
        x = scale * noise
        if given is not None:
            given = given.padded(frames)
            known = given.known.to(self.device)[None, None].expand(len(captions), 1, -1)
            if given.strength < float(times[0]):
                times = below(times, given.strength)
                x = sample_path(given.x_0, noise, torch.full((len(captions),), given.strength, device=self.device))
            if self.keeps_by == "training" and bool(given.known.any()):
                part = {"audio": given.x_0, "known_mask": known}
                condition = replace(condition, **part)
                against = None if against is None else replace(against, **part)
        field = guided(
            velocity,
            condition,
            sampling.guidance_scale,
            sampling.guidance_rescale,
            sampling.guidance_interval,
            guide,
            against,
        )
        if given is not None and self.keeps_by == "replacement" and bool(given.known.any()):
            return solve_replacing(
                field, x, times, sampling.solver, given.x_0, known, lambda draw: drawn(f"{stream}/{draw}")
            )
        return condition.fill_known(solve(field, x, times, sampling.solver))

    def _told(self, captions: Sequence[str], seconds: float, values: Sequence[Values]) -> Condition:
        """What the model is told of sounds, on its device."""
        condition = Condition(*self.conditioner.for_seconds(seconds).encode(captions)).to(self.device)
        if isinstance(self.model, Adapter):
            return replace(condition, seconds=torch.full((len(captions),), seconds, device=self.device))
        if not (self.model.config.numbers or self.model.config.labels):
            return condition
        found = field_tensors(self.model.config.numbers, self.model.config.labels, values)
        return replace(condition, **{name: value.to(self.device) for name, value in found.items()})

    def samples_of(self, seconds: float | None) -> int:
        """Samples of a clip of so many seconds; None: as long as the training clips.

        Raises:
            UserError: a length that is not positive, or too long.
        """
        return self._samples_of("--seconds", self.saved.card.seconds if seconds is None else seconds)

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
        negative: str = "",
        loop: bool = False,
        conditions: Mapping[str, float | str] | None = None,
    ) -> Tensor:
        """Waveforms [B, A, T] at codec.sample_rate_hz for B captions, A = codec.audio_channels.

        Sounds that are much longer than the training clips are made in windows of that length, each of which continues
        the one before it.

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
            negative: what the sounds should not be, such as "noise, hum"; "": nothing.
            loop: whether the end of each sound meets its beginning (`loop`).
            conditions: values of the model's own fields, such as {"bpm": 120}; see `values_for`.

        Raises:
            UserError: no caption, an empty one, a length that is not positive, a condition that it cannot take, or a
                negative prompt without guidance.
        """
        samples = self.samples_of(seconds)
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: give at least 1")
        check_prompts(captions)
        seeds = [seed] * len(captions) if isinstance(seed, int) else list(seed)
        numbers = range(len(captions)) if numbers is None else numbers
        # A loop is full of sound, whatever others last.
        total_sec = samples / self.codec.sample_rate_hz if loop else seconds
        values = self.values_for(captions, total_sec, conditions, seeds, numbers)
        own = [self.own_samples(samples, of_sound) for of_sound in values]
        options: dict[str, Any] = {"sampling": sampling, "negative": negative, "on_step": on_step}
        waves = []
        for part in batches(own, batch_size):
            size = own[part.start]
            frames = self.codec.latent_frames(size)
            if self.piece_frames(frames) == frames:
                x_0 = self.latents(
                    captions[part],
                    frames=frames,
                    seed=seeds[part],
                    numbers=numbers[part],
                    seconds=seconds,
                    values=values[part],
                    **options,
                )
            else:
                empty = torch.zeros(len(captions[part]), self.codec.channels, frames, device=self.device)
                nothing = Given(empty, torch.zeros(frames, dtype=torch.bool))
                ask = Request(captions[part], seeds[part], numbers[part], "generation", values[part], **options)
                x_0 = self.filled(nothing, ask)
            waves.append(torch.nn.functional.pad(self.space.decode(x_0, size).cpu(), (0, samples - size)))
        made = torch.cat(waves)
        if self.saved.card.lengths:
            # What is left there is what the model and the codec make of silence.
            ends_sec = [float(of_sound[TIMES[1]]) for of_sound in values]
            made = faded_out(made, ends_sec, self.codec.sample_rate_hz)
        if not loop:
            return made
        each = zip(made, captions, seeds, numbers)
        options["conditions"] = conditions
        return torch.cat([self.loop(wave, c, seed=s, number=n, **options) for wave, c, s, n in each])


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
        # A model that starts from a predictor's guess needs that very predictor.
        guesser = Guesser.of_card(saved.card.predictor, codec.sample_rate_hz, codec.hop_samples)
        self._guesser = None if guesser is None else guesser.to(device)
        self._share = None if guesser is None else self.model.get_buffer("guess_share")
        # One evaluation depends on depth * window tokens to each side. Several evaluations depend on more, but not
        # measurably: with the shipped model, chunks equal the whole within 2e-7 (docs/super-resolution-method.md).
        reach = config.depth * config.attention_window * config.patch_frames
        self.context_samples = (reach + 4) * codec.hop_samples
        if self._guesser is not None:
            self.context_samples += self._guesser.context_samples

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
        """[N, frames] standard normal, keyed by blocks of frames: a chunk draws what the whole file draws there.

        N is C, and with a predictor C and its noise, of which it gets the same as alone.
        """
        own = noise_of_frames(self.codec.channels, frames, seed, "super-resolution", first_frame)
        return own if self._guesser is None else torch.cat([own, self._guesser.noise(frames, seed, first_frame)])

    def level_gain(self, low: Tensor) -> Tensor:
        """[B, 1, 1] what brings sounds [B, A, T] to the level that the model knows; 1 of models that know any."""
        return low.new_ones(len(low), 1, 1) if self._guesser is None else level_gain(low)

    @torch.inference_mode()
    def resolve(self, low: Tensor, cutoff_hz: Tensor, noise: Tensor, *, steps: int = 4) -> Tensor:
        """Full-band waves [B, A, T] of band-limited ones.

        Below the cutoff the result is the input, by construction: in the spectrum of 32 ms windows, bins up to the
        cutoff are the input's, and bins from two above it are the model's. Band levels are those of the first solver
        step, which are the model's expectation; later steps generate the fine structure. Levels drawn at random would
        vary as real ones do, which is not audible, and would sometimes be wrong, which is.

        Args:
            low: [B, A, T] at sample_rate_hz, A = audio_channels, with nothing above the cutoff; see `level_gain`.
            cutoff_hz: [B].
            noise: [B, N, L] as `noise` draws it, L = frames(T); rows may share it.
            steps: evaluations of the model.

        Raises:
            UserError: fewer than one step.
        """
        check_steps(steps)
        low = low.to(self.device)
        samples = low.shape[-1]
        noise, of_guess = noise.to(self.device).tensor_split([self.codec.channels], dim=1)
        guess = None if self._guesser is None else self._guesser(low, cutoff_hz, of_guess)
        condition = low_band_condition(self.space, low, cutoff_hz, None, guess, self._share).to(self.device)

        # The missing band: levels from the first step, fine structure from all of them.
        levels: list[Tensor] = []
        count = levels_of(self.codec)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            prediction = self.model(x, t, condition).prediction
            if not levels:
                levels.append(prediction[:, :count])
            prediction = torch.cat([levels[0], prediction[:, count:]], dim=1)
            return velocity_of(prediction, self.model.predicts, x, t, floor=1e-4)

        x_0 = solve(velocity, noise, time_grid(steps), "euler")

        # Both bands together: in the latents, and then, exactly, in the spectrum of the waveform.
        missing = x_0.masked_fill(condition.known_audio()[1], 0.0)
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


def _noise_of(
    shape: tuple[int, int], seed: int | Sequence[int], numbers: Sequence[int] | None, count: int, stream: str
) -> Tensor:
    """[count, *shape] standard normal, a draw for each caption by its seed and its number in the list.

    Raises:
        ValueError: not as many seeds or numbers as captions.
    """
    seeds = [seed] * count if isinstance(seed, int) else seed
    numbers = range(count) if numbers is None else numbers
    drawn = [keyed_noise(shape, s, stream, [n]) for s, n in zip(seeds, numbers, strict=True)]
    if len(drawn) != count:
        raise ValueError(f"{len(drawn)} seeds for {count} captions")
    return torch.cat(drawn)


def _check_same(part: str, have: dict, want: dict) -> None:
    have = json.loads(json.dumps(have))  # as the card has been through: no tuples
    other = [f"{key} {have.get(key)} for {value}" for key, value in want.items() if have.get(key) != value]
    if other:
        raise UserError(f"the model was trained with another {part} ({', '.join(other)}); load that one")
