"""Captions beside a sound: dog.txt, dog_prompt.txt or dog.json for dog.wav, in capitals or not."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from segue.data.clip import MOST_LINE_BYTES, caption_from_name, caption_text
from segue.data.columns import captions_of
from segue.data.reading import Reading
from segue.data.texts import lines, opened
from segue.types import UserError

# In this order; {} is the sound's name without its suffix, {name} with it.
_NAMES = ("{}.txt", "{name}.txt", "{}_prompt.txt", "{}.json", "{name}.json")


def caption_file(path: Path, beside: dict[str, Path]) -> Path | None:
    """The file that holds a sound's captions.

    Args:
        beside: the caption files of its folder: name in small letters -> path.
    """
    wanted = (pattern.format(path.stem, name=path.name).lower() for pattern in _NAMES)
    return next((beside[name] for name in wanted if name in beside), None)


def read_captions(file: Path, reading: Reading) -> tuple[str, ...]:
    """The captions of such a file: of a text each line that is not empty; of a .json what its object has.

    Raises:
        UserError: unreadable, or without a caption.
    """
    if file.suffix.lower() == ".json":
        captions = captions_of(str(file), _object(file, reading), reading.columns)
    else:
        numbered = lines(file, reading.encoding)
        captions = tuple(caption_text(f"{file}, line {number}", line) for number, line in numbered if line.strip())
    if not captions:
        raise UserError(f"{file}: an empty caption; hint: write what the sound is")
    return captions


def name_captions(path: Path, relative: PurePosixPath) -> tuple[str, ...]:
    """The caption that a sound's name and folder make.

    Raises:
        UserError: they hold no words.
    """
    caption = caption_from_name(relative)
    if not caption:
        raise UserError(f"{path}: its name holds no words for a caption; hint: rename it, or write a .txt beside it")
    return (caption,)


def _object(file: Path, reading: Reading) -> dict:
    with opened(file, reading.encoding) as handle:
        # One byte more than is allowed shows that there is more.
        text = handle.read(MOST_LINE_BYTES + 1)
    if len(text) > MOST_LINE_BYTES:
        raise UserError(f"{file}: longer than {MOST_LINE_BYTES:,} bytes; hint: keep the caption alone in it")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error}); hint: one object with a caption") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: not a JSON object; hint: one object with a caption")
    return found
