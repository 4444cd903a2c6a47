"""From a folder of sounds to a run: the commands behind the tab Train, and what they say."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from threading import Event

from segue import UserError
from segue.app.folders import Folders, is_cache
from segue.app.jobs import Job, Jobs, output_of
from segue.app.runs import wrapped
from segue.recipes import RECIPES
from segue.report.page import facts

# How sounds are encoded: options of `segue encode`.
SOUNDS: dict[str, tuple[str, ...]] = {
    "16 kHz mono": (),
    "44.1 kHz stereo": ("--codec", "stereo-44k"),
}
CAPTIONS = ("manifest", "filename", "none")
_SHOWN_BAD = 20
# Settings that name files, which could lie anywhere: they are for the command line.
_OF_FILES = ("start_from", "pretrained")


@dataclass(frozen=True)
class Order:
    """What a visitor wants to train.

    Attributes:
        source: folder of sounds, or a cache.
        captions: where captions come from, as `segue encode --captions`.
        sound: one of `SOUNDS`.
        recipe: one of segue.recipes.RECIPES.
        name: of the run; its folder lies in the first of the page's folders.
        examples: length; 0 = the recipe's.
        preset: size of the model; "" = the recipe's.
        more: further settings, "section.name=value" with spaces between them.
    """

    source: str
    captions: str
    sound: str
    recipe: str
    name: str
    examples: int = 0
    preset: str = ""
    more: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w][\w .+-]*", self.name or ""):
            raise UserError(f"name {self.name!r}: give letters and digits, for example my-run")
        if self.recipe not in RECIPES:
            raise UserError(f"recipe {self.recipe}: choose one of the list")
        if self.sound not in SOUNDS or self.captions not in CAPTIONS:
            raise UserError("choose how sounds are encoded, and where captions come from")
        named = [setting.partition("=")[0].rpartition(".")[2] for setting in self._settings()]
        if refused := [name for name in named if name in _OF_FILES]:
            raise UserError(f"{refused[0]} names a file: it can be set by segue train alone")
        if self.examples < 0:
            raise UserError(f"{self.examples} examples: give a positive number, or 0 for the recipe's length")

    def run(self, folders: Folders) -> Path:
        """The folder of the run.

        Raises:
            UserError: its name leads out of the page's folders.
        """
        return folders.inside(folders.roots[0] / self.name)

    def cache(self, folders: Folders) -> Path:
        """The cache: what was named, or the one that is made beside the runs."""
        source = folders.inside(self.source)
        if is_cache(source):
            return source
        kind = "" if self.sound == next(iter(SOUNDS)) else "-" + re.sub(r"\W+", "-", self.sound)
        return folders.roots[0] / f"{source.name}-cache{kind}"

    def encode(self, folders: Folders) -> list[str] | None:
        """The command that makes or completes the cache; None where a cache was named."""
        source = folders.inside(self.source)
        if is_cache(source):
            return None
        return ["encode", str(source), "--captions", self.captions, "--out", str(self.cache(folders)), "--skip-bad",
                *SOUNDS[self.sound]]  # fmt: skip

    def train(self, folders: Folders) -> list[str]:
        """The command that trains."""
        command = ["train", self.recipe, "--data", str(self.cache(folders)), "--out", str(self.run(folders))]
        if self.examples:
            command += ["--examples", str(self.examples)]
        settings = ([f"model.preset={self.preset}"] if self.preset else []) + self._settings()
        return command + [word for setting in settings for word in ("--set", setting)]

    def _settings(self) -> list[str]:
        try:
            return shlex.split(self.more)
        except ValueError as error:
            raise UserError(f"settings {self.more!r}: {error}; write section.name=value") from error


def check(folders: Folders, source: str, captions: str, stop: Event) -> str:
    """What `segue data check` finds in a folder, as HTML.

    Raises:
        UserError: the folder is not allowed, or holds nothing that can be read.
    """
    folder = folders.inside(source)
    if is_cache(folder):
        return _lines([f"{folders.name(folder)} is a latent cache: it is trained on as it is"])
    found = json.loads(output_of(["data", "check", str(folder), "--captions", captions, "--json"], stop))
    told = [("clips", found["clips"]), ("hours", found["hours"]), ("formats", _counts(found["formats"]))]
    told += [("sample rates", _counts(found["rates_hz"], " Hz")), ("channels", _counts(found["channels"]))]
    told.append(("splits", _counts(found["splits"])))
    unique = found.get("captions", {}).get("unique")
    if unique is not None:
        told.append(("captions", f"{unique} different ones"))
    bad = [f"{item['path']}: {item['reason']}" for item in found["bad"]]
    lines = [f"{len(bad)} files cannot be used and are left out:"] if bad else ["every file can be used"]
    lines += bad[:_SHOWN_BAD] + ([f"and {len(bad) - _SHOWN_BAD} more"] if len(bad) > _SHOWN_BAD else [])
    return wrapped([facts((name, value) for name, value in told if value)]) + _lines(
        [*lines, *(f"note: {note}" for note in found.get("notes", []))]
    )


def plan(folders: Folders, order: Order, stop: Event) -> str:
    """What the run would be: its size and memory, by `segue train --dry-run`, as HTML.

    Raises:
        UserError: settings, or a cache that cannot train the recipe.
    """
    cache = order.cache(folders)
    _refuse_taken(folders, order)
    if not is_cache(cache):
        return _lines(
            [
                f"the sounds are encoded into {folders.name(cache)} first; size and memory can be stated then",
                "$ segue " + shlex.join(order.encode(folders) or []),
            ]
        )
    out = output_of([*order.train(folders), "--dry-run"], stop)
    settings, _, lines = out.rpartition("\n}\n")
    total = json.loads(settings + "\n}")["train"]["total_examples"]
    # Time is not guessed before the first steps: it depends on what else the machine does.
    stated = f"{total:,} examples; the time left is stated as soon as it trains"
    return _lines([*lines.splitlines(), stated, "$ segue " + shlex.join(order.train(folders))])


def start(folders: Folders, jobs: Jobs, order: Order) -> Job:
    """Encode where that is needed, then train.

    Raises:
        UserError: the name is taken, or the source is not allowed.
    """
    _refuse_taken(folders, order)
    commands = [order.encode(folders), order.train(folders)]
    return jobs.start(order.run(folders), [command for command in commands if command is not None])


def resume(folders: Folders, jobs: Jobs, run: str) -> Job:
    """Go on with a run that was stopped.

    Raises:
        UserError: no run there, or it is being trained.
    """
    folder = folders.inside(run)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folders.name(folder)}: no run there; hint: choose one of the list")
    return jobs.start(folder, [["train", "--resume", str(folder)]])


def status(folders: Folders, jobs: Jobs, run: Path) -> str:
    """One line on how a run stands."""
    job = jobs.of(run)
    name = folders.name(run)
    if job is None:
        return f"{name}: not started by this page"
    return f"{name}: {job.state}" + (f" · {job.last_line}" if job.last_line else "")


def _counts(counts: dict[str, int], unit: str = "") -> str:
    return ", ".join(f"{name}{unit}: {count:,}" for name, count in counts.items() if count)


def _refuse_taken(folders: Folders, order: Order) -> None:
    run = order.run(folders)
    if (run / "config.json").exists():
        raise UserError(f"{folders.name(run)} holds a run already; hint: Resume goes on with it, or give another name")


def _lines(lines: Sequence[str]) -> str:
    return f"<pre style='white-space:pre-wrap'>{escape(chr(10).join(lines))}</pre>"
