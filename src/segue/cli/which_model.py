"""Which model `segue generate` uses: the run that its first word names, or the shipped one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segue.types import UserError

DEFAULT = "default"  # names the shipped model where a RUN is written
SHIPPED_MODEL = "the shipped one (notes, chords and drums of a sound font; RUN names another)"
_EXAMPLE = '"a soft violin playing C 5"'


def run_and_prompts(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """RUN (None: the shipped model) and the prompts, of the words of a command.

    The first word is RUN where it is "default", exists as a path, or holds a slash and no space, as paths and hub names
    do. All other words are prompts.
    """
    if not words or not names_run(words[0]):
        return None, list(words)
    return None if words[0] == DEFAULT else words[0], list(words[1:])


def names_run(word: str) -> bool:
    """Whether a first word is RUN and no prompt."""
    has_slash = any(slash in word for slash in "/\\") and not any(c.isspace() for c in word)
    return word == DEFAULT or has_slash or _exists(word)


def _exists(word: str) -> bool:
    try:
        return bool(word.strip()) and Path(word).exists()
    except (OSError, ValueError):  # longer than any name, or holding a zero byte
        return False


def no_prompt(run: str | None) -> str:
    """The line for a command without a prompt."""
    if run is None:
        return f"no prompt; hint: for example: segue generate {_EXAMPLE}"
    also = f"; as a prompt of the shipped model: segue generate default {run}" if "/" not in run else ""
    return f"no prompt; {run} was taken as RUN; hint: for example: segue generate {run} {_EXAMPLE}{also}"


def refuse_other_run(like: Path, kept: dict, run: str | None) -> None:
    """Refuse to make a file again with the shipped model where another made it.

    Args:
        like: the file.
        kept: its settings.
        run: that was named; any is accepted, since run folders move.

    Raises:
        UserError: no RUN is named, and the shipped model did not make the file.
    """
    made_by = str(kept.get("run", DEFAULT))
    if run is None and made_by != DEFAULT:
        raise UserError(
            f"--like {like}: was made by {made_by}, not by the shipped model; hint: segue generate RUN --like FILE, "
            "with the run folder for RUN"
        )
