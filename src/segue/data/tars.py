"""Tar archives read in place: what is in them, and stretches of them. Nothing is ever unpacked.

A name with :// is an address. It is opened where the user names one, by fsspec, and nowhere else.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import IO

from segue.audio.overlay import overlaid
from segue.types import UserError, first_line, import_extra, printable

MOST_HEADER_BYTES = 1 << 20  # of a name or a PAX header: tarfile reads them whole
_LONG = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
MOST_FETCHED_BYTES = 1 << 30  # of one member at an address: it is held in memory


def located(name: Path | str) -> Path | str:
    """What a user named: an address as it is, all else as a path."""
    return str(name) if is_address(name) else Path(name)


def is_address(name: Path | str) -> bool:
    """Whether a name leads away from this machine's own files."""
    return "://" in str(name)


@dataclass(frozen=True)
class TarMember:
    """A file inside a tar; it stands in for a Path where sound is read.

    Attributes:
        archive: path or address of the tar.
        name: its name there, without a leading ./.
        offset: of its first byte in the archive.
        size: in bytes.
    """

    archive: str
    name: str
    offset: int
    size: int

    @property
    def suffix(self) -> str:
        """As of a Path."""
        return PurePosixPath(self.name).suffix

    def __str__(self) -> str:
        return f"{self.archive}: {self.name}"

    def stat(self) -> SimpleNamespace:
        """As of a Path; its size alone."""
        return SimpleNamespace(st_size=self.size)

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The member's bytes, seekable: a window on the archive, or fetched into memory from an address."""
        if mode != "rb":
            raise ValueError(f"mode {mode!r}: a member is read only")
        if not is_address(self.archive):
            return overlaid(_opened(self.archive), [(self.offset, self.offset + self.size)])
        if self.size > MOST_FETCHED_BYTES:
            raise UserError(f"{self}: {self.size:,} bytes, more than is fetched at once; hint: copy the tar")
        return io.BytesIO(read_spans([(self.archive, self.offset, self.offset + self.size)])[0])


def tar_members(archive: str) -> list[TarMember]:
    """The files of a tar, in its order; every header is read, and no more.

    Raises:
        UserError: not a whole, uncompressed tar, or one that holds links, devices, holes or names that climb.
    """
    try:
        # "r:" forbids compression: offsets in a compressed tar would mean nothing.
        with _opened(archive) as file, tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
            members = [_member(archive, header) for header in tar if not header.isdir()]
            # tarfile takes whatever it cannot read behind the first member for the end.
            file.seek(tar.offset)
            if any(file.read(tarfile.BLOCKSIZE)) or file.tell() < tar.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"no member and no end mark at byte {tar.offset:,}")
    except tarfile.TarError as error:
        raise UserError(
            f"{archive}: not a whole tar ({first_line(error)}); hint: copy it again; a compressed one must be unpacked "
            "to a plain .tar first"
        ) from error
    except OSError as error:
        raise UserError(f"{archive}: cannot be read ({error.strerror or first_line(error)})") from error
    return members


def read_spans(spans: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """Stretches (archive, first byte, end) of files, or of addresses, from which many are fetched at once.

    Raises:
        UserError: one of them cannot be read whole.
    """
    # From an address all stretches are asked for at once; on a disk, seeking costs next to nothing.
    if any(is_address(archive) for archive, _, _ in spans):
        found = _fetched(spans)
    else:
        found = []
        with ExitStack() as opened:
            files = {name: opened.enter_context(_opened(name)) for name in {archive for archive, _, _ in spans}}
            for archive, start, stop in spans:
                files[archive].seek(start)
                found.append(files[archive].read(stop - start))
    for (archive, start, stop), data in zip(spans, found):
        if len(data) != stop - start:
            raise UserError(f"{archive}: ends before byte {stop:,}; it was cut short: copy it again")
    return found


def file_bytes(name: Path | str) -> bytes:
    """A small file whole, such as an index.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with _opened(str(name)) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or first_line(error)})") from error


def _opened(name: str) -> IO[bytes]:
    if not is_address(name):
        try:
            return open(name, "rb")
        except OSError as error:
            raise UserError(f"{name}: cannot be read ({error.strerror}); hint: check the path") from error
    fsspec = import_extra("fsspec", "stream")
    try:
        return fsspec.open(name, "rb").open()
    except Exception as error:  # each kind of address has errors of its own
        raise UserError(f"{name}: cannot be opened ({first_line(error)})") from error


def _fetched(spans: Sequence[tuple[str, int, int]]) -> list[bytes]:
    core = import_extra("fsspec.core", "stream")
    try:
        # Exceptions are given back in the list, one for each stretch, instead of being raised.
        system, _ = core.url_to_fs(spans[0][0])
        paths, starts, stops = zip(*spans)
        found = system.cat_ranges([core.url_to_fs(path)[1] for path in paths], list(starts), list(stops))
    except Exception as error:  # each kind of address has errors of its own
        raise UserError(f"{spans[0][0]}: cannot be fetched ({first_line(error)})") from error
    for (archive, _, _), data in zip(spans, found):
        if isinstance(data, Exception):
            raise UserError(f"{archive}: cannot be fetched ({first_line(data)})") from data
    return found


class _Header(tarfile.TarInfo):
    """Refuses, before tarfile would read it, a name that claims to be longer than any name."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _LONG and header.size > MOST_HEADER_BYTES):
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


def _member(archive: str, header: tarfile.TarInfo) -> TarMember:
    where = printable(f"{archive}: {header.name}")
    # Links and devices could lead out of the archive; holes have no bytes to be read in place.
    if not header.isreg() or header.issparse():
        kind = "link" if header.issym() or header.islnk() else "hole" if header.issparse() else "device"
        raise UserError(f"{where}: a {kind}, which is not followed; hint: pack the file itself")
    name = PurePosixPath(header.name)
    # Nothing is unpacked, but names become ids and file names later on.
    if name.is_absolute() or ".." in name.parts or "\\" in header.name:
        raise UserError(f"{where}: a name that climbs out of the archive; hint: pack it under a plain name")
    return TarMember(archive, str(name), header.offset_data, header.size)
