"""The demo's page and its summary: variants side by side, with references, chance levels, intervals and sounds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from segue.report import recordings_table, super_resolution_table
from segue.report.curves import curve_figures, read_events
from segue.report.page import (
    bar,
    duration,
    facts,
    figure,
    heading,
    image,
    number,
    page,
    player,
    table,
    write_page,
)
from segue.report.pictures import SPECTROGRAM_RANGE_DB, spectrogram_png
from segue.report.stages import stage_figures
from segue.types import UserError


@dataclass(frozen=True)
class PromptClip:
    """One clip of the page.

    Attributes:
        prompt: the caption that it was made from, or that a recording carries.
        held_out: True where this (instrument, pitch) pair, or caption, was never trained on.
        wave: [T] or [A, T] float.
        sample_rate_hz: of the wave.
        classified: what the note classifier says of it, in words; empty where it was not asked.
    """

    prompt: str
    held_out: bool
    wave: np.ndarray
    sample_rate_hz: int
    classified: str


@dataclass(frozen=True)
class VariantPage:
    """One variant: its run folder (for the curves) and its clips."""

    run_dir: Path
    clips: Sequence[PromptClip]


_ACCURACIES = (
    "prompt accuracy, family", "prompt accuracy, pitch", "family, held-out pairs", "pitch, held-out pairs"
)  # fmt: skip
# What the page says of tasks other than notes from captions: their tables.
_TABLES = {"super-resolution": super_resolution_table, "recordings": recordings_table}
_REFERENCES = {"real": "real clips", "codec_round_trip": "codec round trip"}
_ABOUT = (
    "Every variant was trained from the same seed on the same data for the same number of examples, and then generated "
    "clips of the same captions. An independent classifier, which took no part in the training, says which instrument "
    "family and which pitch each clip is. Prompt accuracy is the share of clips for which that is as the caption asks."
)
_READING = (
    "Thin line: 95 % bootstrap interval over the measured clips. Amber tick: chance, the accuracy to expect if the "
    "captions were shuffled among the clips. Held-out pairs are (instrument, pitch) pairs that no training clip holds. "
    "Fréchet distance (lower is better) is taken in the classifier's embedding and falls as the number of clips grows: "
    "compare it only at equal n. The grey rows are upper bounds: real clips given to the same classifier, and the same "
    "clips after encoding and decoding."
)
_COMPARING = (
    "Losses at fixed t, on clips that were not trained on, compare between variants. Training losses do not, where the "
    "variants draw different times."
)


def write_summary(path: Path, summary: Mapping) -> Path:
    """Write every figure of the demo as JSON, whole or not at all.

    Raises:
        UserError: a number is not finite (named by its place), a value is not JSON, or the folder cannot be written.
    """
    _refuse_non_finite(summary, "summary")
    try:
        # allow_nan=False: NaN is no JSON, and other readers would refuse the file.
        text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: the summary holds something that is not JSON ({error})") from error
    return write_page(Path(path), text + "\n")


def write_demo_report(
    demo_dir: Path,
    summary: Mapping,
    variants: Mapping[str, VariantPage],
    real: Sequence[PromptClip] = (),
    columns: Mapping[str, Sequence[PromptClip]] | None = None,
) -> Path:
    """Write demo_dir/report.html, one self-contained page; return its path.

    Args:
        summary: as given to `write_summary`; every measure on the page comes from it. Missing parts are left out. Its
            "task" decides which table is drawn.
        variants: name -> run folder (its log.jsonl gives the curves) and clips.
        real: clips of the data set, shown beside the clips of the same prompt.
        columns: what to play from left to right, by name; default: what each variant made, and `real`.
    """
    tables = _TABLES.get(summary.get("task", ""))
    if columns is None:
        columns = {name: variant.clips for name, variant in variants.items()} | {"real clip": real}
    # Measures and sounds first.
    body = [
        heading("segue demo", _lead(summary), _chips(summary)),
        f"<p>{tables.ABOUT if tables else _ABOUT}</p>",
        "<h2>Measures</h2>",
        tables.measures_table(summary) if tables else _measures(summary),
        f'<p class="note">{tables.READING if tables else _READING}</p>',
        _training_table(summary),
        "<h2>Listen</h2>",
        # Linear where the upper half of the band matters, which mel bands make small.
        *_players_of_prompts(columns, tables is not None, "caption" if tables is recordings_table else "pair"),
    ]
    # How training went, then how the page was made.
    logs = {name: read_events(Path(variant.run_dir)) for name, variant in variants.items()}
    curves = curve_figures(logs)
    if curves:
        body += ["<h2>Curves</h2>", f'<div class="card grid">{"".join(curves)}</div>']
        body.append(f'<p class="note">{_COMPARING}</p>')
    for name, events in logs.items():
        stages = stage_figures(events, name)
        if stages:
            body += [f"<h2>Stages of {escape(name)}</h2>", f'<div class="card grid">{"".join(stages)}</div>']
    body += _origin(summary)
    return write_page(Path(demo_dir) / "report.html", page("segue demo", body))


def _lead(summary: Mapping) -> str:
    dataset = summary.get("dataset", {})
    about = f"{number(dataset['clips'])} captioned clips, " if "clips" in dataset else ""
    about += f"{dataset['hours']:.1f} hours; " if "hours" in dataset else ""
    names = list(summary.get("variants", {}))
    task = "Audio super-resolution" if summary.get("task") == "super-resolution" else "Text to audio"
    return f"{task}, trained from nothing on this machine: {about}{' against '.join(names)}."


def _chips(summary: Mapping) -> list[tuple[str, str]]:
    model = summary.get("model", {})
    return [
        ("total time", duration(summary["seconds_total"]) if "seconds_total" in summary else ""),
        ("model", str(model.get("preset", ""))),
        ("parameters", f"{model['parameters'] / 1e6:.1f} M" if "parameters" in model else ""),
        ("codec", str(summary.get("codec", {}).get("name", ""))),
        ("seed", str(summary.get("seed", ""))),
        ("commit", str(summary.get("commit", ""))),
        ("machine", str(summary.get("machine", ""))),
    ]


def _measures(summary: Mapping) -> str:
    head = ("", *_ACCURACIES, "Fréchet distance")
    references = summary.get("references", {})
    rows = [
        (title, _measure_cells(references[name]), True) for name, title in _REFERENCES.items() if name in references
    ]
    rows += [(name, _measure_cells(measured), False) for name, measured in summary.get("variants", {}).items()]
    return table(head, rows)


def _measure_cells(measured: Mapping) -> list[str]:
    held_out = measured.get("held_out") or {}
    cells = [_accuracy_cell(part, name) for part in (measured, held_out) for name in ("family", "pitch")]
    distance = measured.get("frechet_distance")
    n = measured.get("frechet_distance_n")
    cells.append("–" if distance is None else f"{number(float(distance))}<small>n {number(n)}</small>")
    return cells


def _accuracy_cell(measured: Mapping, name: str) -> str:
    value = measured.get(f"{name}_accuracy")
    if value is None:
        return "–"
    interval = measured.get(f"{name}_accuracy_interval")
    chance = measured.get(f"{name}_accuracy_chance")
    words = [f"{100 * interval[0]:.0f}–{100 * interval[1]:.0f}"] if interval else []
    words += [f"chance {100 * chance:.1f}"] if chance is not None else []
    words += [f"n {measured['clips']}"] if "clips" in measured else []
    return f"{100 * value:.1f} %{bar(value, interval, chance)}<small>{' · '.join(words)}</small>"


def _training_table(summary: Mapping) -> str:
    variants = summary.get("variants", {})
    # Over all variants: one may have been measured at more times than another.
    times = sorted({t for trained in variants.values() for t in trained.get("validation_loss") or {}}, key=float)
    head = ("", "examples seen", "time", "examples/s", *(f"loss at t = {t}" for t in times))
    rows = []
    for name, trained in variants.items():
        cells = [number(trained.get("examples_seen"))]
        cells.append(duration(trained["seconds"]) if "seconds" in trained else "–")
        cells.append(number(trained.get("examples_per_sec")))
        cells += [_loss_cell(trained, t) for t in times]
        rows.append((name, cells, False))
    return table(head, rows) if rows else ""


def _loss_cell(trained: Mapping, t: str) -> str:
    last, first = (trained.get(key, {}).get(t) for key in ("validation_loss", "validation_loss_first"))
    if last is None:
        return "–"
    return f"{last:.3f}" + (f"<small>at first {first:.3f}</small>" if first is not None else "")


def _players_of_prompts(columns: Mapping[str, Sequence[PromptClip]], linear: bool, held_out_what: str) -> list[str]:
    """A card a prompt: of each column the clip that there is."""
    keyed = {name: _by_prompt(clips) for name, clips in columns.items()}
    cards = []
    # In the order in which prompts first appear in any column.
    for key in dict.fromkeys(key for column in keyed.values() for key in column):
        clips = {name: column[key] for name, column in keyed.items() if key in column}
        held_out = any(clip.held_out for clip in clips.values())
        badge = f'<span class="badge">held-out {held_out_what}</span>' if held_out else ""
        cells = "".join(f"<div>{_clip(name, clip, linear)}</div>" for name, clip in clips.items())
        title = f'<div class="prompt"><h3>{escape(key[0])}</h3>{badge}</div>'
        cards.append(f'<div class="card">{title}<div class="grid">{cells}</div></div>')
    low, high = SPECTROGRAM_RANGE_DB
    scale = (
        f"Spectrograms: {'linear' if linear else 'log-mel'}; one colour scale for all, {low:.0f} to {high:.0f} dB "
        "relative to a full-scale sine."
    )
    return [f'<p class="note">{scale}</p>', *cards]


def _by_prompt(clips: Sequence[PromptClip]) -> dict[tuple[str, int], PromptClip]:
    """Clips by prompt and by how often that prompt came before: two clips may share a caption."""
    keyed: dict[tuple[str, int], PromptClip] = {}
    for clip in clips:
        count = sum(prompt == clip.prompt for prompt, _ in keyed)
        keyed[clip.prompt, count] = clip
    return keyed


def _clip(name: str, clip: PromptClip, linear: bool) -> str:
    words = f'<div class="classified">classified as {escape(clip.classified)}</div>' if clip.classified else ""
    picture = spectrogram_png(clip.wave, clip.sample_rate_hz, width_px=620, height_px=310, linear=linear)
    drawn = figure(image(picture, f"spectrogram, {name}: {clip.prompt}"))
    return f'<p class="label">{escape(name)}</p>{drawn}{player(clip.wave, clip.sample_rate_hz)}{words}'


def _origin(summary: Mapping) -> list[str]:
    """Where every figure came from: command, machine, settings."""
    parts = ["<h2>How this page was made</h2>"]
    if summary.get("command"):
        parts.append(f"<pre>{escape(str(summary['command']))}</pre>")
    classifier = summary.get("note_classifier", {})
    if classifier.get("card"):
        parts += [
            "<p>Accuracy of the note classifier on clips of known content, clean and damaged:</p>",
            _classifier_table(classifier["card"]),
        ]
    kept = ("commit", "machine", "versions", "seed", "dataset", "codec", "model", "test")
    pairs = [(key, summary[key]) for key in kept if key in summary]
    if classifier or summary.get("task") not in _TABLES:
        pairs.append(("note_classifier.sha256", classifier.get("sha256")))
    parts.append(f"<details open><summary>Settings and versions</summary>{facts(pairs)}</details>")
    parts.append('<p class="note">summary.json, beside this page, holds every figure of its tables.</p>')
    return parts


def _classifier_table(card: Mapping) -> str:
    """The classifier's own accuracies: damage -> head -> accuracy, interval, chance, n."""
    # Every head that any damage was measured with has a column.
    heads = list(dict.fromkeys(head for figures in card.values() for head in figures))
    rows = []
    for damage, figures in card.items():
        cells = [
            _accuracy_cell(
                {"x_accuracy": f.get("accuracy"), "x_accuracy_interval": f.get("interval"), "clips": f.get("n")},
                "x",
            )
            for f in (figures.get(head, {}) for head in heads)
        ]
        rows.append((damage, cells, False))
    return table(("", *heads), rows)


def _refuse_non_finite(value: object, place: str) -> None:
    # By its place: "variants.x.loss" is found faster than "a number".
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{place} is {value}; a summary holds finite numbers only, so that measure failed")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_non_finite(inner, f"{place}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _refuse_non_finite(inner, f"{place}[{index}]")
