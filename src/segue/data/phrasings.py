"""Captions from what is known of a sound without decoding it: its name, its folders, the tags in the file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from segue.data.clip import MOST_CAPTION_CHARACTERS, words_of

_FOLDERS = 2  # of those above a sound, the nearest say most
_COMMENT_WORDS = (3, 60)  # fewer say nothing, more are a licence or a log
# What software and shops write into comments says nothing of the sound.
_NOT_A_CAPTION = re.compile(
    r"https?:|www\.|@|\{|©|licen[cs]e|copyright|creative commons|encoded|encoder|ripped|converted|downloaded|kbps|"
    r"exact audio copy|lame \d|track \d|cover \(",
    re.IGNORECASE,
)
_NOT_A_GENRE = {"other", "unknown", "misc", "miscellaneous", "none", "genre", "undefined", "sound clip"}


def phrasings(
    path: PurePosixPath, tags: Mapping[str, str], recognised: Sequence[str] = (), count: int = 3
) -> tuple[str, ...]:
    """Up to `count` captions of one sound, each another wording; () where nothing is known of it.

    What the sound is comes from its title or its name; what it belongs to from its genre or its folders.

    Args:
        path: of the file, relative to the folder of the set.
        tags: "title", "genre", "comment" of the file, as far as there are any.
        recognised: words that a model gave it, the surest first.
    """
    name = " ".join(words_of(path.stem))
    # A letter alone is a number of another kind.
    name = "" if all(len(word) == 1 for word in name.split()) else name
    title = _clean(tags.get("title", ""))
    # A title that repeats the name's words says nothing more, and its capitals and numbers are no gain.
    title = "" if set(words_of(title)) <= set(name.split()) else title
    what = title or name
    known = set(words_of(what))
    folders = [" ".join(words_of(part)) for part in reversed(path.parts[:-1])][:_FOLDERS]
    genre = _clean(tags.get("genre", "")).lower()
    context = [part for part in ("" if genre in _NOT_A_GENRE else genre, *folders) if set(words_of(part)) - known]
    comment = _clean(tags.get("comment", ""))
    least, most = _COMMENT_WORDS
    if not least <= len(comment.split()) <= most or _NOT_A_CAPTION.search(comment):
        comment = ""
    fresh = [word for word in recognised if not set(words_of(word)) <= known]
    made = [
        ", ".join([what, *fresh[:2]]) if what else ", ".join(recognised),
        ", ".join(part for part in (what, *context[:1]) if part),
        comment,
        what,
        f"a recording of {what}" if what else "",
        ", ".join(part for part in (name if title else "", *context) if part),
    ]
    # Each once, in this order; what differs by capitals alone is the same.
    unique = {caption.lower(): caption for caption in reversed(made) if words_of(caption)}
    ordered = [caption for caption in dict.fromkeys(made) if unique.get(caption.lower()) == caption]
    return tuple(caption[:MOST_CAPTION_CHARACTERS] for caption in ordered[:count])


def _clean(text: str) -> str:
    """A tag in one line: white space made single, what is no text taken out."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
