"""`segue demo`: from nothing to a page of sounds: get sounds, train two recipes at equal budget, measure, report."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from segue.cli import demo_generation, demo_sounds, demo_super_resolution
from segue.cli.demo_common import SECONDS, Plan, Trained, say
from segue.cli.demo_training import Variant, train_variants
from segue.codecs import default_codec, load_codec
from segue.conditioners import load_conditioner
from segue.data.cache import LatentCache
from segue.data.clip import Clip
from segue.data.demo_set import render_demo_set
from segue.data.encoding import build_cache
from segue.data.manifest import load_manifest
from segue.files import write_text
from segue.provenance import command
from segue.recipes import DEFAULT_RECIPE, load_recipe
from segue.ssl import load_teacher
from segue.stage.regime import RegimeConfig
from segue.training.config import RunConfig, override
from segue.training.parallel_runs import slots_here, threads_each
from segue.training.rate import measure_rate
from segue.types import UserError
from segue.workflows.recordings import find_recordings, recordings_set

REPORT_SEC = 60.0  # decoding, classifying and drawing; the generation itself is counted in examples
PROBE_COST = 0.03  # of a run: what is measured beside its steps
SUSTAINED = 0.93  # of the rate that a few steps show: two runs kept so much of it over ten minutes
# A small model learns more in a few CPU minutes than one of 3 M parameters (docs/log.md). As it is as small as its
# codec, it cannot afford to decode every prediction: distances are estimated from latents.
SETTINGS = ("model.preset=dit-1m", "probe.space=latent")


@dataclass(frozen=True)
class Kind:
    """What the demo of one task, or of recordings, has of its own.

    Attributes:
        recipes: the variant without the method, and the one with it.
        settings: of both, beside SETTINGS.
        codec: None: the shipped one.
        seconds: of a cached row.
        clips, measured: how many, where the options do not say; of recordings, how many at most.
        report_cost: measured clips -> what the report computes with each variant, in training examples.
        write_report: returns lines to close with.
    """

    recipes: tuple[str, str]
    settings: tuple[str, ...]
    codec: str | None
    seconds: float
    clips: int
    measured: int
    report_cost: Callable[[int], float]
    write_report: Callable[[Trained], list[str]]

    def config(self, recipe: str) -> RunConfig:
        """A variant's, but for its budget."""
        return override(load_recipe(recipe), (*SETTINGS, *self.settings))


KINDS = {
    "generation": Kind(
        ("static-uniform", DEFAULT_RECIPE), (), None, SECONDS, 6000, 192,
        demo_generation.report_cost, demo_generation.write_report,
    ),
    "super-resolution": Kind(
        ("sr-demo-static", "sr-demo"), ("train.batch_size=16",), "gain-shape", SECONDS / 2, 2000, 32,
        demo_super_resolution.report_cost, demo_super_resolution.write_report,
    ),
}  # fmt: skip
RECORDINGS = Kind(
    ("static-uniform", DEFAULT_RECIPE), (), demo_sounds.CODEC, demo_sounds.SECONDS, demo_sounds.MOST,
    demo_sounds.MEASURED, demo_sounds.report_cost, demo_sounds.write_report,
)  # fmt: skip


def demo(
    task: Annotated[str, typer.Option(help="Task: generation (sound from text) or super-resolution (8 to 16 kHz).")]
    = "generation",
    sounds: Annotated[
        str | None,
        typer.Option(
            help="Recordings in place of rendered notes: a folder of them, with captions or with names that say what "
            "they are, or effects, those of an installed package (wesnoth-1.16-data); 44.1 kHz stereo."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of data, cache, runs and page; default: runs/demo, "
                                       "runs/demo-super-resolution or runs/demo-sounds.")
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="Time in minutes for everything; training gets what the other steps leave.")
    ] = 12.0,
    clips: Annotated[int | None, typer.Option(help="Number of clips to render; default: 6000, or 2000 for "
                                                   "super-resolution; of recordings, the most to take, 2000.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of both runs.")] = 0,
    codec: Annotated[
        str | None, typer.Option(help="Codec to train on; default: the shipped one, gain-shape for "
                                      "super-resolution, stereo-44k for recordings.")
    ] = None,
    measured: Annotated[
        int | None,
        typer.Option(
            "--measured", "--judged",
            help="Number of clips to measure each run on; default: 192, 32 for super-resolution, or 96 of recordings.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete the runs of an earlier demo in this folder; data and cache stay.")
    ] = False,
) -> int:  # fmt: skip
    """Render notes or read recordings, train two recipes, and write OUT/report.html and OUT/summary.json."""
    started = time.monotonic()
    if task not in KINDS:
        raise UserError(f"--task {task}: use one of {', '.join(KINDS)}")
    if sounds is not None and task != "generation":
        raise UserError(f"--task {task} renders its own sounds; hint: leave --sounds or --task away")
    kind = KINDS[task] if sounds is None else RECORDINGS
    clips = kind.clips if clips is None else clips
    measured = kind.measured if measured is None else measured
    named = "demo-sounds" if sounds is not None else "demo" if task == "generation" else f"demo-{task}"
    out = out or Path("runs") / named
    if minutes <= 0 or clips < 200 or measured < 8:
        raise UserError("--minutes must be positive, --clips at least 200, --measured at least 8")
    folder = None if sounds is None else find_recordings(sounds)
    # Loaded first: a codec that is not there is told before minutes of rendering.
    chosen_codec = load_codec(codec or kind.codec or default_codec())

    if folder is not None:
        kind = replace(kind, seconds=demo_sounds.row_seconds(chosen_codec, kind.seconds))
    wanted = {"clips": clips, "minutes": minutes, "seed": seed, "codec": chosen_codec.name}
    wanted |= {"measured": measured, "task": task, "sounds": "" if folder is None else str(folder)}
    # A folder keeps its plan, so that a second call continues with the same length.
    plan = _earlier_plan(out, wanted, fresh)
    everything = _rendered(out, clips) if folder is None else _recorded(out, folder, kind, clips)

    say("2/5 encoding latents, captions and the teacher's features")
    text = load_conditioner("minilm")
    # Both variants train on one cache, so that the static one has teacher features lying there, too.
    teacher = load_teacher("compact")
    # Recordings are few, some may be damaged, and most end within a row.
    varied = 1 if folder is None else demo_sounds.variants_of(everything)
    cache = build_cache(
        everything, chosen_codec, text, teacher, out=out / "cache", seconds=kind.seconds, variants=varied,
        skip_bad=folder is not None, timed=folder is not None,
    )  # fmt: skip

    say("3/5 fitting the budget to this machine")
    # What is left after rendering and encoding, both of which differ a lot between machines.
    plan = plan or _plan(out, cache, kind, minutes - (time.monotonic() - started) / 60, wanted)
    variants = []
    for name in kind.recipes:
        config = kind.config(name)
        config = replace(config, train=replace(config.train, total_examples=plan.examples, seed=seed))
        variants.append(Variant(config, cache.path, _runs(out) / name))
    say(f"4/5 training {' and '.join(kind.recipes)}: {plan.examples:,} examples each")
    results = train_variants(variants)
    if results is None:
        say(f"stopped and saved; the same command continues: {command()}")
        return 130

    say("5/5 generating, measuring, writing the page")
    trained = Trained(out, plan, everything, chosen_codec, cache, variants[0].config, results, started)
    for line in kind.write_report(trained):
        print(line)
    print(f"{out}/report.html   {out}/summary.json   ({(time.monotonic() - started) / 60:.1f} minutes)")
    return 0


