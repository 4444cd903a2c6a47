"""The demo of text to audio: clips of the same captions from both arms, judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from segue.cli.demo_common import Trained, listening_prompts, say, spread, training_figures, wave_of, write_samples
from segue.data.clip import Clip
from segue.metrics.judge import Judge
from segue.metrics.notes import NoteLabel, measure_notes, words
from segue.pipeline import Pipeline, Sampling
from segue.report import ArmPage, PromptClip, write_demo_report, write_summary

STEPS = 16  # of the solver, where a page has to be made in minutes
# What the page plays: kind -> how many prompts of trained and of held-out pairs. Twelve in all.
LISTENING = {"note": (4, 3), "drum": (1, 0), "chord": (1, 1), "sequence": (1, 1)}


def report_cost(judged: int) -> float:
    """In training examples: a generated clip costs steps x 2 evaluations, each a third of an example."""
    return (judged + 12) * STEPS * 2 / 3


def write_report(demo: Trained) -> list[str]:
    """Generate, judge, and write summary.json and report.html; returns lines to close with (none)."""
    judge = Judge.load()
    asked = judged_notes(demo.everything, demo.plan.judged)
    labels = [NoteLabel(c.fields["family"], c.fields["pitch"], c.split == "test") for c in asked]
    codec, rate = demo.codec, demo.codec.sample_rate_hz
    real = torch.stack([wave_of(c, rate) for c in asked])
    # Other clips of the same kind, so that real notes have a Frechet distance of their own to compare with.
    others = [c for c in demo.everything if c.fields["kind"] == "note" and c.id not in {a.id for a in asked}]
    heard = torch.stack([wave_of(c, rate) for c in others[: 4 * demo.plan.judged]])
    reference = judge.predict(heard, rate).embedding

    round_trip = torch.cat([codec.decode(codec.encode(part), part.shape[1]) for part in real.split(32)])
    references = {
        "real": measure_notes(judge, real, rate, labels, reference),
        "codec_round_trip": measure_notes(judge, round_trip, rate, labels, reference),
    }
    prompts = listening_prompts(demo.everything, LISTENING)
    sampling = Sampling(steps=STEPS)
    arms, pages = {}, {}
    for name, result in demo.results.items():
        say(f"    generating with {name}")
        pipeline = Pipeline.load(result.run_dir)
        measures = measure_notes(
            judge, pipeline.generate([c.captions[0] for c in asked], sampling=sampling), rate, labels, reference
        )
        arms[name] = measures | training_figures(name, result)
        waves = pipeline.generate([c.captions[0] for c in prompts], sampling=sampling)
        pages[name] = ArmPage(result.run_dir, [_prompt_clip(judge, c, w, rate) for c, w in zip(prompts, waves)])
        write_samples(result.run_dir, prompts, waves, rate)

    summary = demo.summary(
        asdict(sampling),
        judge={"sha256": judge.sha256, "card": judge.card.get("figures", {})},
        references=references,
        arms=arms,
        prompts=[{"prompt": c.captions[0], "held_out": c.split == "test"} for c in prompts],
    )
    write_summary(demo.out / "summary.json", summary)
    write_demo_report(demo.out, summary, pages, [_prompt_clip(judge, c, wave_of(c, rate), rate) for c in prompts])
    return []


def judged_notes(everything: Sequence[Clip], count: int) -> list[Clip]:
    """Held-out notes to judge: two thirds of trained (instrument, pitch) pairs, one third of pairs never seen."""
    notes = [c for c in everything if c.fields["kind"] == "note"]
    trained = [c for c in notes if c.split == "valid"]
    unseen = [c for c in notes if c.split == "test"]
    return [*spread(trained, count - count // 3), *spread(unseen, count // 3)]


def _prompt_clip(judge: Judge, clip: Clip, wave: Tensor, sample_rate_hz: int) -> PromptClip:
    single = clip.fields["kind"] in ("note", "drum")  # of chords and sequences the judge knows nothing
    judged = words(judge, wave, sample_rate_hz) if single else ""
    return PromptClip(clip.captions[0], clip.split == "test", wave.numpy(), sample_rate_hz, judged)
