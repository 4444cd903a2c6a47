"""What a sound file says of itself beside its sound: title, comment and the like."""

from __future__ import annotations

import json
import re
from os import fsencode
from pathlib import Path

import soundfile

_TAGS = ("title", "copyright", "software", "artist", "comment", "date", "album", "license", "tracknumber", "genre")
_MOST_BYTES = 1 << 20


def read_tags(path: Path) -> dict[str, str]:
    """The tags that libsndfile knows; a prompt is read whole, however long. Empty for a file that it does not read."""
    try:
        with soundfile.SoundFile(fsencode(path)) as file:
            found = {tag: text for tag in _TAGS if (text := getattr(file, tag))}
    except (soundfile.SoundFileError, OSError, ValueError):
        return {}
    if subject := _subject(path):
        found["title"] = subject
    return found


def read_settings(path: Path) -> dict:
    """What `segue generate` wrote into a file: its prompt, run, seed, number and settings; empty for other files.

    Files of before settings were kept have run, seed and number alone.
    """
    tags = read_tags(path)
    comment = tags.get("comment", "")
    try:
        found = json.loads(comment)
    except ValueError:
        earlier = re.fullmatch(r"(.+) seed (-?\d+)(?: take (\d+))?", comment)
        if earlier is None:
            return {}
        found = {"run": earlier[1], "seed": int(earlier[2]), "number": int(earlier[3] or 0)}
    # Any program may write JSON into a comment; ours names the run.
    return {"prompt": tags.get("title", "")} | found if isinstance(found, dict) and "run" in found else {}


def read_form(path: Path) -> dict[str, str]:
    """How a file's samples are written: its container, such as "flac", and subtype; empty for a file not read."""
    try:
        about = soundfile.info(fsencode(path))
    except (soundfile.SoundFileError, OSError, ValueError):
        return {}
    # A wav of any flavour is one to its reader.
    return {"format": "flac" if about.format == "FLAC" else "wav", "subtype": about.subtype}


def _subject(path: Path) -> str:
    """The subject that `write.write_wav` puts at the end of a wav whose prompt is long."""
    size = path.stat().st_size
    with path.open("rb") as file:
        # The chunk is the last of its file, so that only the end is read.
        file.seek(max(0, size - _MOST_BYTES))
        end = file.read()
    at = end.rfind(b"INFOISBJ")
    # The same letters may occur among samples; only within a LIST chunk are they ours.
    if at < 4 or end[at - 8 : at - 4] != b"LIST":
        return ""
    length = int.from_bytes(end[at + 8 : at + 12], "little")
    return end[at + 12 : at + 12 + length].rstrip(b"\0").decode("utf-8", "replace")
