"""Which clips are trained on and which are held out: by content, so that no sound stands on both sides.

Every command that splits a set does it here: `segue encode`, `segue codec train` and `segue teacher train` hold out
the same clips of the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from segue.data.clip import Clip
from segue.types import printable

VALID_SHARE = 0.05
# One recording is split in time where it is this long, with a gap that belongs to neither side.
LONG_SEC = 10.0
MOST_GAP_SEC = 5.0
LEAST_VALID_SEC = 3.0  # or a quarter of the recording
LEAST_ROWS = 20  # of a list of excerpts, for one of them to be a twentieth
_HELD_OUT_FIRST = ("test", "valid", "train")


@dataclass(frozen=True)
class Split:
    """A set with a split for every clip.

    Attributes:
        clips: the clips; of one long recording, two for each that was given.
        origins: for each of them, the position of the given clip that it comes from.
        notes: what the user should know of it, one line each.
    """

    clips: list[Clip]
    origins: list[int]
    notes: list[str]


def split_clips(
    clips: Sequence[Clip], contents: Sequence[str], seconds_of: Callable[[int], float], is_part: bool = False
) -> Split:
    """Give a split to every clip that has none.

    A content is held out where its hash falls in the first twentieth, so that it keeps its split whatever else comes or
    goes, and all clips of one content share a split. A clip whose content has a split by name elsewhere gets that one.
    A set that names no split and holds nothing of that twentieth gets one validation content, that of the smallest
    hash; a set of one long recording is split in time.

    What a list says itself is kept: where it puts one content into several splits, a note counts that.

    Args:
        contents: a hash for each clip; "" where there is none, and the clip goes by train.
        seconds_of: the length of the file of the clip at a position; asked where there is one content alone.
        is_part: these are some of a larger set's clips, so that what only a small set gets is left out.
    """
    unique = set(contents) - {""}
    is_named = is_part or any(clip.split for clip in clips)
    if not is_named and len(unique) == 1:
        return _split_in_time(clips, contents, seconds_of)
    cut = VALID_SHARE
    # In a small set no hash may fall into the first twentieth: the smallest stands in for it, to validate with.
    if not is_named and len(unique) > 1:
        cut = max(cut, min(map(_position, unique)))
    named = _named_splits(clips, contents)

    def split_of(clip: Clip, content: str) -> str:
        # The hash decides, not a draw: a content keeps its split whatever else comes or goes.
        by_hash = "valid" if content and _position(content) <= cut else "train"
        return clip.split or named.get(content) or by_hash

    split = [replace(clip, split=split_of(clip, content)) for clip, content in zip(clips, contents)]
    parted = parted_contents(clips, contents)
    return Split(split, list(range(len(clips))), [_parted_note(clips, contents, parted)] if parted else [])


def _named_splits(clips: Sequence[Clip], contents: Sequence[str]) -> dict[str, str]:
    """content -> the split that a list names for it; of several, the most held-out."""
    chosen: dict[str, str] = {}
    for clip, content in zip(clips, contents):
        if clip.split and content:
            # Held out wins: training on what somewhere else is tested would be the graver fault.
            chosen[content] = min(clip.split, chosen.get(content, clip.split), key=_HELD_OUT_FIRST.index)
    return chosen


def parted_contents(clips: Sequence[Clip], contents: Sequence[str]) -> set[str]:
    """Contents that a list puts into several splits. A set of one recording may be, where the stretches are apart."""
    splits: dict[str, set[str]] = {}
    for clip, content in zip(clips, contents):
        if clip.split and content:
            splits.setdefault(content, set()).add(clip.split)
    if len(set(contents) - {""}) == 1 and _are_apart(clips):
        return set()
    return {content for content, names in splits.items() if len(names) > 1}


def _parted_note(clips: Sequence[Clip], contents: Sequence[str], parted: set[str]) -> str:
    rows = [clip for clip, content in zip(clips, contents) if content in parted]
    content = next(content for content in contents if content in parted)
    first, *others = [clip for clip, of in zip(clips, contents) if of == content]
    other = next(clip for clip in others if clip.split != first.split)
    return printable(
        f"{len(parted):,} sounds ({len(rows):,} rows) stand in several splits by name, so that held-out clips are "
        f"trained on (e.g. {first.id} in {first.split}, {other.id} in {other.split}, of equal content); hint: segue "
        "data check --fix OUT.jsonl writes a list in which they are held out alone"
    )


def held_out_first(clips: Sequence[Clip], contents: Sequence[str]) -> list[Clip]:
    """The clips with each content that a list puts into several splits in the most held-out of them alone."""
    parted = parted_contents(clips, contents)
    named = _named_splits(clips, contents)
    return [replace(c, split=named[content]) if content in parted else c for c, content in zip(clips, contents)]


def missing_split_note(clips: Sequence[Clip]) -> str | None:
    """One line where a set lacks clips to validate with, or to train on; None where it has both."""
    splits = {clip.split for clip in clips}
    if clips and "valid" not in splits:
        return (
            "no validation clip: segue train needs one; hint: add sounds of other content, a column split with 'valid' "
            "in some rows, or --column split= to pass over the splits that are named"
        )
    if clips and "train" not in splits:
        return "no clip to train on; hint: a column split with 'train' in most rows"
    return None


def _position(content: str) -> float:
    return int(content[:16], 16) / 2**64


def _are_apart(clips: Sequence[Clip]) -> bool:
    """Whether no stretch of one split overlaps a stretch of another."""
    stretches = sorted((c.start_sec, float("inf") if c.length_sec is None else c.start_sec + c.length_sec, c.split)
                       for c in clips)  # fmt: skip
    # Sorted by their starts, only near neighbours can overlap; 50 of them bound the work on a long list.
    return all(a[2] == b[2] or a[1] <= b[0] for i, a in enumerate(stretches) for b in stretches[i + 1 : i + 50])


def _split_in_time(clips: Sequence[Clip], contents: Sequence[str], seconds_of: Callable[[int], float]) -> Split:
    """The end of one recording is held out, behind a gap; excerpts that touch the gap are left out."""
    total_sec = seconds_of(next(i for i, content in enumerate(contents) if content))
    whole = all(clip.is_whole for clip in clips)
    everything = Split([replace(clip, split="train") for clip in clips], list(range(len(clips))), [])
    if total_sec < LONG_SEC or not (whole or len(clips) >= LEAST_ROWS):
        return everything
    # The end of the recording is held out, behind a gap, since neighbouring seconds are alike.
    from_sec = total_sec - max(VALID_SHARE * total_sec, min(LEAST_VALID_SEC, total_sec / 4))
    gap_sec = min(MOST_GAP_SEC, VALID_SHARE * total_sec)
    until_sec = from_sec - gap_sec
    split: list[Clip] = []
    origins: list[int] = []
    # A whole file becomes two clips; excerpts go to the side that they lie on.
    for index, clip in enumerate(clips):
        if clip.is_whole:
            split.append(replace(clip, split="train", length_sec=until_sec))
            split.append(replace(clip, split="valid", start_sec=from_sec, id=f"{clip.id}#valid"))
            origins += [index, index]
        elif clip.start_sec + clip.seconds(total_sec) <= until_sec or clip.start_sec >= from_sec:
            split.append(replace(clip, split="valid" if clip.start_sec >= from_sec else "train"))
            origins.append(index)
    # All excerpts on one side would leave nothing to validate with: then there is no split.
    if {clip.split for clip in split} != {"train", "valid"}:
        return everything
    left = len(clips) - len(set(origins))
    note = f"one recording of {total_sec:.0f} s: held out from {from_sec:.1f} s on, behind a gap of {gap_sec:.1f} s" + (
        f"; {left} excerpts in the gap left out" if left else ""
    )
    return Split(split, origins, [note])