def _rendered(out: Path, clips: int) -> list[Clip]:
    say("1/5 rendering notes from a General-MIDI sound font")
    # Always seed 0: --seed is that of the runs, which share data and cache.
    return load_manifest(render_demo_set(out / "data", clips=clips, seed=0))


def _recorded(out: Path, folder: Path, kind: Kind, most: int) -> list[Clip]:
    say(f"1/5 reading the recordings in {folder}")
    captions = out / "data" / "captions.jsonl"
    found = recordings_set(folder, captions, kind.seconds, most)
    counts = {split: sum(clip.split == split for clip in found) for split in ("train", "valid", "test")}
    kept = f"; captions: {captions}, which can be edited" if captions.exists() else ""
    say(
        f"    {len(found):,} recordings, {counts['train']:,} to train on and {counts['valid'] + counts['test']:,} held "
        f"out{kept}"
    )
    return found


def _earlier_plan(out: Path, wanted: dict, fresh: bool) -> Plan | None:
    """The plan that this folder was begun with; None where there is none.

    Raises:
        UserError: it was another one.
    """
    path = out / "plan.json"
    if fresh:
        path.unlink(missing_ok=True)
        shutil.rmtree(_runs(out), ignore_errors=True)
    if not path.exists():
        return None
    # Plans of before there were tasks and recordings were of the only ones.
    stored = {"task": "generation", "sounds": ""} | json.loads(path.read_text(encoding="utf-8"))
    stored = {"measured" if key == "judged" else key: value for key, value in stored.items()}  # its earlier name
    changed = [f"{k} was {stored.get(k)}, is {v}" for k, v in wanted.items() if stored.get(k) != v]
    if changed:
        raise UserError(
            f"{out} holds a demo of other settings ({'; '.join(changed)}); hint: use another --out, or --fresh"
        )
    return Plan(**stored)


def _plan(out: Path, cache: LatentCache, kind: Kind, minutes_left: float, wanted: dict) -> Plan:
    """A new plan, which fits the time left."""
    # Time a few steps here, and leave room for the measurement and the page.
    config = kind.config(kind.recipes[1])
    config = replace(config, policy=replace(config.policy, regime=RegimeConfig(signal="constant")))
    runs = slots_here(2)
    # Timed as they will run: as many at once, with as many threads, every part of the loop included. The one with the
    # method decides, as it is the slower, at its costliest: aligned throughout.
    measuring = time.monotonic()
    rate = measure_rate(config, cache.path, runs, threads_each(runs))
    minutes_left -= (time.monotonic() - measuring) / 60
    beside = kind.report_cost(wanted["measured"]) + config.train.validation_clips * 5 * 11 / 3
    batch = config.train.batch_size
    # Both runs share the time that is left.
    seconds_left = minutes_left * 60 - REPORT_SEC
    examples = int((seconds_left * SUSTAINED * rate / (2 + 2 * PROBE_COST) - beside) // batch) * batch
    # Twenty steps show that everything works, even where no model comes of it.
    if examples < 20 * batch:
        say(f"the time left is too short at {rate:.0f} examples/s; training 20 steps nevertheless")
        examples = 20 * batch
    plan = Plan(examples=examples, **wanted)
    write_text(out / "plan.json", json.dumps(asdict(plan), indent=1))
    together = "side by side" if runs > 1 else "one after the other"
    say(f"    {rate:.0f} examples/s here: {examples:,} examples for each of two variants, {together}")
    return plan


def _runs(out: Path) -> Path:
    """The folder of the runs; a demo of an earlier version called it arms."""
    return out / "arms" if (out / "arms").exists() else out / "runs"
