"""The page of one run: what it was, how it went, how it sounds."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from segue.report.curves import curve_figures, read_events
from segue.report.page import duration, facts, figure, heading, image, number, page, player, write_page
from segue.report.pictures import spectrogram_png
from segue.report.stages import stage_figures
from segue.types import UserError

MOST_SAMPLES = 32  # each carries its sound inside the page


def write_run_report(run_dir: Path) -> Path:
    """Write run_dir/report.html from config.json, log.jsonl and samples/, whichever are there; return its path.

    Raises:
        UserError: run_dir is not a folder, or cannot be written.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is not a run folder; mend: name a folder that `segue train` wrote")
    config, events = _json(run_dir / "config.json", dict), read_events(run_dir)
    body = [
        heading(str(config.get("recipe") or run_dir.name), f"Training run in {run_dir.name}/", _chips(config, events))
    ]
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
    if config:
        body += ["<h2>Configuration</h2>", facts(config.items())]
    if len(body) == 1:
        body.append("<p>Nothing is logged yet.</p>")
    return write_page(run_dir / "report.html", page(f"segue: {run_dir.name}", body))


def _chips(config: dict, events: list[dict]) -> list[tuple[str, str]]:
    train = [e for e in events if e.get("event") == "train"]
    validation = [e for e in events if e.get("event") == "validation"]
    chips = [("examples seen", number(events[-1]["examples_seen"]) if events else "")]
    total = config.get("train", {}).get("total_examples") if isinstance(config.get("train"), dict) else None
    chips.append(("of", number(total) if total else ""))
    rates = [e["examples_per_sec"] for e in train if e.get("examples_per_sec")]
    if rates:
        rate = sorted(rates)[len(rates) // 2]
        chips.append(("examples per second", number(float(rate))))
        chips.append(("training time about", duration(events[-1]["examples_seen"] / rate)))
    if validation and isinstance(validation[-1].get("loss"), (int, float)):
        chips.append(("validation loss", f"{validation[-1]['loss']:.4f}"))
    return chips


def _samples(folder: Path) -> list[str]:
    import soundfile

    listed = {str(s.get("file")): s for s in _json(folder / "samples.json", list) if isinstance(s, dict)}
    cards = []
    for path in sorted(folder.glob("*.wav"))[:MOST_SAMPLES]:
        try:
            wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
            mono = wave.mean(axis=1)
            sound = figure(image(spectrogram_png(mono, rate), f"spectrogram of {path.name}")) + player(mono, rate)
        except (soundfile.LibsndfileError, UserError):
            sound = '<p class="note">This file cannot be read.</p>'
        about = listed.get(path.name, {})
        badge = '<span class="badge">held-out pair</span>' if about.get("held_out") else ""
        title = f'<div class="prompt"><h3>{escape(str(about.get("prompt") or path.stem))}</h3>{badge}</div>'
        cards.append(f'<div class="card" style="margin:0">{title}{sound}</div>')
    return [f'<div class="grid">{"".join(cards)}</div>'] if cards else []


def _json(path: Path, kind: type):
    """A JSON file of the expected kind; empty where it is missing or broken: a report shows what there is."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return kind()
    return value if isinstance(value, kind) else kind()
