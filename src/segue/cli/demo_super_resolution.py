"""The demo of super-resolution: held-out clips without their top, as both variants and the baselines give it back."""

from __future__ import annotations

import torch
from torch import Tensor

from segue.cli.demo_common import Trained, keep_sounds, page_prompts, say, spread_notes, training_figures, wave_of
from segue.pipeline import SHIPPED_SUPER_RESOLUTION, SuperResolver
from segue.predictor import Predictor
from segue.predictor.resolver import SHIPPED as PREDICTORS
from segue.report import PromptClip, VariantPage, write_demo_report, write_summary
from segue.tasks.degradation import degrade
from segue.training.log import read_log
from segue.types import UserError
from segue.workflows.measure_super_resolution import PRESET, Resolver, by_model, rows_of

SHIPPED = "shipped predictor"
SHIPPED_DIFFUSION = "shipped diffusion model"
# What the page plays is chosen of: kind -> how many clips of trained and of held-out pairs.
CHOSEN_FROM = {"note": (3, 9), "drum": (3, 0), "chord": (0, 3), "sequence": (3, 3)}
PLAYED = 8  # those that lost most: most notes of a bass have nothing to lose


def report_cost(measured: int) -> float:
    """In training examples: a clip is two of them long, and every step is a third of one."""
    return (measured + PLAYED) * SuperResolver.steps * 2 / 3


def write_report(demo: Trained) -> list[str]:
    """Measure, widen what the page plays, write summary.json and report.html; returns lines to close with.

    Raises:
        UserError: fewer than two clips of held-out pairs that sound.
    """
    rate_hz = demo.codec.sample_rate_hz
    filter_ = demo.config.degradation.held_out
    models: dict[str, Resolver] = {name: SuperResolver.load(result.run_dir) for name, result in demo.results.items()}
    models |= _shipped(rate_hz)
    say("    measuring beside the baselines")
    unseen = [c for c in demo.everything if c.fields["kind"] == "note" and c.split == "test"]
    waves = [wave_of(clip, rate_hz) for clip in spread_notes(unseen, demo.plan.measured)]
    # Silent clips have no figures.
    waves = [wave for wave in waves if bool(wave.any())]
    if len(waves) < 2:
        raise UserError(f"--clips {demo.plan.clips}: too few notes of held-out pairs to measure; hint: give more")
    ways = {name: by_model(model, filter_.cutoff_hz, model.steps) for name, model in models.items()}
    rows = rows_of(ways, demo.codec, waves, filter_.cutoff_hz, rate_hz=rate_hz)

    say("    widening what the page plays")
    prompts = page_prompts(demo.everything, CHOSEN_FROM)
    true = torch.stack([wave_of(c, rate_hz) for c in prompts])
    low = degrade(true, rate_hz, [filter_] * len(prompts))
    # Those whose lost band was loudest, in their own order.
    chosen = (true - low).square().sum(1).argsort(descending=True)[:PLAYED].sort().values
    prompts = [prompts[i] for i in chosen]
    true = true[chosen]
    low = low[chosen]

    def clips(waves: Tensor) -> list[PromptClip]:
        return [PromptClip(c.captions[0], c.split == "test", w.numpy(), rate_hz, "") for c, w in zip(prompts, waves)]

    made = {name: _widened(model, low, filter_.cutoff_hz) for name, model in models.items()}
    columns = {"before": clips(low), **{name: clips(w) for name, w in made.items()}, "original": clips(true)}
    for name, result in demo.results.items():
        keep_sounds(result.run_dir, prompts, made[name], rate_hz)
    test = {"protocol": "nuwave2", "cutoff_hz": filter_.cutoff_hz, "lsd": PRESET, "clips": len(waves)}
    summary = demo.summary(
        {"steps": SuperResolver.steps, "solver": "euler"},
        test=test,
        rows=rows,
        variants={name: training_figures(name, result) for name, result in demo.results.items()},
        prompts=[{"prompt": c.captions[0], "held_out": c.split == "test"} for c in prompts],
    )
    write_summary(demo.out / "summary.json", summary)
    pages = {name: VariantPage(result.run_dir, columns[name]) for name, result in demo.results.items()}
    write_demo_report(demo.out, summary, pages, columns=columns)
    return _closing(demo, rows)


def _shipped(rate_hz: int) -> dict[str, Resolver]:
    """The models that come with the package, as references where their rate is that of the demo's codec."""
    found: list[tuple[str, Resolver]] = []
    if rate_hz in PREDICTORS:
        found.append((SHIPPED, Predictor.load(rate_hz=rate_hz)))
    if SHIPPED_SUPER_RESOLUTION.is_file():
        found.append((SHIPPED_DIFFUSION, SuperResolver.load(None)))
    return {name: model for name, model in found if model.sample_rate_hz == rate_hz}


def _widened(model: Resolver, low: Tensor, cutoff_hz: float) -> Tensor:
    return torch.cat([by_model(model, cutoff_hz, model.steps)(row[None], number) for number, row in enumerate(low)])


def _closing(demo: Trained, rows: dict) -> list[str]:
    """The figures in a few words, where the method stood, and what to do next."""
    short = [f"{name} {row['lsd full']['mean']:.2f}" for name, row in rows.items() if name != "codec round trip"]
    lines = [f"LSD on {demo.plan.measured} notes at most, lower is better: {', '.join(short)}"]
    # The last variant is the one with the method.
    name, result = list(demo.results.items())[-1]
    stages = [e for e in read_log(result.run_dir / "log.jsonl") if e["event"] == "stage" and "regime" in e]
    if stages:
        lines.append(f"{name} ended at r = {stages[-1]['regime']:.2f} (0 semantic, 1 refinement); one seed")
    return [*lines, f"your own files: segue upsample {result.run_dir} narrow.wav wide.wav"]
