"""A folder of named recordings as the data set of a demo: where it is, its captions, and what is held out of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from segue.audio.read import read_header
from segue.audio.sound import BadAudio
from segue.data.clip import Clip
from segue.data.content import content_hashes
from segue.data.manifest import read_listing
from segue.data.reading import Reading
from segue.data.sound_folder import OWN_LISTS
from segue.data.splits import held_out_first
from segue.evaluation.notes import spread
from segue.types import UserError, printable
from segue.workflows.caption_folder import caption_folder

EFFECTS = "effects"  # what stands for an installed package of effects
LEAST = 64  # recordings; of fewer, too few are left to train on or to measure with
HELD_OUT_CAPTIONS = 0.12  # share of the captions of which no recording is trained on
HELD_OUT_RECORDINGS = 0.15  # share of the other recordings
# Below the folders of shared data: the effects of the game Wesnoth, some 290 named ones under GPL-2+.
_INSTALLED = "games/wesnoth/*/data/core/sounds"
_PACKAGE = "wesnoth-1.16-data"
_SHARED = "/usr/local/share:/usr/share"  # where XDG_DATA_DIRS is not set


def find_recordings(name: str) -> Path:
    """The folder that --sounds names: a path, or "effects" for those of an installed package.

    Packages are looked for below the folders of XDG_DATA_DIRS, as the desktop specification has it.

    Raises:
        UserError: no such folder, or no such package; the line says which one to install.
    """
    # A folder of that name in the working directory is meant, where there is one.
    if name != EFFECTS or Path(name).is_dir():
        folder = Path(name)
        if not folder.is_dir():
            raise UserError(f"--sounds {name}: no such folder; hint: name a folder of recordings, or {EFFECTS}")
        return folder
    shared = os.environ.get("XDG_DATA_DIRS") or _SHARED
    found = [path for root in shared.split(os.pathsep) if root for path in sorted(Path(root).glob(_INSTALLED))]
    if not found:
        raise UserError(
            f"--sounds {EFFECTS}: no package of recorded effects is installed; hint: sudo apt install {_PACKAGE} "
            "(Debian 12; wesnoth-1.18-data in Debian 13), or --sounds DIR with any folder of recordings that are named "
            "by what they are, or have captions beside them or in a list"
        )
    return found[-1]


def recordings_set(folder: Path, list_path: Path, seconds: float, most: int) -> list[Clip]:
    """The recordings of a folder, each with captions and a split, and no longer than `seconds`.

    A folder without a list of its own gets one at `list_path`, with captions from file and folder names and tags as
    `segue caption` makes them. It is kept, so that it can be edited. Of a longer recording the beginning is taken.

    Splits that the folder's list names are kept. Else (our definition) a recording is of split "test" where the hash of
    its first caption falls into the first 12 %, so that no recording of that caption is trained on, and of "valid"
    where the hash of its bytes falls into the first 15 %.

    Args:
        most: recordings that are taken at most, evenly spaced in the order of the list.

    Raises:
        UserError: fewer than `LEAST` recordings, or none to train on or to hold out.
    """
    has_list = any((place / name).is_file() for place in (folder, *_subfolders(folder)) for name in OWN_LISTS)
    if has_list:
        listing = read_listing(folder, Reading())
    else:
        if not list_path.exists():
            list_path.parent.mkdir(parents=True, exist_ok=True)
            caption_folder(folder, list_path)
        is_inside = folder.resolve().is_relative_to(list_path.parent.resolve())
        listing = read_listing(list_path, Reading(root=None if is_inside else folder))
    clips = _usable(spread(listing.without_faults(), most), seconds)
    if len(clips) < LEAST:
        raise UserError(
            f"--sounds {folder}: {len(clips)} recordings; hint: name a folder of at least {LEAST} (a few hundred are "
            "better) that are named by what they are, or have captions beside them or in a list"
        )
    return _split(clips)


def new_captions(clips: Sequence[Clip]) -> set[str]:
    """First captions that no clip of split "train" has."""
    trained = {caption for clip in clips if clip.split == "train" for caption in clip.captions}
    return {clip.captions[0] for clip in clips} - trained


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


def _usable(clips: Sequence[Clip], seconds: float) -> list[Clip]:
    """The clips whose files can be opened, cut to their first seconds; the others are named."""
    kept = []
    for clip in clips:
        try:
            file_sec = read_header(clip.path).seconds
        except BadAudio as error:
            print(printable(f"left out {clip.path}: {error.reason}"), file=sys.stderr)
            continue
        problem = clip.stretch_problem(file_sec)
        if problem is not None:
            print(printable(f"left out {clip.path}: {problem}"), file=sys.stderr)
            continue
        kept.append(replace(clip, length_sec=seconds) if clip.seconds(file_sec) > seconds else clip)
    return kept


def _split(clips: Sequence[Clip]) -> list[Clip]:
    hashes = content_hashes([clip.path for clip in clips])
    contents = [hashes[clip.path] for clip in clips]
    if any(clip.split for clip in clips):
        return held_out_first([replace(clip, split=clip.split or "train") for clip in clips], contents)
    split = [replace(clip, split=_split_of(clip.captions[0], content)) for clip, content in zip(clips, contents)]
    # A validation needs one recording at the least: that of the smallest hash, where chance has left none.
    if all(clip.split != "valid" for clip in split):
        first = min((i for i, c in enumerate(split) if c.split == "train"), key=lambda i: contents[i])
        split[first] = replace(split[first], split="valid")
    # Copies of one recording under two names stand on one side.
    return held_out_first(split, contents)


def _split_of(caption: str, content: str) -> str:
    if _place(sha256(caption.lower().encode()).hexdigest()) < HELD_OUT_CAPTIONS:
        return "test"
    return "valid" if _place(content) < HELD_OUT_RECORDINGS else "train"


def _place(digest: str) -> float:
    """A hash as a number from 0 to 1."""
    return int(digest[:15], 16) / 16**15
