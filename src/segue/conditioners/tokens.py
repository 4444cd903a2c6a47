"""How captions fit a text encoder: how many tokens they need, which are cut, and which hold words it does not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segue.conditioners.base import TextConditioner
from segue.types import UserError, printable

DEFAULT_TOKENS = 48
# Sizes that a longer caption is given, so that a few more words in a set do not change its cache.
_SIZES = (DEFAULT_TOKENS, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class TokenCounts:
    """Of some captions.

    Attributes:
        longest: tokens of the longest, before any is cut.
        cut: the captions that lose their end.
        unknown: the captions with words or signs that the encoder has no token for, such as emoji.
        max_tokens: where captions are cut.
    """

    longest: int
    cut: tuple[str, ...]
    unknown: tuple[str, ...]
    max_tokens: int

    def notes(self, what: str = "caption") -> list[str]:
        """One line for each thing that the encoder loses."""
        found = []
        of_set = what == "caption"  # what a model was trained with, generating cannot change
        if self.cut:
            advice = "shorten, or raise --max-tokens where the encoder has room" if of_set else "shorten the prompt"
            found.append(
                f"{_counted(self.cut, what)} longer than {self.max_tokens} tokens, cut there (the longest has "
                f"{self.longest:,}); hint: {advice}"
            )
        if self.unknown:
            advice = "write them in words, or --text with another encoder" if of_set else "write them in words"
            found.append(
                f"{_counted(self.unknown, what)} with words or signs that the text encoder does not know (emoji, other "
                f"scripts): they count as one unknown word; hint: {advice}"
            )
        return found


def count_tokens(conditioner: TextConditioner, captions: Sequence[str]) -> TokenCounts | None:
    """What an encoder makes of captions; None where it does not tell."""
    counted = conditioner.count_tokens(captions) if captions else None
    if counted is None:
        return None
    lengths, unknowns = counted
    cut = tuple(c for c, length in zip(captions, lengths) if length > conditioner.max_tokens)
    unknown = tuple(c for c, count in zip(captions, unknowns) if count)
    return TokenCounts(max(lengths), cut, unknown, conditioner.max_tokens)


def fit_tokens(
    conditioner: TextConditioner, captions: Sequence[str], max_tokens: int | None = None, least: int = DEFAULT_TOKENS
) -> TextConditioner:
    """The encoder with room for these captions.

    Args:
        max_tokens: cut captions here; None: what the longest needs, up to the positions that the encoder has.
        least: never less, where `max_tokens` is None.

    Raises:
        UserError: `max_tokens` is more than the encoder has positions for, or leaves no room for a word.
    """
    if max_tokens is not None:
        return conditioner.with_max_tokens(max_tokens)
    counts = count_tokens(conditioner, captions)
    # Only where nothing would change: neither more nor less room.
    if counts is None or counts.longest <= conditioner.max_tokens == least:
        return conditioner
    # Sizes in steps: a few more words in a set then leave its cache as it is.
    needed = max(least, next((size for size in _SIZES if size >= counts.longest), _SIZES[-1]))
    return conditioner.with_max_tokens(min(needed, conditioner.most_tokens))


def refuse_max_tokens(name: str, max_tokens: int, least: int, most: int) -> None:
    """
    Raises:
        UserError: `max_tokens` is not in this range.
    """
    if not least <= max_tokens <= most:
        raise UserError(f"--max-tokens {max_tokens}: hint: give {least} to {most}, as --text {name} takes them")


def _counted(captions: Sequence[str], what: str) -> str:
    first = captions[0] if len(captions[0]) <= 60 else f"{captions[0][:57]}..."
    return printable(f"{len(captions):,} {what}{'s' * (len(captions) > 1)} (e.g. {first!r})")
