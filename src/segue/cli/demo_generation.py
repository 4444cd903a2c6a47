"""The demo of text to audio: clips of the same captions from both variants, and their prompt accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from segue.cli.demo_common import Trained, keep_sounds, page_prompts, say, spread_notes, training_figures, wave_of
from segue.data.clip import Clip
from segue.evaluation.note_classifier import NoteClassifier
from segue.evaluation.notes import NoteLabel, describe, measure_notes
from segue.pipeline import Pipeline, Sampling
from segue.report import PromptClip, VariantPage, write_demo_report, write_summary

STEPS = 16  # of the solver, where a page has to be made in minutes
# What the page plays: kind -> how many prompts of trained and of held-out pairs. Twelve in all.
PLAYED = {"note": (4, 3), "drum": (1, 0), "chord": (1, 1), "sequence": (1, 1)}


def report_cost(measured: int) -> float:
    """In training examples: a generated clip costs steps x 2 evaluations, each a third of an example."""
    return (measured + 12) * STEPS * 2 / 3


def write_report(demo: Trained) -> list[str]:
    """Generate, classify, and write summary.json and report.html; returns lines to close with (none)."""
    classifier = NoteClassifier.load()
    asked = measured_notes(demo.everything, demo.plan.measured)
    labels = [NoteLabel(c.fields["family"], c.fields["pitch"], c.split == "test") for c in asked]
    codec = demo.codec
    rate = demo.codec.sample_rate_hz
    real = torch.stack([wave_of(c, rate) for c in asked])
    # Other clips of the same kind, so that real notes have a Frechet distance of their own to compare with.
    others = [c for c in demo.everything if c.fields["kind"] == "note" and c.id not in {a.id for a in asked}]
    compared = torch.stack([wave_of(c, rate) for c in others[: 4 * demo.plan.measured]])
    reference = classifier.predict(compared, rate).embedding

    # Decoded in parts, since the codec's memory grows with the batch.
    sides = real[:, None].expand(-1, codec.audio_channels, -1)
    round_trip = torch.cat([codec.decode(codec.encode(part), part.shape[-1]).mean(dim=1) for part in sides.split(32)])
    references = {
        "real": measure_notes(classifier, real, rate, labels, reference),
        "codec_round_trip": measure_notes(classifier, round_trip, rate, labels, reference),
    }
    prompts = page_prompts(demo.everything, PLAYED)
    sampling = Sampling(steps=STEPS)
    variants: dict[str, dict] = {}
    pages: dict[str, VariantPage] = {}
    # One model at a time in memory.
    for name, result in demo.results.items():
        say(f"    generating with {name}")
        pipeline = Pipeline.load(result.run_dir)
        made = pipeline.generate([c.captions[0] for c in asked], sampling=sampling).mean(dim=1)
        measures = measure_notes(classifier, made, rate, labels, reference)
        variants[name] = measures | training_figures(name, result)
        waves = pipeline.generate([c.captions[0] for c in prompts], sampling=sampling)
        pages[name] = VariantPage(
            result.run_dir, [_prompt_clip(classifier, c, w, rate) for c, w in zip(prompts, waves)]
        )
        keep_sounds(result.run_dir, prompts, waves, rate)

    summary = demo.summary(
        asdict(sampling),
        note_classifier={"sha256": classifier.sha256, "card": classifier.card.get("figures", {})},
        references=references,
        variants=variants,
        prompts=[{"prompt": c.captions[0], "held_out": c.split == "test"} for c in prompts],
    )
    write_summary(demo.out / "summary.json", summary)
    write_demo_report(demo.out, summary, pages, [_prompt_clip(classifier, c, wave_of(c, rate), rate) for c in prompts])
    return []


def measured_notes(everything: Sequence[Clip], count: int) -> list[Clip]:
    """Held-out notes to measure: two thirds of trained (instrument, pitch) pairs, one third of pairs never seen."""
    notes = [c for c in everything if c.fields["kind"] == "note"]
    trained = [c for c in notes if c.split == "valid"]
    unseen = [c for c in notes if c.split == "test"]
    return [*spread_notes(trained, count - count // 3), *spread_notes(unseen, count // 3)]


def _prompt_clip(classifier: NoteClassifier, clip: Clip, wave: Tensor, sample_rate_hz: int) -> PromptClip:
    single = clip.fields["kind"] in ("note", "drum")  # of chords and sequences the classifier knows nothing
    mono = wave if wave.ndim == 1 else wave.mean(dim=0)
    classified = describe(classifier, mono, sample_rate_hz) if single else ""
    return PromptClip(clip.captions[0], clip.split == "test", wave.numpy(), sample_rate_hz, classified)
