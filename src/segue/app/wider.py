"""Uploaded sounds with their missing upper band: what stands behind the tab Upsample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np

from segue import UserError
from segue.app.sessions import Stopped
from segue.app.takes import draw, refuse_long
from segue.audio.read import read_blocks, read_claim
from segue.audio.sound import BadAudio
from segue.upsampling.enhance import Resolver
from segue.upsampling.io_paths import claimed_seconds, find_jobs
from segue.upsampling.prepare import Settings, prepare
from segue.upsampling.upsample import carry_out


@dataclass(frozen=True)
class Pair:
    """An uploaded sound and its output.

    Attributes:
        name: of the upload.
        before, after: files; after is None where the sound could not be used.
        pictures: of the two, where they could be drawn.
        words: what was found and done, or what is wrong.
    """

    name: str
    before: Path
    after: Path | None
    pictures: tuple[Path, ...]
    words: str


def upsample(
    resolver: Resolver,
    uploads: Sequence[Path],
    folder: Path,
    stop: Event,
    on_progress: Callable[[float, float], None],
    *,
    cutoff_hz: float | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> Iterator[Pair]:
    """Pairs one after the other; a file that cannot be used says so, and the others are done.

    Args:
        folder: for the outputs.
        stop: ends it after the chunk at hand; what was finished stays.
        on_progress: called with seconds of sound done and in all.
        cutoff_hz: where the band of the uploads ends; None: it is found.
        steps: of the solver; None: the model's own.
    """
    settings = Settings(
        rate_hz=resolver.sample_rate_hz, cutoff_hz=cutoff_hz, steps=steps, seed=seed, container="wav", overwrite=True
    )
    total = sum(map(claimed_seconds, uploads))
    done = 0.0

    def advance(seconds: float) -> None:
        nonlocal done
        if stop.is_set():
            raise Stopped
        done += seconds
        on_progress(min(done, total), total)

    for number, upload in enumerate(uploads):
        try:
            yield _one(resolver, upload, folder / f"{number:02d}", settings, advance)
        except Stopped:
            return


def _one(resolver: Resolver, upload: Path, folder: Path, settings: Settings, advance: Callable[[float], None]) -> Pair:
    try:
        refuse_long(upload)
        folder.mkdir()
        work = prepare(find_jobs(upload, folder / f"{upload.stem}-upsampled.wav")[0], resolver, settings)
        line = carry_out(work, resolver, settings, advance)
    except BadAudio as error:
        return Pair(upload.name, upload, None, (), f"{upload.name}: {error.reason}")
    except (UserError, OSError) as error:
        # A page's visitor knows files by their names, not by where the server keeps them.
        return Pair(upload.name, upload, None, (), str(error).replace(f"{upload.parent}/", ""))
    pictures = tuple(
        _picture(path, folder / f"{place}.png") for place, path in (("before", upload), ("after", work.output))
    )
    found = f"{line['input_rate_hz']:,} Hz, sound up to {line['cutoff_hz']:,.0f} Hz; {line['status']} to "
    words = "; ".join([f"{found}{line['rate_hz']:,} Hz in {line['took_sec']:.1f} s", *line["notes"]])
    return Pair(upload.name, upload, work.output, pictures, words)


def _picture(path: Path, to: Path) -> Path:
    rate_hz = read_claim(path).sample_rate_hz
    return draw(np.concatenate([*read_blocks(path)]).T, rate_hz, to)
