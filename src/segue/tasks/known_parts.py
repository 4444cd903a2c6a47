"""What is known of a sound along time: drawn in training, laid out in windows and joined again in editing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from segue.process.noise import BatchDraws
from segue.types import Condition

UNIFORMS = 4  # numbers that the known part of an example is drawn from
KINDS = ("start", "end", "middle", "both ends")  # of known parts: equally often


@dataclass(frozen=True)
class Given:
    """A recording that a sound is made from.

    Attributes:
        x_0: [B, C, L] its standardised latents.
        known: [L] bool, True where a frame is kept.
        strength: noise level t at which the frames that are not kept begin: 1 = from noise alone; below, from the
            recording with so much noise on it (SDEdit, arXiv 2108.01073).
    """

    x_0: Tensor
    known: Tensor
    strength: float = 1.0

    def part(self, frames: slice) -> Given:
        """A stretch of it."""
        return replace(self, x_0=self.x_0[..., frames], known=self.known[frames])

    def padded(self, frames: int) -> Given:
        """The same with frames behind its end that are not known, for models that make windows of one length."""
        more = frames - len(self.known)
        pad = torch.nn.functional.pad
        return replace(self, x_0=pad(self.x_0, (0, more)), known=pad(self.known, (0, more)))


def with_known_parts(
    condition: Condition, x_0: Tensor, mask: Tensor | None, draws: BatchDraws, share: float
) -> Condition:
    """The condition of a training batch, with a stretch of some of its examples.

    Args:
        condition: of the batch.
        x_0: [B, C, L] its latents.
        mask: [B, L] bool of real frames; None where all are.
        draws: of this batch, on the device of x_0.
        share: of the examples that get one.
    """
    frames = x_0.new_full((len(x_0),), x_0.shape[-1]) if mask is None else mask.sum(1)
    known = known_frames(draws.uniform("known", UNIFORMS), frames.long(), x_0.shape[-1], share)[:, None]
    return replace(condition, audio=x_0 * known, known_mask=known)


def known_frames(uniform: Tensor, frames: Tensor, length: int, share: float) -> Tensor:
    """Which frames of each example are known: [B, length] bool. Our definition.

    The first number decides whether any is, the second which kind (KINDS), the third how many frames (1 to all but
    one), the fourth where they stand. All kinds are one stretch on a circle: the one of "both ends" goes round.

    Args:
        uniform: [B, UNIFORMS] in [0, 1).
        frames: [B] int, real frames of each; fewer than two leave nothing to know.
        length: L.
        share: of the examples of which something is known.
    """
    some, kind, size, place = uniform.unbind(1)
    count = (1 + (size * (frames - 1)).long()).minimum(frames - 1).clamp(min=0)
    inside = (place * (frames - count + 1)).long().minimum(frames - count)  # any place, the ends included
    around = frames - count + 1 + (place * (count - 1)).long()  # from the frame on at which it must go round
    places = torch.stack([torch.zeros_like(count), frames - count, inside, around], dim=1)
    start = places.gather(1, (kind * len(KINDS)).long()[:, None])
    at = torch.arange(length, device=uniform.device)
    offset = (at - start) % frames[:, None].clamp(min=1)
    return (offset < count[:, None]) & (at < frames[:, None]) & (some < share)[:, None]


def windows(known: Tensor, most: int) -> Iterator[slice]:
    """Stretches of at most `most` frames that together hold every unknown frame, in the order of making them.

    Each begins half a window before the first frame that is still missing, so that half of it is known by then; what
    one has made is known to the next.

    Args:
        known: [L] bool.
    """
    length = len(known)
    made = 0
    for frame in (~known).nonzero().flatten().tolist():
        if frame < made:
            continue
        first = min(max(0, frame - most // 2), max(0, length - most))
        made = min(length, first + most)
        yield slice(first, made)


def context_around(first: int, last: int, total: int, most: int) -> slice:
    """The stretch of a recording that an edit of [first, last) needs to know, in frames.

    It fills a window of `most` frames where the edit is short, and is a quarter of one on each side where it is long.

    Args:
        total: frames of the recording.
    """
    beside = max((most - (last - first)) // 2, most // 4)
    left, right = min(first, beside), min(total - last, beside)
    # What one side lacks the other may give.
    left, right = min(first, 2 * beside - right), min(total - last, 2 * beside - left)
    return slice(first - left, last + right)


def splice(recording: Tensor, made: Tensor, first: int, last: int, fade: int) -> Tensor:
    """[A, T]: `made` in samples [first, last), the recording elsewhere, bit for bit, but for cross-fades beside them.

    The cross-fades lie in the recording, where both sides are the same sound: what was to be replaced is gone as a
    whole.

    Args:
        recording, made: [A, T].
        fade: samples of a cross-fade; there is none at an end of the sound.
    """
    at = torch.arange(recording.shape[-1])
    ramp = max(1, fade + 1)
    before = 1 - (first - at).clamp(min=0) / ramp
    after = 1 - (at - (last - 1)).clamp(min=0) / ramp
    # lerp is exact at 0 and at 1.
    return recording.lerp(made, before.minimum(after).clamp(min=0).to(recording.dtype))
