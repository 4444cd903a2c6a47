"""The page of one run: how it sounds, how it went, what it was."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path

import numpy as np

from segue.audio.read import read_blocks, read_claim
from segue.audio.sound import BadAudio
from segue.report.curves import curve_figures, read_events
from segue.report.page import (
    duration,
    facts,
    figure,
    flatten,
    folded,
    heading,
    image,
    number,
    page,
    player,
    write_page,
)
from segue.report.pictures import spectrogram_png
from segue.report.stages import stage_figures
from segue.report.verdict import Finding, verdict
from segue.types import UserError

MOST_PROMPTS = 16  # each carries its sounds inside the page
MOST_TIMES = 4  # of the sounds during training
ORIGINALS = "original"  # folder in samples/, of the held-out clips whose captions the prompts are
# Of super-resolution: a clip in three forms, by the end of its file's name; in the order in which they are shown.
FORMS = {"true": "original", "low": "input", "made": "output"}
# Settings whose 0 stands for a value that is found when the run begins; those of older runs are not known any more.
AUTOMATIC = ("optim.learning_rate", "model.patch_frames", "train.log_every", "train.validate_every",
             "train.checkpoint_every", "train.sample_every")  # fmt: skip


def write_run_report(run_dir: Path) -> Path:
    """Write run_dir/report.html from config.json, log.jsonl, checkpoints/ and samples/, whichever are there.

    Returns its path.

    Raises:
        UserError: run_dir is not a folder, or cannot be written.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is not a run folder; hint: name a folder that `segue train` wrote")
    stored = _json(run_dir / "config.json", dict)
    events = read_events(run_dir)
    config = _part(stored, "run")
    chips = _chips(config, events, _newest_state(run_dir))
    body = [heading(str(config.get("recipe") or run_dir.name), f"Training run in {run_dir.name}/", chips)]
    body += verdict_list(verdict(events, _total(config)))
    # Each section appears only where the run has something for it.
    sounds = sound_cards(run_dir)
    if sounds:
        body += ["<h2>Sounds</h2>", *sounds]
    curves = curve_figures({run_dir.name: events})
    if curves:
        body += ["<h2>Curves</h2>", f'<div class="card grid">{"".join(curves)}</div>']
        body.append('<p class="note">Only the validation losses at fixed t compare between runs: the training loss '
                    "follows whatever times were drawn.</p>")  # fmt: skip
    stages = stage_figures(events)
    if stages:
        body += ["<h2>Stages</h2>", f'<div class="card grid">{"".join(stages)}</div>']
    if config:
        body += ["<h2>How this run was made</h2>", facts(_origin(stored))]
        body.append(folded("All settings", facts(settings_of(stored))))
    if not (config or events or sounds):
        body.append("<p>Nothing is logged yet.</p>")
    return write_page(run_dir / "report.html", page(f"segue: {run_dir.name}", body))


def verdict_list(findings: Iterable[Finding]) -> list[str]:
    """Findings as a list, those that ask for something marked; nothing where there are none."""
    items = [f"<li{' class=warn' if f.warns else ''}>{escape(f.text)}</li>" for f in findings]
    return [f'<ul class="verdict">{"".join(items)}</ul>'] if items else []


def settings_of(stored: dict) -> list[tuple[str, object]]:
    """The settings of a config.json by dotted name, with the values that automatic ones took."""
    resolved = _part(stored, "resolved")
    found = []
    for name, value in flatten(_part(stored, "run").items()):
        automatic = name in AUTOMATIC and value == 0
        found.append((name, resolved.get(name, "automatic" if automatic else value)))
    return found


def _origin(stored: dict) -> list[tuple[str, object]]:
    """Command, commit, machine, data and size."""
    splits = _part(_part(stored, "data"), "splits")
    counts = ", ".join(f"{number(count)} {split}" for split, count in splits.items() if count)
    size = _part(stored, "resolved").get("parameters")
    told = [
        *_part(stored, "origin").items(),
        ("segue", stored.get("segue")),
        ("cache", stored.get("cache")),
        ("clips", counts),
        ("size", f"{size / 1e6:.2f} M parameters" if isinstance(size, int) else None),
    ]
    return [(name, value) for name, value in told if value]


def _part(stored: dict, name: str) -> dict:
    """A part of a config.json; empty where it is missing or something else."""
    value = stored.get(name)
    return value if isinstance(value, dict) else {}


