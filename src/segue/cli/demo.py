"""`segue demo`: from nothing to a page of sounds: render notes, train two recipes at equal budget, listen, report."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from segue._version import __version__
from segue.cli.generate import write_wav
from segue.cli.origin import command, commit, machine
from segue.cli.side_by_side import Arm, lanes, threads_of, train_arms
from segue.codecs import default_codec, load_codec
from segue.codecs.base import Codec
from segue.conditioners import load_conditioner
from segue.data.audio import read_wave
from segue.data.cache import LatentCache
from segue.data.demo import render_demo_set
from segue.data.encoding import build_cache
from segue.data.manifest import Clip, load_manifest
from segue.data.vocabulary import held_out_pairs
from segue.files import write_text
from segue.metrics.judge import Judge
from segue.metrics.notes import NoteLabel, measure_notes, words
from segue.models.presets import parameters_of
from segue.pipeline import Pipeline, Sampling
from segue.recipes import DEFAULT_RECIPE, load_recipe
from segue.report import ArmPage, PromptClip, write_demo_report, write_summary
from segue.ssl import load_teacher
from segue.stage.controller import StageController
from segue.training.build import dit_config
from segue.training.config import override
from segue.training.log import read_log
from segue.training.loop import TrainResult
from segue.training.rate import measure_rate
from segue.types import UserError

BASELINE = "static-uniform"
SECONDS = 2.048
REPORT_SEC = 45.0  # decoding, judging and drawing; the generation itself is counted in examples
STEPS = 16  # of the solver, where a page has to be made in minutes
STAGE_COST = 0.12  # of a static run: projector and probe, on the slow side
LANE_SHARE = 0.85  # of its rate alone, where another run computes beside it
# A small model learns more in a few CPU minutes than one of 3 M parameters (docs/log.md). As it is as small as its
# codec, it cannot afford to decode every probe: it is heard in latents, on fewer clips.
DEMO_SETTINGS = ("model.preset=dit-1m", "probe.space=latent", "probe.clips=16", "probe.spacing=1.08")
# What the page plays: kind -> how many prompts of trained and of held-out pairs. Twelve in all.
LISTENING = {"note": (4, 3), "drum": (1, 0), "chord": (1, 1), "sequence": (1, 1)}


@dataclass(frozen=True)
class Plan:
    """What a demo folder was made for; a second call with the same plan goes on, another plan is refused."""

    clips: int
    minutes: float
    seed: int
    codec: str
    examples: int
    judged: int


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo: data, cache, runs, page.")] = Path("runs/demo"),
    minutes: Annotated[
        float, typer.Option(help="Time for everything on this machine; training gets what is left of it.")
    ] = 12.0,
    clips: Annotated[int, typer.Option(help="Clips of the rendered set.")] = 6000,
    seed: Annotated[int, typer.Option(help="Seed of both arms.")] = 0,
    codec: Annotated[str | None, typer.Option(help="Codec to train on; default: the shipped one.")] = None,
    judged: Annotated[int, typer.Option(help="Notes that the judge hears from each arm.")] = 192,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget the runs of an earlier demo in this folder; data stays.")
    ] = False,
) -> int:
    """Render data, train two recipes, generate, judge, and write OUT/report.html and OUT/summary.json."""
    started = time.monotonic()
    if minutes <= 0 or clips < 200 or judged < 8:
        raise UserError("--minutes must be positive, --clips at least 200, --judged at least 8")

    say("1/5 rendering notes from a General-MIDI sound font")
    manifest = render_demo_set(out / "data", clips=clips, seed=0)
    everything = load_manifest(manifest)

    say("2/5 encoding latents, captions and the teacher's features")
    voice = load_codec(codec or default_codec())
    ears = load_teacher("compact")
    cache = build_cache(everything, voice, load_conditioner("minilm"), ears, out=out / "cache", seconds=SECONDS)

    say("3/5 fitting the budget to this machine")
    plan = _plan(out, cache, voice, minutes - (time.monotonic() - started) / 60, minutes, clips, seed, judged, fresh)
    arms = []
    for name in (BASELINE, DEFAULT_RECIPE):
        config = override(load_recipe(name), DEMO_SETTINGS)
        config = replace(config, train=replace(config.train, total_examples=plan.examples, seed=seed))
        arms.append(Arm(config, cache.path, out / "arms" / name))
    say(f"4/5 training {BASELINE} and {DEFAULT_RECIPE}: {plan.examples:,} examples each")
    results = train_arms(arms)
    if results is None:
        say(f"stopped and saved; the same command goes on: {command()}")
        return 130

    say("5/5 generating, listening, writing the page")
    _report(out, plan, everything, voice, cache, results, started)
    print(f"{out}/report.html   {out}/summary.json   ({(time.monotonic() - started) / 60:.1f} minutes)")
    return 0


def say(line: str) -> None:
    """One line of what happens now."""
    print(line, file=sys.stderr, flush=True)


def _plan(
    out: Path,
    cache: LatentCache,
    codec: Codec,
    minutes_left: float,
    minutes: float,
    clips: int,
    seed: int,
    judged: int,
    fresh: bool,
) -> Plan:
    """The earlier plan of this folder, or a new one that fits the time left."""
    path = out / "plan.json"
    if fresh:
        path.unlink(missing_ok=True)
        shutil.rmtree(out / "arms", ignore_errors=True)
    wanted = {"clips": clips, "minutes": minutes, "seed": seed, "codec": codec.name, "judged": judged}
    if path.exists():
        stored = json.loads(path.read_text())
        changed = [f"{k} was {stored[k]}, is {v}" for k, v in wanted.items() if stored.get(k) != v]
        if changed:
            raise UserError(
                f"{out} holds a demo of other settings ({'; '.join(changed)}); choose another --out, or add --fresh"
            )
        return Plan(**stored)
    config = override(load_recipe(BASELINE), DEMO_SETTINGS)
    runs = lanes(2)
    with threads_of(runs):
        rate = measure_rate(config, StageController(config.policy), cache) * (LANE_SHARE * runs if runs > 1 else 1)
    # A generated clip costs steps x 2 evaluations, each a third of a training example; validation likewise.
    beside = (judged + 12) * STEPS * 2 / 3 + config.train.validation_clips * 5 * 11 / 3
    batch = config.train.batch_size
    examples = int(((minutes_left * 60 - REPORT_SEC) * rate / (2 + 2 * STAGE_COST) - beside) // batch) * batch
    if examples < 20 * batch:
        say(f"the time left is short for {rate:.0f} examples/s; training 20 steps all the same")
        examples = 20 * batch
    plan = Plan(examples=examples, **wanted)
    write_text(path, json.dumps(asdict(plan), indent=1))
    together = "side by side" if runs > 1 else "one after the other"
    say(f"    {rate:.0f} examples/s here: {examples:,} examples for each of two arms, {together}")
    return plan


def _report(
    out: Path,
    plan: Plan,
    everything: Sequence[Clip],
    codec: Codec,
    cache: LatentCache,
    results: dict[str, TrainResult],
    started: float,
) -> None:
    """Generate, judge, and write summary.json and report.html."""
    judge = Judge.load()
    asked = judged_notes(everything, plan.judged)
    labels = [NoteLabel(c.fields["family"], c.fields["pitch"], c.split == "test") for c in asked]
    rate = codec.sample_rate_hz
    real = torch.stack([_wave(c, rate) for c in asked])
    # Other clips of the same kind, so that real notes have a Frechet distance of their own to compare with.
    others = [c for c in everything if c.fields["kind"] == "note" and c.id not in {a.id for a in asked}][
        : 4 * plan.judged
    ]
    reference = judge.predict(torch.stack([_wave(c, rate) for c in others]), rate).embedding

    round_trip = torch.cat([codec.decode(codec.encode(part), part.shape[1]) for part in real.split(32)])
    references = {
        "real": measure_notes(judge, real, rate, labels, reference),
        "codec_round_trip": measure_notes(judge, round_trip, rate, labels, reference),
    }
    prompts = listening_prompts(everything)
    sampling = Sampling(steps=STEPS)
    arms, pages = {}, {}
    for name, result in results.items():
        say(f"    generating with {name}")
        pipeline = Pipeline.load(result.run_dir)
        measures = measure_notes(
            judge, pipeline.generate([c.captions[0] for c in asked], sampling=sampling), rate, labels, reference
        )
        log = read_log(result.run_dir / "log.jsonl")
        first = next(e for e in log if e["event"] == "validation")
        arms[name] = measures | {
            "recipe": name,
            "examples_seen": result.examples_seen,
            "seconds": result.seconds,
            "examples_per_sec": result.examples_seen / result.seconds,
            "validation_loss": result.validation,
            "validation_loss_first": first["loss_by_t"],
        }
        waves = pipeline.generate([c.captions[0] for c in prompts], sampling=sampling)
        pages[name] = ArmPage(result.run_dir, [_prompt_clip(judge, c, w, rate) for c, w in zip(prompts, waves)])
        _write_samples(result.run_dir, prompts, waves, rate)

    config = override(load_recipe(BASELINE), DEMO_SETTINGS)
    summary = {
        "schema_version": 1,
        "command": command(),
        "commit": commit(),
        "machine": machine(),
        "versions": {"segue": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "seed": plan.seed,
        "seconds_total": time.monotonic() - started,
        "dataset": _dataset(everything),
        "codec": codec.fingerprint(),
        "model": {
            "preset": config.model.preset,
            "parameters": parameters_of(dit_config(config, cache)),
            "sampling": asdict(sampling),
        },
        "judge": {"sha256": judge.sha256, "card": judge.card.get("figures", {})},
        "references": references,
        "arms": arms,
        "prompts": [{"prompt": c.captions[0], "held_out": c.split == "test"} for c in prompts],
    }
    write_summary(out / "summary.json", summary)
    heard = [_prompt_clip(judge, c, _wave(c, rate), rate) for c in prompts]
    write_demo_report(out, summary, pages, heard)


def judged_notes(everything: Sequence[Clip], count: int) -> list[Clip]:
    """Held-out notes to judge: two thirds of trained (instrument, pitch) pairs, one third of pairs never seen."""
    notes = [c for c in everything if c.fields["kind"] == "note"]
    trained = [c for c in notes if c.split == "valid"]
    unseen = [c for c in notes if c.split == "test"]
    return [*_spread(trained, count - count // 3), *_spread(unseen, count // 3)]


def listening_prompts(everything: Sequence[Clip]) -> list[Clip]:
    """Twelve clips whose captions the page plays, spread over instruments."""
    chosen = []
    for kind, counts in LISTENING.items():
        for split, count in zip(("valid", "test"), counts):
            chosen += _spread([c for c in everything if c.fields["kind"] == kind and c.split == split], count)
    return chosen


def _spread(clips: list[Clip], count: int) -> list[Clip]:
    """`count` clips evenly spaced in order of instrument and pitch (all, where there are fewer)."""
    ordered = sorted(
        clips, key=lambda c: (str(c.fields["family"]), str(c.fields["instrument"]), c.fields["pitch"] or 0, c.id)
    )
    return [ordered[i * len(ordered) // count] for i in range(count)] if len(ordered) > count else ordered


def _wave(clip: Clip, sample_rate_hz: int) -> Tensor:
    """A clip's waveform [T], cut or padded to the demo's length."""
    wave = read_wave(clip.path, sample_rate_hz)
    samples = round(SECONDS * sample_rate_hz)
    return torch.from_numpy(np.pad(wave[:samples], (0, max(0, samples - len(wave)))))


def _prompt_clip(judge: Judge, clip: Clip, wave: Tensor, sample_rate_hz: int) -> PromptClip:
    single = clip.fields["kind"] in ("note", "drum")  # of chords and sequences the judge knows nothing
    judged = words(judge, wave, sample_rate_hz) if single else ""
    return PromptClip(clip.captions[0], clip.split == "test", wave.numpy(), sample_rate_hz, judged)


def _write_samples(run_dir: Path, prompts: Sequence[Clip], waves: Tensor, sample_rate_hz: int) -> None:
    folder = run_dir / "samples"
    folder.mkdir(exist_ok=True)
    listed = []
    for index, (clip, wave) in enumerate(zip(prompts, waves)):
        write_wav(folder / f"{index:03d}.wav", wave, sample_rate_hz, clip.captions[0], f"{run_dir} seed 0")
        listed.append({"file": f"{index:03d}.wav", "prompt": clip.captions[0], "held_out": clip.split == "test"})
    write_text(folder / "samples.json", json.dumps(listed, indent=1))


def _dataset(everything: Sequence[Clip]) -> dict:
    splits = {split: sum(c.split == split for c in everything) for split in ("train", "valid", "test")}
    hours = len(everything) * SECONDS / 3600
    return {"clips": len(everything), "hours": hours, **splits, "held_out_pairs": len(held_out_pairs())}
