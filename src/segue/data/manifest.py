"""A user's data as a list of clips: a folder, a list, tars, or a set of the datasets library. One reader for all."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from segue.audio.read import read_header
from segue.audio.sound import BadAudio
from segue.data.check import inspect_clips
from segue.data.clip import Clip
from segue.data.content import content_hashes
from segue.data.hf_datasets import clips_of_set, is_set
from segue.data.list_rows import SUFFIXES as LIST_SUFFIXES
from segue.data.reading import DataSource, Listing, Reading
from segue.data.rows import clips_of_list, refuse_duplicate_ids
from segue.data.sound_folder import clips_of_folder, no_sounds
from segue.data.splits import split_clips
from segue.data.tar_manifest import clips_of_tars
from segue.types import UserError, printable

_ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")


def load_manifest(
    source: Path | str | DataSource,
    captions: str = "manifest",
    reading: Reading | None = None,
    skip_bad: bool = False,
) -> list[Clip]:
    """Read a data set in a fixed order, every clip with a split (data/splits.py). Names what is left out on stderr.

    Args:
        source: see `read_listing`.
        captions: "manifest", "filename" or "none"; see `Reading`.
        reading: how to read it, in place of `captions` alone.
        skip_bad: decode every file, and leave out those that cannot be used and entries that give no clip, before the
            splits are made. Otherwise files are not decoded here, and entries that give no clip are refused.

    Raises:
        UserError: one line that names the file, what is wrong with it, and a hint.
    """
    if isinstance(source, DataSource):
        reading = replace(source.reading, captions=captions)
        source = source.name
    listing = read_listing(source, reading or Reading(captions))
    # Bad files go before splits are made, or they would take places in them.
    if skip_bad:
        clips, contents, seconds = _usable(listing)
    else:
        listing.refuse_faults()
        # Nothing is decoded here: whoever reads the files tells what is wrong with them.
        clips = listing.clips
        is_split = all(clip.split for clip in clips)  # then nothing need be hashed
        found = content_hashes([] if is_split else [clip.path for clip in clips])
        contents = [found.get(clip.path, "") for clip in clips]
        seconds = None
    split = split_clips(clips, contents, lambda index: seconds[index] if seconds else _seconds(clips[index].path))
    for note in [*listing.notes, *split.notes]:
        print(printable(f"note: {source}: {note}"), file=sys.stderr)
    return split.clips


def _usable(listing: Listing) -> tuple[list[Clip], list[str], list[float]]:
    """The clips whose files can be used, the hashes of these and their lengths; what is left out is printed."""
    clips = listing.without_faults()
    inspections = inspect_clips(clips)
    for clip, inspection in zip(clips, inspections):
        if inspection.problem is not None:
            print(printable(f"left out {clip.path}: {inspection.problem}"), file=sys.stderr)
    good = [(clip, inspection) for clip, inspection in zip(clips, inspections) if inspection.problem is None]
    return [clip for clip, _ in good], [i.sha256 for _, i in good], [i.seconds for _, i in good]


def read_listing(source: Path | str, reading: Reading) -> Listing:
    """What a source holds, as it names it: splits only where it gives them, files that are not there among the rest.

    Args:
        source: a folder of sounds (those below it too) with captions beside them, in .txt or .json; a folder that holds
            manifest.jsonl, or metadata.jsonl or metadata.csv as Hugging Face's AudioFolder has them; a list: .jsonl,
            .json, .csv or .tsv (docs/data.md has the columns); WebDataset tars, shards/clips-{000000..000099}.tar, read
            in place; parquet files, a folder of datasets' save_to_disk, or hf:OWNER/NAME.

    Raises:
        UserError: the source as a whole cannot be read, or holds no sound.
    """
    listing = _listing_of(source, reading)
    if not listing.clips and not listing.bad_rows:
        raise no_sounds(source, listing)
    refuse_duplicate_ids(source, listing.clips)
    return listing


def _listing_of(source: Path | str, reading: Reading) -> Listing:
    # By name first: braces and pipes of tar addresses are no paths.
    if str(source).endswith(".tar"):
        return clips_of_tars(str(source), reading)
    if is_set(source):
        return clips_of_set(str(source), reading)
    source = Path(source)
    if not source.exists():
        # OWNER/NAME without hf: is an easy slip.
        hub = f", or hf:{source} for a data set of the hub" if len(source.parts) == 2 else ""
        raise UserError(f"{source}: no such file or folder; hint: check the path{hub}")
    if source.is_dir():
        return clips_of_folder(source, reading)
    suffix = source.suffix.lower()
    if suffix in LIST_SUFFIXES:
        return clips_of_list(source, reading)
    if suffix in _ARCHIVES:
        raise UserError(f"{source}: an archive; these are not unpacked here; hint: unpack it yourself, name the folder")
    raise UserError(
        f"{source}: not a folder, a list ({', '.join(LIST_SUFFIXES)}), .tar or .parquet; hint: name the folder of "
        "sounds or a list"
    )


def _seconds(path: Path) -> float:
    try:
        return read_header(path).seconds
    except BadAudio:  # told where it is read
        return 0.0
