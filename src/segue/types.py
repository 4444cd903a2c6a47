"""Terms and types that every package of segue shares: shape letters, the direction of time, Condition, ModelOutput.

Shape letters, used in every docstring of the project:
    B batch, A audio channels (1, or left and right), C latent channels, L latent frames, T waveform samples,
    D model width, K text tokens, E text features, S teacher frames, F teacher features.

Time: t = 0 is data, t = 1 is noise. x_t = (1 - t) x_0 + t eps, velocity v = eps - x_0.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # every file imports this one, and a help text must not wait for torch
    import torch
    from torch import Tensor


# Names of the numbers that a model is told of a crop: where it starts in its sound, and how long the whole sound is.
TIMES = ("seconds_start", "seconds_total")


class UserError(Exception):
    """A mistake that the user can correct: one line that names the file or option, and a hint that works.

    The command line prints it without a traceback and exits with 2.
    """


def first_line(error: BaseException) -> str:
    """The message of another library's error, cut to its first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: str) -> str:
    """Text that is safe to print: control and unprintable characters of a file's name or content are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def import_extra(module: str, extra: str) -> ModuleType:
    """Import a heavy third-party module lazily.

    Raises:
        UserError: the module is missing; the line names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"this needs {error.name}, which is not installed; hint: pip install 'segue-audio[{extra}]'"
        ) from error


def without_deleted(data: Mapping, deleted: Mapping, where: str) -> dict:
    """Settings that an older version wrote, without those that have been removed since.

    Args:
        data: name -> value.
        deleted: name of a removed setting -> its former default, which is now a constant of the code.
        where: the prefix of the names in messages, such as "regime.".

    Raises:
        UserError: a removed setting had another value, which today's code cannot reproduce.
    """
    for name, value in data.items():
        if name in deleted and value != deleted[name]:
            raise UserError(
                f"{where}{name} is {value!r}, but this setting was removed and is always {deleted[name]!r}; "
                "hint: use the version of segue that wrote it, or train again"
            )
    return {name: value for name, value in data.items() if name not in deleted}


@dataclass(frozen=True)
class Condition:
    """What a model is conditioned on, beside x_t and t. Every part is optional.

    Attributes:
        tokens: [B, K, E] text token embeddings.
        tokens_mask: [B, K] bool, True where a token is real. Required with `tokens`.
        drop: [B] bool, True where the condition is replaced by the model's learned null (classifier-free guidance).
        audio: [B, C, L] standardised latents of the known part of the sound.
        known_mask: bool, True where `audio` holds a part of the result, which is then not generated: whole channels
            [B, C, 1] in super-resolution, whole frames [B, 1, L] in editing. Required with `audio`.
        mean: [B, C, L] what is added to a generated x_0, 0 where it is known: super-resolution that starts from a
            predictor's guess generates what the guess lacks. `audio` then holds the guess wherever it is not known.
        turn: [B, C, L] what the sum is multiplied by: 1, or for the two channels of a complex number, both of which
            hold its magnitude, the cosine and the sine of the guess's phase. Required with `mean`.
        cutoff: [B] upper end of the known band, as a share of half the sample rate. Of super-resolution.
        seconds: [B] length of the sound, for public models that are conditioned on it.
        numbers: [B, fields] where each number of a model's fields lies in its range, 0 to 1 (models/fields.py).
        numbers_known: [B, fields] bool, False where a number is unknown. Required with `numbers`.
        labels: [B, fields] int64 number of each label, from 1; 0 where it is unknown.
    """

    tokens: Tensor | None = None
    tokens_mask: Tensor | None = None
    drop: Tensor | None = None
    audio: Tensor | None = None
    known_mask: Tensor | None = None
    mean: Tensor | None = None
    turn: Tensor | None = None
    cutoff: Tensor | None = None
    seconds: Tensor | None = None
    numbers: Tensor | None = None
    numbers_known: Tensor | None = None
    labels: Tensor | None = None

    def text(self) -> tuple[Tensor, Tensor]:
        """tokens [B, K, E] and tokens_mask [B, K].

        Raises:
            ValueError: one of them is missing.
        """
        if self.tokens is None or self.tokens_mask is None:
            raise ValueError("a condition with text needs tokens and tokens_mask")
        return self.tokens, self.tokens_mask

    def known_audio(self) -> tuple[Tensor, Tensor]:
        """audio [B, C, L] and known_mask, which broadcasts over it.

        Raises:
            ValueError: one of them is missing.
        """
        if self.audio is None or self.known_mask is None:
            raise ValueError("a condition with audio needs audio and known_mask")
        return self.audio, self.known_mask

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """The condition with each of its tensors changed."""
        parts = ((f.name, getattr(self, f.name)) for f in fields(self))
        return Condition(**{name: None if x is None else change(x) for name, x in parts})

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on another device."""
        return self.map(lambda x: x.to(device))

    def rows(self, index: Tensor | slice | list[int]) -> Condition:
        """The condition of some examples of the batch."""
        return self.map(lambda x: x[index])

    def dropped(self) -> Condition:
        """The same batch with every condition replaced by the learned null."""
        some = self.tokens if self.tokens is not None else self.audio
        if some is None:
            return self
        return replace(self, drop=some.new_ones(len(some)).bool())

    def fill_known(self, x_0: Tensor) -> Tensor:
        """[B, C, L] a whole latent: what is known from `audio`, the rest from generated x_0 [B, C, L] and `mean`."""
        if self.audio is None or self.known_mask is None:
            return x_0
        if self.mean is not None and self.turn is not None:
            x_0 = (x_0 + self.mean) * self.turn
        return self.audio.where(self.known_mask, x_0)

    def generated(self, mask: Tensor | None) -> Tensor | None:
        """[B, L] bool: real frames that are not known as a whole; None where that is every frame.

        Args:
            mask: [B, L] bool of real frames; None where all are.
        """
        if self.known_mask is None or self.known_mask.shape[-1] == 1:
            return mask
        missing = ~self.known_mask[:, 0]
        return missing if mask is None else missing & mask


@dataclass(frozen=True)
class ModelOutput:
    """What a backbone returns.

    Attributes:
        prediction: [B, C, L] velocity or clean sample, as the model's `predicts` says.
    """

    prediction: Tensor
