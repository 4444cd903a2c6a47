"""A folder as a data set: by the list that it holds, or by the captions beside its sounds."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from segue.audio.folders import Found, counted, walk
from segue.audio.names import identities
from segue.audio.sound import SUFFIXES
from segue.data.clip import Clip
from segue.data.columns import split_named
from segue.data.list_rows import SUFFIXES as LIST_SUFFIXES
from segue.data.reading import Listing, Reading
from segue.data.rows import clips_of_list
from segue.data.sidecars import caption_file, name_captions, read_captions
from segue.types import UserError

# Lists that are read without being named: ours, and those of Hugging Face's AudioFolder.
_LINKS = "copy the file into the folder, or --follow-links for a set of links"
OWN_LISTS = ("manifest.jsonl", "metadata.jsonl", "metadata.csv")


def clips_of_folder(root: Path, reading: Reading) -> Listing:
    """The clips of a folder.

    Raises:
        UserError: a link leads out of it; no sound has a caption; a list in it cannot be read.
    """
    lists = [(path, "" if reading.splits_by_content else split) for path, split in _own_lists(root)]
    found = walk(reading.root or root, reading.follow_links)
    if not lists:
        return _from_captions(root, found, reading)
    listing = Listing(root=reading.root or root)
    for path, split in lists:
        part = clips_of_list(path, reading, split)
        listing.clips += part.clips
        listing.bad_rows += part.bad_rows
        listing.missing += part.missing
    # Compared with links followed: a list may name a sound by another way than the walk does.
    named = {clip.path.resolve() for clip in listing.clips}
    unnamed = [path for path in found.sounds if path.resolve() not in named]
    listing.notes = found.notes()
    if unnamed:
        listing.notes.append(
            f"{counted(unnamed, 'sound')} not in {', '.join(path.name for path, _ in lists)}, left out"
        )
    return listing


def _own_lists(root: Path) -> list[tuple[Path, str]]:
    """The lists of a folder, with the split of rows that name none: one at its top, or one in each split's folder."""
    at_top = next((root / name for name in OWN_LISTS if (root / name).is_file()), None)
    if at_top is not None:
        return [(at_top, "")]
    found = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        split = split_named(folder.name)
        path = next((folder / name for name in OWN_LISTS if (folder / name).is_file()), None)
        if split and path:
            found.append((path, split))
    return found


def _from_captions(root: Path, found: Found, reading: Reading) -> Listing:
    listing = Listing(root=root, notes=found.notes())
    listing.bad_rows = [(str(path), f"{path}: leads out of {root}; hint: {_LINKS}") for path in found.outside]
    listing.bad_rows += [
        (str(path), f"{path}: a dangling link; hint: git annex get, or dvc pull") for path in found.dangling
    ]
    # A caption for each sound: from a file beside it, or from its name.
    relatives = [PurePosixPath(path.relative_to(root).as_posix()) for path in found.sounds]
    bare: list[Path] = []
    used: set[Path] = set()
    for path, relative, name in zip(found.sounds, relatives, identities(relatives)):
        file = caption_file(path, found.beside.get(path.parent, {})) if reading.captions == "manifest" else None
        try:
            if file is not None:
                # Marked before it is read: a caption file with a fault is still no leftover.
                used.add(file)
                captions = read_captions(file, reading)
            else:
                captions = name_captions(path, relative) if reading.captions == "filename" else ()
        except UserError as error:
            listing.bad_rows.append((str(path), str(error)))
            continue
        if not captions and reading.captions == "manifest":
            bare.append(path)
        else:
            listing.clips.append(Clip(name, path, captions, ""))
    # Without any caption at all the folder was not meant so; single ones are named as bad.
    if bare and len(bare) == len(found.sounds):
        raise UserError(_bare_words(root, bare, found))
    listing.bad_rows += [(str(path), _bare_words(root, [path], found)) for path in bare]
    if reading.captions == "manifest":
        listing.notes += _unused(found, used)
    return listing


def _bare_words(root: Path, bare: list[Path], found: Found) -> str:
    others = f" and {len(bare) - 1:,} more" if len(bare) > 1 else ""
    lists = [p for folder in found.beside.values() for p in folder.values() if p.suffix.lower() in LIST_SUFFIXES]
    # A .json deeper down is by all odds a sound's own caption file.
    lists = [path for path in lists if path.suffix.lower() != ".json" or path.parent == root]
    named = f"name the list {min(lists)} with --root {root}, " if lists else ""
    return (
        f"{bare[0]}{others}: no caption file; hint: {named}write {bare[0].with_suffix('.txt').name} beside it, or "
        "--captions filename to make captions from file names"
    )


def _unused(found: Found, used: set[Path]) -> list[str]:
    """One line for caption files and lists that belong to no sound."""
    beside = [path for folder in found.beside.values() for path in folder.values()]
    unused = sorted(path for path in beside if path not in used)
    return [f"{counted(unused, 'text file')} beside no sound of that name, left out"] if unused else []


def no_sounds(source: Path | str, listing: Listing) -> UserError:
    """The one line for a source without any sound, with what it holds instead."""
    instead = f" ({'; '.join(note.split('; hint')[0] for note in listing.notes)})" if listing.notes else ""
    hint = "--follow-links" if any("--follow-links" in note for note in listing.notes) else "name another folder"
    return UserError(f"{source}: holds no sounds{instead}; hint: put {', '.join(SUFFIXES)} files there, or {hint}")
