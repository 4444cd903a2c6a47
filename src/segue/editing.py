"""What a trained model does with a recording: it continues it, replaces a stretch, varies it, loops it.

All of it is one thing: some latent frames are known, and the others are generated to fit them. What is kept is the
recording itself, sample by sample, not what the codec makes of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from segue.codecs.base import Codec
from segue.codecs.latent_space import LatentSpace
from segue.models.adapters import Adapter
from segue.models.files import SavedModel
from segue.process.replacement import ROUNDS
from segue.sampling import Sampling
from segue.tasks.known_parts import Given, context_around, splice, windows
from segue.types import UserError

MOST_SECONDS = 3600.0
LONGEST = 2.0  # training lengths that one of our models makes in one piece; from no trials
FADE_SEC = 0.02  # of the cross-fades between a recording and what is made
MIRRORED_SEC = 0.25  # of a recording's end, behind it, so that the codec does not encode that it stops
LOOP_SHARE = 0.25  # of a loop that is made anew around its joint, up to LOOP_SEC
LOOP_SEC = 1.0


class Editor(ABC):
    """The editing half of `Pipeline`.

    Waves are float [A, T] at `codec.sample_rate_hz`, A = `codec.audio_channels`; results are [1, A, T] on the CPU. The
    same wave, prompt, seed and settings give the same samples, bit for bit on a CPU. Options that all methods share:

        seed: of the noise.
        sampling: solver and guidance; default: `own_sampling`.
        negative: what the sound should not be, in place of the empty prompt of classifier-free guidance.
        number: of the take in a longer list; seed and number together decide the noise.
        on_step: called after every evaluation of the model.

    All methods raise UserError for an empty prompt, a wave of another shape, and numbers that do not fit the wave.
    """

    codec: Codec
    space: LatentSpace
    saved: SavedModel
    device: str

    @abstractmethod
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
        negative: str = "",
        given: Given | None = None,
        stream: str = "generation",
    ) -> Tensor:
        """Standardised latents; see `Pipeline.latents`."""

    @property
    def keeps_by(self) -> str:
        """How known parts enter the model: "training" (train.known_share) or "replacement" (RePaint)."""
        return "training" if self.saved.model.config.known else "replacement"

    @torch.inference_mode()
    def vary(
        self,
        wave: Tensor,
        prompt: str,
        *,
        strength: float,
        seed: int = 0,
        sampling: Sampling | None = None,
        negative: str = "",
        number: int = 0,
        on_step: Callable[[], None] | None = None,
    ) -> Tensor:
        """A variation of a recording: noise up to the level `strength` is put on it and taken away under the prompt.

        Works with every model (SDEdit, arXiv 2108.01073).

        Args:
            strength: above 0, up to 1: near 0 the recording, at 1 a new sound. Solver steps are those of the whole path
                that lie below it.

        Returns:
            [1, A, T], as long as the wave.
        """
        if not 0 < strength <= 1:
            raise UserError(f"--strength {strength:g}: hint: give more than 0, up to 1; 0.4 keeps what it sounds like")
        wave = self._checked(wave, prompt)
        x_0 = self.space.encode(wave[None])
        given = Given(x_0, torch.zeros(x_0.shape[-1], dtype=torch.bool), strength)
        made = self._filled([prompt], given, [seed], [number], "variation", sampling, negative, on_step)
        return self.space.decode(made, wave.shape[-1]).cpu()

    @torch.inference_mode()
    def replace(
        self,
        wave: Tensor,
        prompt: str,
        *,
        start_sec: float,
        end_sec: float,
        seed: int = 0,
        sampling: Sampling | None = None,
        negative: str = "",
        number: int = 0,
        on_step: Callable[[], None] | None = None,
    ) -> Tensor:
        """A recording with the stretch from `start_sec` to `end_sec` made anew to fit what stands beside it.

        The stretch is widened to whole latent frames. Outside it the result is the recording, sample by sample, but for
        20 ms on either side, over which the two are cross-faded.

        Returns:
            [1, A, T], as long as the wave.
        """
        wave = self._checked(wave, prompt)
        rate_hz = self.codec.sample_rate_hz
        total_sec = wave.shape[-1] / rate_hz
        stretch = f"--replace {start_sec:g}-{end_sec:g}"
        if not start_sec < end_sec:
            raise UserError(f"{stretch}: of no length; hint: give a start before the end, such as 2.0-3.5")
        # Half a sample: what was written with few digits means the end.
        if start_sec < 0 or end_sec > total_sec + 0.5 / rate_hz + 1e-3:
            raise UserError(f"{stretch}: the recording lasts {total_sec:.3f} s; hint: give a range within it")
        first, last = round(start_sec * rate_hz), min(round(end_sec * rate_hz), wave.shape[-1])
        if first >= last:
            raise UserError(f"{stretch}: less than one sample; hint: give a longer range")
        return self._replaced(wave, prompt, first, last, seed, number, "replacement", sampling, negative, on_step)

    @torch.inference_mode()
    def extend(
        self,
        wave: Tensor,
        prompt: str,
        *,
        seconds: float,
        seed: int = 0,
        sampling: Sampling | None = None,
        negative: str = "",
        number: int = 0,
        on_step: Callable[[], None] | None = None,
    ) -> Tensor:
        """A recording and its continuation by `seconds`.

        The recording is kept sample by sample, but for an incomplete latent frame at its end and the 20 ms before that,
        which are cross-faded.

        Returns:
            [1, A, T], T = the wave's length and `seconds` together.
        """
        wave = self._checked(wave, prompt)
        more = self._samples_of("--continue", seconds)
        hop, known = self.codec.hop_samples, wave.shape[-1] // self.codec.hop_samples
        if not known:
            raise UserError(
                f"the recording is shorter than one latent frame ({hop} samples); hint: give more of it, or generate "
                "without --from"
            )
        total = wave.shape[-1] + more
        frames, most = self.codec.latent_frames(total), self._training_frames
        # Half a window of the recording is known to the model, more where the continuation is short.
        first = max(0, known - max(most // 2, most - (frames - known)))
        tail = wave[:, first * hop :]
        mirror = tail.flip(-1)[:, : round(MIRRORED_SEC * self.codec.sample_rate_hz)]
        x_0 = self.space.encode(torch.cat([tail, mirror], dim=-1)[None])[..., : known - first]
        x_0 = torch.nn.functional.pad(x_0, (0, frames - first - x_0.shape[-1]))
        given = Given(x_0, torch.arange(frames - first) < known - first)
        latents = self._filled([prompt], given, [seed], [number], "continuation", sampling, negative, on_step)
        made = self.space.decode(latents, total - first * hop)[0].cpu()
        whole = torch.nn.functional.pad(wave.cpu(), (0, more))
        made = torch.cat([whole[:, : first * hop], made], dim=-1)
        return splice(whole, made, known * hop, total, self._fade)[None]

    @torch.inference_mode()
    def loop(
        self,
        wave: Tensor,
        prompt: str,
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
        negative: str = "",
        number: int = 0,
        on_step: Callable[[], None] | None = None,
    ) -> Tensor:
        """A recording whose end meets its beginning, so that it can be played round and round.

        A quarter of it around the joint, up to a second, is made anew: the last eighth and the first. The rest is the
        recording, sample by sample, but for 20 ms on either side.

        Returns:
            [1, A, T], as long as the wave.
        """
        wave = self._checked(wave, prompt)
        samples = wave.shape[-1]
        half = samples // 2
        beside = min(round(LOOP_SHARE * samples), round(LOOP_SEC * self.codec.sample_rate_hz)) // 2
        if not beside:
            raise UserError(f"a loop of {samples} samples is too short; hint: give a longer one")
        # Turned by half a round, the joint lies in the middle, and is a stretch like any other.
        turned = wave.roll(half, -1)
        made = self._replaced(
            turned, prompt, half - beside, half + beside, seed, number, "loop", sampling, negative, on_step
        )
        return made.roll(-half, -1)

    # --- what they share ----------------------------------------------------------------------------------------------

    @property
    def _training_frames(self) -> int:
        """Latent frames of the training clips."""
        longest = self.saved.model.longest() if isinstance(self.saved.model, Adapter) else None
        return longest or self.codec.latent_frames(round(self.saved.card.seconds * self.codec.sample_rate_hz))

    @property
    def _fade(self) -> int:
        return round(FADE_SEC * self.codec.sample_rate_hz)

    def piece_frames(self, frames: int) -> int:
        """Latent frames that are made at once of a sound of so many: all, or a window of a long one.

        Public models make as much as they can. Ours, which know no other length than that of their training clips, make
        up to twice that.
        """
        model = self.saved.model
        if isinstance(model, Adapter):
            return min(frames, model.longest() or frames)
        return frames if frames <= LONGEST * self._training_frames else self._training_frames

    def evaluations(self, samples: int, sampling: Sampling, loop: bool = False) -> int:
        """How often `generate` evaluates the model for one batch of sounds of so many samples."""
        each = 2 * sampling.steps - 1 if sampling.solver == "heun" else sampling.steps
        rounds = 1 if self.keeps_by == "training" else ROUNDS
        frames = self.codec.latent_frames(samples)
        pieces = len(list(windows(torch.zeros(frames, dtype=torch.bool), self.piece_frames(frames))))
        return each * (1 + rounds * (pieces - 1 + loop))

    def _filled(
        self,
        prompts: Sequence[str],
        given: Given,
        seeds: Sequence[int],
        numbers: Sequence[int],
        stream: str,
        sampling: Sampling | None,
        negative: str,
        on_step: Callable[[], None] | None,
    ) -> Tensor:
        """[B, C, L] whole latents: what is known of `given`, and the rest made in windows."""
        x_0, known = given.x_0.clone(), given.known
        for index, frames in enumerate(windows(known, self.piece_frames(len(known)))):
            part = Given(x_0, known, given.strength).part(frames)
            length = frames.stop - frames.start
            made = self.latents(
                prompts,
                frames=length,
                seed=seeds,
                sampling=sampling,
                numbers=numbers,
                on_step=on_step,
                seconds=length / self.codec.frame_rate_hz,
                negative=negative,
                given=part,
                stream=f"{stream}-{index}" if index else stream,
            )
            x_0[..., frames] = made[..., :length]
            known = known.clone()
            known[frames] = True
        return x_0

    def _replaced(
        self,
        wave: Tensor,
        prompt: str,
        first: int,
        last: int,
        seed: int,
        number: int,
        stream: str,
        sampling: Sampling | None,
        negative: str,
        on_step: Callable[[], None] | None,
    ) -> Tensor:
        """A wave [A, T] with samples [first, last) made anew: [1, A, T]."""
        hop, samples = self.codec.hop_samples, wave.shape[-1]
        begin, end = first // hop, -(-last // hop)
        around = context_around(begin, end, self.codec.latent_frames(samples), self._training_frames)
        part = wave[:, around.start * hop : around.stop * hop]
        x_0 = self.space.encode(part[None])
        at = torch.arange(x_0.shape[-1]) + around.start
        given = Given(x_0, (at < begin) | (at >= end))
        latents = self._filled([prompt], given, [seed], [number], stream, sampling, negative, on_step)
        made = self.space.decode(latents, part.shape[-1])[0].cpu()
        whole = wave.cpu()
        filled = torch.cat([whole[:, : around.start * hop], made, whole[:, around.start * hop + part.shape[-1] :]], -1)
        return splice(whole, filled, begin * hop, min(end * hop, samples), self._fade)[None]

    def _checked(self, wave: Tensor, prompt: str) -> Tensor:
        """A wave as the codec takes it, on its device.

        Raises:
            UserError: another shape, samples that are not finite, or an empty prompt.
        """
        channels = self.codec.audio_channels
        if wave.ndim != 2 or wave.shape[0] != channels or not wave.shape[1]:
            raise UserError(
                f"a recording of shape {list(wave.shape)}; hint: this model takes [{channels}, samples] at "
                f"{self.codec.sample_rate_hz:,} Hz"
            )
        if not bool(torch.isfinite(wave).all()):
            raise UserError("the recording has samples that are not finite; hint: give another one")
        check_prompts([prompt])
        return wave.float().to(self.device)

    def _samples_of(self, option: str, seconds: float) -> int:
        """Samples of so many seconds.

        Raises:
            UserError: a length that is not positive, or too long.
        """
        if not 0 < seconds < float("inf"):
            raise UserError(f"{option} {seconds}: give a positive length")
        if seconds > MOST_SECONDS:
            raise UserError(f"{option} {seconds:g}: hint: give at most {MOST_SECONDS:g}")
        samples = round(seconds * self.codec.sample_rate_hz)
        if samples < 1:
            raise UserError(f"{option} {seconds:g}: hint: give more, that is less than one sample")
        return samples


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse what says nothing.

    Raises:
        UserError: no prompt, or an empty one.
    """
    if not prompts or any(not prompt.strip() for prompt in prompts):
        raise UserError('an empty prompt; say what to generate, for example "a soft violin playing C 5"')
