"""A data set in WebDataset tars: members of one key are one sample, such as dog.flac with dog.txt or dog.json.

Sounds are read in place, at their offset in the tar. webdataset's own reader hands samples out one after the other, and
could continue after a kill only by reading all that came before; offsets make a tar as good as a folder, and a killed
`segue encode` continues as there.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import cast

from segue.audio.sound import SUFFIXES
from segue.data.clip import MOST_LINE_BYTES, Clip, caption_from_name, caption_text, refuse_control
from segue.data.columns import Row, parse_row
from segue.data.reading import Listing, Reading
from segue.data.tars import TarMember, read_spans, tar_members
from segue.data.texts import decoded
from segue.progress import track
from segue.types import UserError, import_extra, printable

# As webdataset has it: a key ends at the first dot of the file's name, and hidden files are no samples.
_KEY = re.compile(r"((?:.*/|)[^./][^/.]*)\.([^/]*)")
_NOTHING = Row(None, (), None, "", "", 0.0, None, False, {})


def clips_of_tars(pattern: str, reading: Reading) -> Listing:
    """The samples of some tars.

    Args:
        pattern: a tar, or several with braces: shards/clips-{000000..000099}.tar; a path or an address.

    Raises:
        UserError: one line that names the tar and the member, what is wrong with it, and a hint.
    """
    archives = [pattern]
    if "{" in pattern or "::" in pattern:
        archives = import_extra("webdataset.shardlists", "stream").expand_urls(pattern)
    listing = Listing()
    others: Counter[str] = Counter()
    for archive in track(archives, len(archives), "reading tars", "tars"):
        _read_tar(archive, reading, listing, others)
    if others:
        kinds = ", ".join(f"{kind} ({count:,})" for kind, count in others.most_common(8))
        listing.notes.append(f"{sum(others.values()):,} members of other kinds left out: {printable(kinds)}")
    return listing


def _read_tar(archive: str, reading: Reading, listing: Listing, others: Counter[str]) -> None:
    samples: dict[str, dict[str, TarMember]] = {}
    # Members that share a key are one sample, as WebDataset has it.
    # The samples of one key need not stand together in the tar.
    for member in tar_members(archive):
        refuse_control(printable(archive), "a member's name", member.name)
        if not (parts := _KEY.fullmatch(member.name)):
            continue
        key, extension = parts.groups()
        # A key ends at the first dot, the kind of a member begins at its last one.
        suffix = f".{extension.lower()}".rpartition(".")[2]
        role = "sound" if f".{suffix}" in SUFFIXES else suffix if suffix in ("txt", "json") else None
        if role is None:
            others[f".{suffix}"] += 1
        elif role in samples.setdefault(key, {}):
            raise UserError(
                f"{member}: the second {suffix} of key {key!r} (a key ends at the first dot); hint: rename one of them"
            )
        else:
            samples[key][role] = member
    # Captions and fields, read in the order in which they stand in the tar.
    texts = _texts(archive, [m for s in samples.values() if "sound" in s for r, m in s.items() if r != "sound"])
    for key, sample in samples.items():
        if "sound" not in sample:
            lone = next(iter(sample.values()))
            raise UserError(f"{lone}: no sound with key {key!r} beside it; hint: pack {key}.flac, or leave it out")
        try:
            listing.clips.append(_clip(key, sample, texts, reading))
        except UserError as error:
            listing.bad_rows.append((str(sample["sound"]), str(error)))


def _texts(archive: str, members: list[TarMember]) -> dict[TarMember, bytes]:
    for member in members:
        if member.size > MOST_LINE_BYTES:
            raise UserError(f"{member}: {member.size:,} bytes, up to {MOST_LINE_BYTES:,} are read; hint: cut it")
    return dict(zip(members, read_spans([(archive, m.offset, m.offset + m.size) for m in members])))


def _clip(key: str, sample: dict[str, TarMember], texts: dict[TarMember, bytes], reading: Reading) -> Clip:
    sound = sample["sound"]
    parsed = _NOTHING
    if "json" in sample:
        # The .json wins over the .txt: it can hold several captions and fields.
        parsed = _row(sample["json"], texts[sample["json"]], reading)
    captions = () if reading.captions == "none" else parsed.captions or _captions(key, sample, texts, reading)
    refuse_control(str(sound), "the id", parsed.id or key)
    return Clip(
        parsed.id or key, cast(Path, sound), captions, parsed.split, parsed.fields, parsed.start_sec, parsed.length_sec
    )


def _captions(key: str, sample: dict[str, TarMember], texts: dict[TarMember, bytes], reading: Reading) -> tuple:
    captions: tuple[str, ...] = ()
    if "txt" in sample:
        text = decoded(str(sample["txt"]), texts[sample["txt"]], reading.encoding)
        captions = tuple(caption_text(str(sample["txt"]), line) for line in text.splitlines() if line.strip())
    if not captions and reading.captions == "filename":
        captions = tuple(filter(None, [caption_from_name(PurePosixPath(key))]))
    if not captions:
        raise UserError(
            f"{sample['sound']}: no caption; hint: pack {key}.txt or {key}.json beside it, or --captions filename to "
            "make captions from names"
        )
    return captions


def _row(member: TarMember, data: bytes, reading: Reading) -> Row:
    """What the .json of a sample says; that it names a file does not matter here."""
    try:
        row = json.loads(decoded(str(member), data, reading.encoding))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{member}: not JSON ({error}); hint: one object with a caption") from error
    if not isinstance(row, dict):
        raise UserError(f"{member}: not a JSON object; hint: one object with a caption")
    return parse_row(str(member), row, {**reading.columns, "path": ""}, captions=reading.captions != "none")
