"""Words that every room shares: shape letters, the direction of time, what a condition is, what a model returns.

Shape letters, used in every docstring of the project:
    B batch, C latent channels, L latent frames, T waveform samples, D model width, K text tokens, E text features,
    S teacher frames, F teacher features.

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


class UserError(Exception):
    """A mistake that the user can correct: one line that names the file or option, and a hint that works.

    The command line prints it without a traceback and exits with 2.
    """


def first_line(error: Exception) -> str:
    """What another library's error says, cut to one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: str) -> str:
    """Text that cannot command a terminal: control and unprintable characters of a file's name or content escaped."""
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
    """Settings as an older version wrote them, without those that are no settings any more.

    Args:
        data: name -> value.
        deleted: name -> the value that it had by default, and that the code has now.
        where: what to call them, such as "regime.".

    Raises:
        UserError: one of them had another value; today's code cannot do what it asked for.
    """
    for name, value in data.items():
        if name in deleted and value != deleted[name]:
            raise UserError(
                f"{where}{name} is {value!r}, and no setting any more: it is {deleted[name]!r} for all; "
                "hint: use the segue that wrote it, or train anew"
            )
    return {name: value for name, value in data.items() if name not in deleted}


@dataclass(frozen=True)
class Condition:
    """What the model is told beside x_t. Every part is optional.

    Attributes:
        tokens: [B, K, E] text token embeddings.
        tokens_mask: [B, K] bool, True where a token is real. Required when tokens is given.
        drop: [B] bool, True where the condition is replaced by the model's learned null (classifier-free guidance).
        audio: [B, C, L] standardised latents of what there is of the sound.
        given: [B, C] bool, True where audio holds a channel of the whole, which then is not generated. Required with
            audio.
        cutoff: [B] where the given band ends, as a share of half the sample rate. Required with audio.
    """

    tokens: Tensor | None = None
    tokens_mask: Tensor | None = None
    drop: Tensor | None = None
    audio: Tensor | None = None
    given: Tensor | None = None
    cutoff: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """The condition with every tensor that there is changed."""
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

    def complete(self, x_0: Tensor) -> Tensor:
        """[B, C, L] what is generated, and what was given beside it: a whole latent."""
        if self.audio is None or self.given is None:
            return x_0
        return self.audio.where(self.given[..., None], x_0)


@dataclass(frozen=True)
class ModelOutput:
    """What a backbone returns.

    Attributes:
        prediction: [B, C, L] velocity or clean sample, as the model's `predicts` says.
    """

    prediction: Tensor
