"""The rows of a list as clips: which file each means, inside which root, and what it is called."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from segue.audio.folders import is_file, is_inside, walk
from segue.audio.names import find_named, identities
from segue.audio.read import read_header
from segue.audio.sound import SUFFIXES, BadAudio
from segue.data.clip import Clip
from segue.data.columns import Row, parse_row
from segue.data.list_rows import rows_of
from segue.data.reading import Listing, Reading
from segue.data.sidecars import caption_file, name_captions, read_captions
from segue.types import UserError, printable

_MAY_BE_START = re.compile(r"start|begin|onset|offset|^(from|t0)$", re.IGNORECASE)
_EXCERPT_SLACK_SEC = 0.5  # what downloaders cut of a video is this exact at best


class Places:
    """Where the sounds of a list lie.

    Attributes:
        root: the folder that they may not leave.
    """

    def __init__(self, root: Path, follow_links: bool, folder: Path | None = None, is_named: bool = False) -> None:
        """
        Args:
            folder: the list's own; its paths are relative to the root, or else to this.
            is_named: whether the root was named by the user, so that a list of another machine is meant to fit it.
        """
        self.root = root
        self._is_named = is_named
        self._follow_links = follow_links
        self._bases = list(dict.fromkeys([root, folder or root]))
        self._inside = root.resolve()
        # The root both as written and with its links followed: rows may use either.
        self._roots = [os.path.join(folder, "") for folder in (os.path.abspath(root), str(self._inside))]
        self._beside: dict[Path, dict[str, Path]] = {}

    def find(self, where: str, name: str) -> Path:
        """The file that a row names, or where it should be; a bare name may be that of a file further down.

        Raises:
            UserError: a path out of the root, or a name that several files have.
        """
        # Nothing out of the root is even looked at.
        inside = [base / s for base in self._bases for s in _spellings(name) if self._holds(base / s, s)]
        for path in inside:
            if is_file(path):
                return path
            # A list may write accents in another way than the disk does.
            if not path.as_posix().isascii() and is_file(named := find_named(path)) and self._holds(named, name):
                return named
        # Then a list that was made on another machine, and only then a bare name anywhere below.
        if moved := self._moved(name):
            return moved
        if not inside:
            raise UserError(
                f"{where}: {name} leads out of {self._inside}; hint: copy the file into the folder, --root DIR for the "
                "folder that holds all, or --follow-links for a set of links"
            )
        if not re.search(r"[/\\]", name) and (found := self._of_name(where, name.strip())):
            return found
        # An empty name, or ".", would mean the root itself.
        if os.path.join(os.path.abspath(self.root / name), "") in self._roots:
            raise UserError(f"{where}: {name} does not exist; hint: give the sound file's path relative to the list")
        return self.root / name

    def _moved(self, name: str) -> Path | None:
        """What a path of another machine may be here: the longest end of it that lies in the root that was named."""
        parts = [part for part in re.split(r"[/\\]", name.strip()) if part]
        # Only where the user named the root: otherwise an absolute path is meant as it stands.
        is_elsewhere = self._is_named and re.match(r"/|[A-Za-z]:[/\\]", name.strip()) and ".." not in parts
        # The longest end first: the more folders agree, the surer.
        ends = [self.root.joinpath(*parts[at:]) for at in range(1, len(parts))] if is_elsewhere else []
        return next((path for path in ends if is_file(path) and is_inside(self._inside, path)), None)

    def find_stem(self, where: str, stems: Iterable[str]) -> Path:
        """The one file in the root whose name without suffix, or with it, is one of these.

        Raises:
            UserError: several are.
        """
        stems = list(stems)
        for stem in stems:
            if found := self._of_name(where, stem):
                return found
        # Not there; a name such as "../x" stays a name.
        return self.root / f"{stems[0].replace('/', '_')[:200]}{SUFFIXES[0]}"

    def _of_name(self, where: str, name: str) -> Path | None:
        found = self._by_name.get(name, [])
        # Ambiguity is told, since either choice would be silent.
        if len(found) > 1:
            raise UserError(
                f"{where}: {name!r} may be {found[0]} or {found[1]}; hint: write the path, or --root DIR of one"
            )
        return found[0] if found else None

    def beside(self, path: Path) -> dict[str, Path]:
        """The files in a sound's folder, for its captions: name in small letters -> path."""
        folder = path.parent
        if folder not in self._beside:
            names = os.listdir(folder) if folder.is_dir() else []
            self._beside[folder] = {name.lower(): folder / name for name in names}
        return self._beside[folder]

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in walk(self.root, self._follow_links).sounds:
            for name in {path.stem, path.name}:
                found.setdefault(name, []).append(path)
        return found

    def relative(self, path: Path) -> PurePosixPath:
        """A path of a row as it lies below the root, without detours."""
        # Lexically first: links inside the root keep the names that the user gave them.
        plain = os.path.abspath(path)
        for root in self._roots:
            if plain.startswith(root):
                return PurePosixPath(plain[len(root) :].replace(os.sep, "/"))
        return PurePosixPath(path.resolve().relative_to(self._inside).as_posix())

    def _holds(self, path: Path, spelling: str) -> bool:
        """Whether a path stays in the root."""
        if not self._follow_links:
            return is_inside(self._inside, path)
        # Links may lead anywhere then, but no name may climb: behind a link, ".." is another folder than it seems.
        lexical = os.path.abspath(path)
        return ".." not in PurePosixPath(spelling).parts and any(lexical.startswith(root) for root in self._roots)


