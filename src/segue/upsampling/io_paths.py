"""Which files go where: a file, a folder or a list of files, and an output for each."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from segue.audio.folders import walk
from segue.audio.names import find_named
from segue.audio.read import read_claim
from segue.audio.sound import SUFFIXES as SOUNDS
from segue.audio.sound import BadAudio
from segue.audio.write import SUFFIXES
from segue.types import UserError, printable

LISTS = (".txt", ".lst", ".m3u", ".m3u8")


def claimed_seconds(path: Path) -> float:
    """Length of a sound file by its header; 0 of a file that cannot be read, which is named when it is its turn."""
    try:
        return read_claim(path).seconds
    except BadAudio:
        return 0.0


@dataclass(frozen=True)
class Job:
    """One file to do.

    Attributes:
        source: of sound.
        folder: that its output goes into.
        stem: of the output's name, where `name` is None.
        name: of the output, where the user gave it.
        problem: why the file is not done; "" where nothing is known against it.
    """

    source: Path
    folder: Path
    stem: str
    name: str | None = None
    problem: str = ""

    @property
    def container(self) -> str | None:
        """That the name asks for."""
        named = {suffix: container for container, suffix in SUFFIXES.items()}
        return None if self.name is None else named[Path(self.name).suffix.lower()]

    def output(self, container: str) -> Path:
        """Where the sound goes, written as `container`."""
        return self.folder / (self.name or f"{self.stem}{SUFFIXES[container]}")


def find_jobs(source: Path, out: Path, follow_links: bool = False) -> list[Job]:
    """The files of `source`, sorted, with their places in `out`.

    A sound file goes to `out` if that ends in .wav or .flac, else into the folder `out`; a folder goes into `out` with
    the folders inside it; so do the lines of a list (a text file of paths, relative to it; # comments).

    Raises:
        UserError: nothing there, no sounds, or an output that would lie among, or be, the input.
    """
    if source.is_dir():
        return _of_folder(source, out, follow_links)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if source.suffix.lower() in LISTS:
        return _of_list(source, out)
    suffix = out.suffix.lower()
    # An existing folder wins over its name: `out.wav/` may be one.
    if suffix in SUFFIXES.values() and not out.is_dir():
        if out.resolve() == source.resolve():
            raise UserError(f"{out}: input and output are the same file; hint: name another output")
        return [Job(source, out.parent, out.stem, out.name)]
    # Other sound suffixes are no folder by mistake: mp3 cannot be written here.
    if suffix in SOUNDS:
        raise UserError(f"{out}: outputs are wav or flac; hint: name it {out.with_suffix('.flac').name}")
    return _checked([Job(source, out, source.stem)], out)


def _of_folder(source: Path, out: Path, follow_links: bool) -> list[Job]:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a folder of sounds needs a folder to go into, and this is a file")
    if out.suffix.lower() in SOUNDS:
        raise UserError(f"{out}: a folder of sounds needs a folder to go into; hint: leave {out.suffix} away")
    inside = out.resolve()
    root = source.resolve()
    if inside == root or root in inside.parents:
        raise UserError(
            f"{out}: the output lies inside the input folder {source}, so that the next run would take it for input; "
            "hint: name a folder outside it"
        )
    # A link that cannot be followed becomes a job that fails, so that it is reported.
    found = walk(source, follow_links)
    for note in found.notes():
        print(printable(f"note: {source}: {note}"), file=sys.stderr)
    problems = {path: f"a link that leads out of {source}; hint: --follow-links" for path in found.outside}
    problems |= {path: "a link that leads nowhere" for path in found.dangling if path.suffix.lower() in SOUNDS}
    if not found.sounds and not problems:
        raise UserError(f"{source}: holds no sounds; hint: put {', '.join(SOUNDS)} files there, or name another folder")
    return [
        Job(path, out / path.relative_to(source).parent, path.stem, problem=problems.get(path, ""))
        for path in sorted([*found.sounds, *problems])
    ]


def _of_list(source: Path, out: Path) -> list[Job]:
    # Editors of some systems put a byte order mark before UTF-8.
    data = source.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if b"\0" in data:
        raise UserError(f"{source}: not a text file; hint: one path of a sound file on each line, as UTF-8")
    # A name is a row of bytes, and need not be text: taken as the list has it.
    lines = [os.fsdecode(line.strip()) for line in data.splitlines()]
    named = [Path(line) for line in lines if line and not line.startswith("#")]
    if not named:
        raise UserError(f"{source}: an empty list; hint: put one path of a sound file on each line")
    jobs = []
    for path in named:
        # Paths that climb, or start at the root, would lead out of the output folder.
        keeps = not path.is_absolute() and ".." not in path.parts
        jobs.append(Job(find_named(source.parent / path), out / path.parent if keeps else out, path.stem))
    return _checked(jobs, out)


def _checked(jobs: list[Job], out: Path) -> list[Job]:
    """Refuse outputs that would overwrite an input."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: exists and is no folder; hint: name a folder, or a .wav or .flac file for one input")
    for job in jobs:
        # Outputs beside inputs would be taken for inputs by the next run.
        if job.folder.resolve() == job.source.resolve().parent:
            raise UserError(f"{out}: would put the outputs beside {job.source}; hint: name another folder")
    return jobs