def _total(config: dict) -> int | None:
    train = config.get("train")
    total = train.get("total_examples") if isinstance(train, dict) else None
    return total if isinstance(total, int) else None


def _newest_state(run_dir: Path) -> dict:
    """Counters of the newest checkpoint; empty where there is none."""
    # Names are padded with zeros, so that their order is that of the examples.
    states = sorted((run_dir / "checkpoints").glob("examples-*/state.json"))
    return _json(states[-1], dict) if states else {}


def _chips(config: dict, events: list[dict], state: dict) -> list[tuple[str, str]]:
    validation = [e for e in events if e.get("event") == "validation"]
    chips = [("examples seen", number(events[-1]["examples_seen"]) if events else "")]
    total = _total(config)
    chips.append(("of", number(total) if total else ""))
    # The checkpoint counts the seconds of every session. The log's rates are of one session each, and no sum of them
    # is the time that a run took.
    seconds = state.get("seconds")
    seen = state.get("examples_seen")
    if isinstance(seconds, (int, float)) and isinstance(seen, int) and seconds > 0:
        chips.append(("examples per second", number(seen / seconds)))
        chips.append(("training time", duration(seconds)))
    if validation and isinstance(validation[-1].get("loss"), (int, float)):
        chips.append(("validation loss", f"{validation[-1]['loss']:.4f}"))
    return chips


def sound_cards(run_dir: Path, times: int = MOST_TIMES) -> list[str]:
    """A card for each prompt: the original where it is known, what the run made at its checkpoints, and at its end.

    The noise is the same each time, so that the model alone changes.

    Args:
        times: at most so many checkpoints, evenly spaced, the newest among them.
    """
    folder = run_dir / "samples"
    # Evenly spaced, the last among them: a page carries its sounds.
    during = sorted(folder.glob("examples-*"))
    during = during[:: -max(1, -(-len(during) // max(1, times)))][::-1]
    places = [(folder / ORIGINALS, "original"), *((path, _when(path)) for path in during), (folder, "at the end")]
    by_prompt: dict[str, list[str]] = {}
    held_out = set()
    for place, label in places:
        for sample in _listed(place):
            form = _form(sample)
            title = str(sample.get("prompt")).removesuffix(f" ({form})")
            path = place / Path(str(sample.get("file"))).name
            by_prompt.setdefault(title, []).append(_sound(path, FORMS.get(form, label)))
            if sample.get("held_out"):
                held_out.add(title)
    cards = []
    for title, sounds in list(by_prompt.items())[:MOST_PROMPTS]:
        badge = '<span class="badge">split test</span>' if title in held_out else ""
        head = f'<div class="prompt"><h3>{escape(title)}</h3>{badge}</div>'
        row = "".join(f"<div>{sound}</div>" for sound in sounds)
        cards.append(f'<div class="card">{head}<div class="grid sounds">{row}</div></div>')
    return cards


def _when(folder: Path) -> str:
    seen = folder.name.rpartition("-")[2]
    return f"after {number(int(seen))} examples" if seen.isdecimal() else folder.name


def _form(sample: dict) -> str:
    """Of super-resolution, which form of its clip a sample is; else ""."""
    found = re.fullmatch(r"\d+-(true|low|made)\.wav", str(sample.get("file")))
    return found[1] if found else ""


def _listed(folder: Path) -> list[dict]:
    """What samples.json lists; files that it does not name, by their own names."""
    listed = [s for s in _json(folder / "samples.json", list) if isinstance(s, dict)]
    # The original of a clip comes before what was made of it.
    order = list(FORMS)
    listed.sort(key=lambda s: order.index(_form(s)) if _form(s) else 0)
    names = {str(s.get("file")) for s in listed}
    return listed + [
        {"file": path.name, "prompt": path.stem} for path in sorted(folder.glob("*.wav")) if path.name not in names
    ]


def _sound(path: Path, about: str = "") -> str:
    """A sound's spectrogram, with a line under it, and its player."""
    try:
        rate = read_claim(path).sample_rate_hz
        wave = np.concatenate([*read_blocks(path)]).T
        return figure(image(spectrogram_png(wave, rate), f"spectrogram of {path.name}"), about) + player(wave, rate)
    except (BadAudio, UserError):
        # One damaged file must not cost the page.
        return '<p class="note">This file cannot be read.</p>'


def _json(path: Path, kind: type):
    """A JSON file of the expected kind; empty where it is missing or broken: a report shows what there is."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return kind()
    return value if isinstance(value, kind) else kind()
