"""How long a sound that is asked for by its caption alone should be: as long as those that were trained on (ours)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from segue.process.noise import keyed_generator

FADE_SEC = 0.05  # behind the end that a model was told, from what it made there to digital silence
ALIKE = 0.5  # share of words that a caption and a prompt must have in common, for its sound to say how long


def draw_seconds(lengths: dict, prompt: str, seed: int, number: int) -> float:
    """The length in seconds of a sound for a prompt; the same for the same arguments.

    It is the length of one of the training sounds whose captions share most words with the prompt, by the words in both
    over the words in either. Where no caption shares half, it is drawn from the quantiles of all lengths.

    Args:
        lengths: of a model's card.
        prompt: what is asked for.
        seed, number: of the sound, as its noise is keyed.
    """
    wanted = _words(prompt)
    shares = {caption: _share(wanted, _words(caption)) for caption in lengths["captions"]}
    best = max(shares.values(), default=0.0)
    place = float(torch.rand((), generator=keyed_generator(seed, "seconds", number)))
    if best >= ALIKE:
        nearest = sorted(lengths["captions"][caption] for caption, share in shares.items() if share == best)
        return nearest[int(place * len(nearest))]
    quantiles = lengths["quantiles"]
    below, share = divmod(place * (len(quantiles) - 1), 1.0)
    low, high = quantiles[int(below)], quantiles[min(int(below) + 1, len(quantiles) - 1)]
    return low + share * (high - low)


def faded_out(wave: Tensor, ends_sec: Sequence[float], rate_hz: float) -> Tensor:
    """Waves [B, A, T] that are digital silence from 50 ms behind each one's end on; before its end nothing changes."""
    ends = torch.tensor([sec * rate_hz for sec in ends_sec])[:, None, None]
    behind = (torch.arange(wave.shape[-1]) - ends).clamp(min=0)
    return wave * (1 - behind / (FADE_SEC * rate_hz)).clamp(min=0)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _share(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(1, len(a | b))
