"""A data set in WebDataset tars: members of one key are one sample, such as dog.flac with dog.txt or dog.json.

Sounds are read in place, at their offset in the tar. webdataset's own reader hands samples out one after the other, and
could go on after a kill only by reading all that came before; offsets make a tar as good as a folder, and a killed
`segue encode` goes on as there.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath

from segue.data.audio import SUFFIXES
from segue.data.clip import (
    MOST_LINE_BYTES,
    SPLITS,
    Clip,
    caption_from_name,
    caption_text,
    other_fields,
    refuse_control,
    row_captions,
)
from segue.data.progress import track
from segue.data.tars import TarMember, read_spans, tar_members
from segue.types import UserError, import_extra, printable

# As webdataset has it: a key ends at the first dot of the file's name, and hidden files are no samples.
_KEY = re.compile(r"((?:.*/|)[^./][^/.]*)\.([^/]*)")


def clips_of_tars(pattern: str, from_names: bool = False) -> list[Clip]:
    """The samples of some tars.

    Args:
        pattern: a tar, or several with braces: shards/clips-{000000..000099}.tar; a path or an address.
        from_names: make captions from keys where a sample has none.

    Raises:
        UserError: one line that names the tar and the member, what is wrong with it, and the mend.
    """
    archives = [pattern]
    if "{" in pattern or "::" in pattern:
        archives = import_extra("webdataset.shardlists", "stream").expand_urls(pattern)
    return [
        clip
        for archive in track(archives, len(archives), "reading tars", "tars")
        for clip in _clips_of(archive, from_names)
    ]


def _clips_of(archive: str, from_names: bool) -> list[Clip]:
    samples: dict[str, dict[str, TarMember]] = {}
    for member in tar_members(archive):
        refuse_control(printable(archive), "a member's name", member.name)
        if not (parts := _KEY.fullmatch(member.name)):
            continue
        key, extension = parts.groups()
        suffix = f".{extension.lower()}".rpartition(".")[2]
        role = "sound" if f".{suffix}" in SUFFIXES else suffix if suffix in ("txt", "json") else None
        if role is None:
            continue
        if role in samples.setdefault(key, {}):
            raise UserError(
                f"{member}: the second {suffix} of key {key!r} (a key ends at the first dot); mend: rename one of them"
            )
        samples[key][role] = member
    clips = []
    texts = _texts(archive, [m for s in samples.values() if "sound" in s for r, m in s.items() if r != "sound"])
    for key, sample in samples.items():
        if "sound" not in sample:
            lone = next(iter(sample.values()))
            raise UserError(f"{lone}: no sound with key {key!r} beside it; mend: pack {key}.flac, or leave it out")
        clips.append(_clip(key, sample, texts, from_names))
    return clips


def _texts(archive: str, members: list[TarMember]) -> dict[TarMember, str]:
    for member in members:
        if member.size > MOST_LINE_BYTES:
            raise UserError(f"{member}: {member.size:,} bytes, up to {MOST_LINE_BYTES:,} are read; mend: cut it")
    found = read_spans([(archive, m.offset, m.offset + m.size) for m in members])
    try:
        return {m: data.decode("utf-8-sig") for m, data in zip(members, found)}
    except UnicodeDecodeError:
        bad = next(m for m, data in zip(members, found) if not _is_utf8(data))
        raise UserError(f"{bad}: not UTF-8 text; mend: save it as UTF-8") from None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _clip(key: str, sample: dict[str, TarMember], texts: dict[TarMember, str], from_names: bool) -> Clip:
    sound, row, captions = sample["sound"], {}, ()
    if "json" in sample:
        row = _row(sample["json"], texts[sample["json"]])
        if {"caption", "captions"} & row.keys():
            captions = row_captions(str(sample["json"]), row)
    if not captions and "txt" in sample:
        lines = [line for line in texts[sample["txt"]].splitlines() if line.strip()]
        captions = tuple(caption_text(str(sample["txt"]), line) for line in lines)
    if not captions and from_names:
        captions = tuple(filter(None, [caption_from_name(PurePosixPath(key))]))
    if not captions and from_names is not None:
        raise UserError(
            f"{sound}: no caption; mend: pack {key}.txt or {key}.json beside it, or --captions filename to make "
            "captions from names"
        )
    identity, split = row.get("id", key), row.get("split") or ""
    if not isinstance(identity, (str, int)) or identity == "":
        raise UserError(f"{sample['json']}: id must be text, not {identity!r}")
    refuse_control(str(sound), "the id", str(identity))
    if split and split not in SPLITS:
        raise UserError(f"{sample['json']}: split must be train, valid or test, not {split!r}")
    return Clip(str(identity), sound, captions, split, other_fields(row))


def _row(member: TarMember, text: str) -> dict:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{member}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise UserError(f"{member}: not a JSON object; mend: one object with a caption")
    if "text" in row and not {"caption", "captions"} & row.keys():  # as audio sets in this form call it
        row["captions"] = row.pop("text")
    return row