def _spellings(name: str) -> list[str]:
    """A name as it stands, without blanks around it, and with slashes."""
    # As it stands first: a name may really begin with a blank or hold a backslash.
    return list(dict.fromkeys([name, name.strip(), name.strip().replace("\\", "/")]))


def clips_of_list(manifest: Path, reading: Reading, split: str = "") -> Listing:
    """The clips of a .jsonl, .json, .csv or .tsv list.

    Args:
        split: of rows that name none.

    Raises:
        UserError: the list as a whole cannot be read; single rows are noted in the listing.
    """
    folder = manifest.parent
    places = Places(reading.root or folder, reading.follow_links, folder, reading.root is not None)
    listing = Listing(root=places.root)
    what = "entry" if manifest.suffix.lower() == ".json" else "line"
    for number, row in rows_of(manifest, reading):
        where = f"{manifest}, {what} {number}"
        try:
            clip = _clip(where, row, places, reading, listing)
        except UserError as error:
            listing.bad_rows.append((where, str(error)))
        else:
            listing.clips.append(clip if clip.split else replace(clip, split=split))
    # Ids are made when all rows are known, since they depend on each other.
    _name_clips(listing.clips, places)
    # A likely time column that was passed over is named once: silence would make wrong clips.
    whole = dict.fromkeys(name for clip in listing.clips if clip.is_whole for name in clip.fields)
    times = [] if "start" in reading.columns else [name for name in whole if _MAY_BE_START.search(name)]
    if times:
        listing.notes.append(
            printable(
                f"column {times[0]!r} is not taken for the start of a stretch; hint: if it is one, in seconds, add "
                f"--column {shlex.quote('start=' + times[0])}, and --column end=NAME or duration=NAME"
            )
        )
    return listing


