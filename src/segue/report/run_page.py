"""The page of one run: what it was, how it went, how it sounds."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import numpy as np

from segue.audio.read import read_blocks, read_claim
from segue.audio.sound import BadAudio
from segue.report.curves import curve_figures, read_events
from segue.report.page import duration, facts, figure, heading, image, number, page, player, write_page
from segue.report.pictures import spectrogram_png
from segue.report.stages import stage_figures
from segue.types import UserError

MOST_SAMPLES = 32  # each carries its sound inside the page
MOST_TIMES = 6  # of the sounds during training


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
    config = stored.get("run") if isinstance(stored.get("run"), dict) else {}
    chips = _chips(config, events, _newest_state(run_dir))
    body = [heading(str(config.get("recipe") or run_dir.name), f"Training run in {run_dir.name}/", chips)]
    # Each section appears only where the run has something for it.
    curves = curve_figures({run_dir.name: events})
    if curves:
        body += ["<h2>Curves</h2>", f'<div class="card grid">{"".join(curves)}</div>']
        body.append('<p class="note">Only the validation losses at fixed t compare between runs: the training loss '
                    "follows whatever times were drawn.</p>")  # fmt: skip
    stages = stage_figures(events)
    if stages:
        body += ["<h2>Stages</h2>", f'<div class="card grid">{"".join(stages)}</div>']
    samples = _samples(run_dir / "samples")
    if samples:
        body += ["<h2>Samples</h2>", *samples]
    during = _sounds_during(run_dir / "samples")
    if during:
        body += ["<h2>Sounds during training</h2>", *during]
    if config:
        where = {name: stored[name] for name in ("segue", "cache") if name in stored}
        body += ["<h2>Configuration</h2>", facts((where | config).items())]
    if len(body) == 1:
        body.append("<p>Nothing is logged yet.</p>")
    return write_page(run_dir / "report.html", page(f"segue: {run_dir.name}", body))


def _newest_state(run_dir: Path) -> dict:
    """Counters of the newest checkpoint; empty where there is none."""
    # Names are padded with zeros, so that their order is that of the examples.
    states = sorted((run_dir / "checkpoints").glob("examples-*/state.json"))
    return _json(states[-1], dict) if states else {}


def _chips(config: dict, events: list[dict], state: dict) -> list[tuple[str, str]]:
    validation = [e for e in events if e.get("event") == "validation"]
    chips = [("examples seen", number(events[-1]["examples_seen"]) if events else "")]
    total = config.get("train", {}).get("total_examples") if isinstance(config.get("train"), dict) else None
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


def _samples(folder: Path) -> list[str]:
    listed = {str(s.get("file")): s for s in _json(folder / "samples.json", list) if isinstance(s, dict)}
    cards = []
    for path in sorted(folder.glob("*.wav"))[:MOST_SAMPLES]:
        sound = _sound(path)
        about = listed.get(path.name, {})
        badge = '<span class="badge">split test</span>' if about.get("held_out") else ""
        title = f'<div class="prompt"><h3>{escape(str(about.get("prompt") or path.stem))}</h3>{badge}</div>'
        cards.append(f'<div class="card" style="margin:0">{title}{sound}</div>')
    return [f'<div class="grid">{"".join(cards)}</div>'] if cards else []


def _sound(path: Path, about: str = "") -> str:
    """A sound's spectrogram, with a line under it, and its player."""
    try:
        rate = read_claim(path).sample_rate_hz
        wave = np.concatenate([*read_blocks(path)]).T
        return figure(image(spectrogram_png(wave, rate), f"spectrogram of {path.name}"), about) + player(wave, rate)
    except (BadAudio, UserError):
        # One damaged file must not cost the page.
        return '<p class="note">This file cannot be read.</p>'


def _sounds_during(folder: Path) -> list[str]:
    """A card for each caption: what the model made of it at some examples, from the same noise each time."""
    times = sorted(folder.glob("examples-*"))
    # Evenly spaced, the last among them: a page carries its sounds.
    times = times[:: -max(1, -(-len(times) // MOST_TIMES))][::-1]
    by_prompt: dict[str, list[str]] = {}
    for time in times:
        seen = number(int(time.name.rpartition("-")[2])) if time.name.rpartition("-")[2].isdecimal() else time.name
        for sample in [s for s in _json(time / "samples.json", list) if isinstance(s, dict)]:
            sound = _sound(time / Path(str(sample.get("file"))).name, f"{seen} examples")
            by_prompt.setdefault(str(sample.get("prompt")), []).append(sound)
    cards = []
    for prompt, sounds in by_prompt.items():
        title = f'<div class="prompt"><h3>{escape(prompt)}</h3></div>'
        cards.append(f'<div class="card">{title}<div class="grid">{"".join(sounds)}</div></div>')
    return cards


def _json(path: Path, kind: type):
    """A JSON file of the expected kind; empty where it is missing or broken: a report shows what there is."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return kind()
    return value if isinstance(value, kind) else kind()
