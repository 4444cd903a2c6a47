"""Text files line by line, in whatever encoding can be told for certain; never more than one line in memory."""

from __future__ import annotations

import codecs
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TextIO

from segue.data.clip import MOST_LINE_BYTES
from segue.types import UserError

_BLOCK = 1 << 20
# What a file begins with when it says its encoding itself. UTF-32's mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def lines(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """Number and text of each line, ends kept; a line ends with CR, LF or both.

    UTF-8, and UTF-16 and UTF-32 that say so, are read as they are.

    Args:
        encoding: what to read the file as where it is none of these.

    Raises:
        UserError: unreadable, in an encoding that cannot be told, or a line of more than `MOST_LINE_BYTES` characters.
    """
    number = 0
    with opened(path, encoding) as file:
        for number in count(1):
            line = file.readline(MOST_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MOST_LINE_BYTES:
                raise UserError(f"{path}, line {number}: longer than {MOST_LINE_BYTES:,} bytes; hint: one clip a line")
            yield number, line


@contextmanager
def opened(path: Path, encoding: str | None = None) -> Iterator[TextIO]:
    """A text file, line ends untranslated; see `lines`.

    Raises:
        UserError: it cannot be opened or, while it is read, decoded.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for somebody to write into it
            raise UserError(f"{path}: no file but a folder, pipe, socket or device; hint: name a text file")
        with path.open(encoding=_encoding_of(path, encoding), newline="") as file:
            yield file
    except UnicodeError as error:
        raise not_text(path) from error
    except LookupError as error:
        # A codec of that name does not exist; opening the file is what asks for it.
        raise UserError(f"--encoding {encoding}: no such text encoding; hint: for example --encoding cp1252") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); hint: check the path and its rights") from error


def decoded(where: str, data: bytes, encoding: str | None = None) -> str:
    """Bytes of a small text, such as a member of a tar.

    Raises:
        UserError: their encoding cannot be told.
    """
    # The file's own mark is believed before the option: one list may be of another encoding than the others.
    own = _marked(data) or "utf-8"
    try:
        return data.decode(own)
    except UnicodeError:
        try:
            return data.decode(encoding or "utf-8")
        except (UnicodeError, LookupError) as error:
            raise UserError(f"{where}: not UTF-8 text; hint: add --encoding {_guess(data) or 'NAME'}") from error


def not_text(path: Path) -> UserError:
    """The one line for a file whose encoding cannot be told, with a hint that fits it."""
    guess = _guess(path.read_bytes()[: 64 * _BLOCK]) if path.stat().st_size <= 64 * _BLOCK else None
    if guess is None:
        return UserError(
            f"{path}: not UTF-8 text; hint: add --encoding NAME with the encoding that it was saved in, such as gbk"
        )
    new = path.with_name(f"{path.stem}-utf8{path.suffix}")
    return UserError(
        f"{path}: not UTF-8 text; hint: add --encoding {guess}, or save it anew: iconv -f {guess} -t utf-8 "
        f"{shlex.quote(str(path))} > {shlex.quote(str(new))}"
    )


def _encoding_of(path: Path, fallback: str | None) -> str:
    with path.open("rb") as file:
        own = _marked(file.read(4096))
    if own is not None or fallback is None:
        return own or "utf-8"
    codecs.lookup(fallback)
    # A whole pass over the file, since one UTF-8 file among others must not be read as the fallback.
    return "utf-8" if _is_utf8(path) else fallback


def _marked(start: bytes) -> str | None:
    """The encoding that the first bytes of a file give away."""
    for mark, name in _MARKS:
        if start.startswith(mark):
            return name
    # UTF-16 without a mark: of western text, every second byte is zero, and of no other encoding any is.
    even, odd = start[0::2], start[1::2]
    for name, zeros, letters in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        # Eight bytes are the least that say something about every second one.
        if len(start) >= 8 and zeros.count(0) > 0.8 * len(zeros) and letters.count(0) == 0:
            return name
    return None


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _guess(data: bytes) -> str | None:
    """cp1252, what Windows saves in the West, where the bytes make text in it; None where they do not."""
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    # Letters with accents stand alone or in twos, as a rule; those of a script that needs two bytes a sign do not.
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", data)]
    is_western = all(c.isprintable() or c.isspace() for c in text) and 2 * sum(n for n in runs if n < 3) >= sum(runs)
    return "cp1252" if is_western else None