def _clip(where: str, row: dict | UserError, places: Places, reading: Reading, listing: Listing) -> Clip:
    """The clip of a row; its id is "" where the row gives none."""
    if isinstance(row, UserError):
        raise row
    parsed = parse_row(where, row, reading.columns, captions=reading.captions != "none")
    if parsed.path is not None:
        path = places.find(where, parsed.path)
    elif parsed.stems:
        path = places.find_stem(where, _stems(parsed))
    else:
        raise UserError(f"{where}: no path; hint: give the sound file's path relative to the list")
    is_there = is_file(path)
    captions = _captions(where, parsed, path, places, reading) if reading.captions != "none" else ()
    start_sec, length_sec = parsed.start_sec, parsed.length_sec
    # The list counts from the video's start; a file of the excerpt's length has been cut already.
    if parsed.of_video and is_there and _is_excerpt(path, length_sec):
        start_sec, length_sec = 0.0, None
    # Noted, and still a clip: the caller may refuse or leave out.
    if not is_there:
        listing.missing.append(
            f"{where}: {parsed.path or parsed.stems[0]} does not exist; hint: paths are relative to "
            f"{'--root' if reading.root else 'the list, or to --root DIR'}"
        )
    return Clip(parsed.id, path, captions, parsed.split, parsed.fields, start_sec, length_sec)


def _stems(parsed: Row) -> list[str]:
    """The names that a clip of a video may have been saved under."""
    names = list(parsed.stems)
    if not parsed.of_video:
        return names
    start = parsed.start_sec
    end = start + (parsed.length_sec or 0.0)
    # Names that downloaders of such sets give: start, or start and end, in s or ms.
    for stem in parsed.stems:
        names += [f"Y{stem}", f"[{stem}]-[{start:g}-{end:g}]"]
        names += [f"{stem}_{start:g}", f"{stem}_{start:g}_{end:g}", f"{stem}_{start:.3f}_{end:.3f}"]
        names += [f"{stem}_{1000 * start:.0f}", f"{stem}_{1000 * start:.0f}_{1000 * end:.0f}"]
    return names


def _is_excerpt(path: Path, length_sec: float | None) -> bool:
    """Whether a file is the stretch of a video that the list means, rather than the whole video."""
    try:
        return length_sec is not None and read_header(path).seconds <= length_sec + _EXCERPT_SLACK_SEC
    except BadAudio:  # told when it is checked
        return False


def _captions(where: str, parsed: Row, path: Path, places: Places, reading: Reading) -> tuple[str, ...]:
    if parsed.captions:
        return parsed.captions
    if reading.captions == "filename":
        return name_captions(path, places.relative(path))
    file = caption_file(path, places.beside(path))
    if file is None:
        raise UserError(f"{where}: no caption; hint: add one, or --captions filename to make captions from names")
    return read_captions(file, reading)


def _name_clips(clips: list[Clip], places: Places) -> None:
    """Ids from paths, where rows give none.

    Of several rows of one file each has its stretch in the id, and a number where that is the same too.
    """
    unnamed = [index for index, clip in enumerate(clips) if not clip.id]
    # Stretches of one file are told apart by their times, which do not depend on other rows.
    rows_of_file = Counter(clips[index].path for index in unnamed)
    seen: Counter[tuple[Path, str]] = Counter()
    # Ids of files, not of rows: a file keeps its id when another row of it comes.
    names = dict(zip(rows_of_file, identities([places.relative(path) for path in rows_of_file])))
    for index in unnamed:
        clip = clips[index]
        name = names[clip.path]
        if rows_of_file[clip.path] > 1 and not clip.is_whole:
            end = "" if clip.length_sec is None else f"{clip.start_sec + clip.length_sec:g}"
            name = f"{name}@{clip.start_sec:g}-{end}"
        seen[clip.path, name] += 1
        if seen[clip.path, name] > 1:
            name = f"{name}#{seen[clip.path, name]}"
        clips[index] = replace(clip, id=name)


def refuse_duplicate_ids(source: Path | str, clips: Iterable[Clip]) -> None:
    """
    Raises:
        UserError: two clips have the same id.
    """
    first: dict[str, Clip] = {}
    for clip in clips:
        if clip.id in first:
            raise UserError(
                f"{source}: two clips have the id {printable(repr(clip.id))} ({first[clip.id].path.name} and "
                f"{clip.path.name}); hint: rename a file, give each row an id of its own, or --column id= to make ids "
                "from paths"
            )
        first[clip.id] = clip
