"""All benchmarks into one table: python benchmarks/bench.py [--out runs/bench] [--device auto] [--quick]

Each part is a process of its own, so that its peak of memory is its own, and a part that fails is a row that says so.
Writes OUT/bench.json (figures, machine, versions) and the table in docs/performance.md. `make bench` calls it.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from segue.codecs import default_codec, load_codec
from segue.conditioners import load_conditioner
from segue.data.cache import LatentCache
from segue.data.demo_set import render_demo_set
from segue.data.encoding import build_cache
from segue.data.manifest import load_manifest
from segue.data.open_cache import open_cache
from segue.devices import describe_device, device_of
from segue.pipeline import Pipeline, Sampling
from segue.process.noise import keyed_generator
from segue.provenance import command, commit, machine
from segue.recipes import load_recipe
from segue.ssl import load_teacher
from segue.training.build import build_model, dit_config
from segue.training.config import RunConfig, override
from segue.training.loop import train
from segue.training.optim import make_optimizer
from segue.training.precision import settle
from segue.training.run_memory import peak_bytes, run_need, stated_bytes
from segue.training.step import Example, losses
from segue.types import Condition

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
CLIPS = 600
SECONDS = 2.048
# Device -> model and batch of the loop. On a GPU the batch at which the host matters most.
LOOP = {"cpu": ("dit-1m", 64), "cuda": ("dit-10m", 256), "mps": ("dit-10m", 64)}
STEPS = {"cpu": 24, "cuda": 400, "mps": 100}
GENERATION_STEPS = (8, 16, 50)
PARTS = ("host", "model_step", "loop", "stage", "generation", "memory", "memory_bf16")
TITLES = {
    "host": "host time a batch",
    "model_step": "step of the model beside its peers",
    "loop": "the whole loop over the bare step",
    "stage": "the stage machinery",
    "generation": "generation",
    "memory": "peak memory of a run, fp32",
    "memory_bf16": "peak memory of a run, bf16",
}
LIMIT_SEC = {"cpu": 3600, "cuda": 240, "mps": 600}


def row(what: str, value: float | None, unit: str = "", note: str = "") -> dict:
    """A line of the table."""
    return {"what": what, "value": value, "unit": unit, "note": note}


# --- parts that are measured here ---------------------------------------------------------------------------------


def config_of(kind: str, steps: int) -> RunConfig:
    """A static run of so many steps, whose log, validation and checkpoints are those of a long run."""
    preset, batch = LOOP[kind]
    changes = [f"model.preset={preset}", f"train.batch_size={batch}", f"train.total_examples={steps * batch}"]
    changes += ["train.tensorboard=false", f"train.log_every={20 * batch}", "train.validate_every=1000000000"]
    return override(load_recipe("static-uniform"), [*changes, "train.checkpoint_every=1000000000"])


def measure_loop(cache: LatentCache, device: str, quick: bool) -> list[dict]:
    """Seconds of a step of `segue train`, over those of forward, backward and optimiser on one batch that stays."""
    kind = device.partition(":")[0]
    steps = 4 if quick else STEPS[kind]
    config = settle(config_of(kind, steps), torch.device(device))
    bare = BareStep(config, cache, device)
    ratios, loop_sec, bare_sec = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(2 if quick else 5):
            # Two lengths: their difference holds no start and no end.
            seconds = {}
            for count in (steps, 2 * steps):
                longer = config_of(kind, count)
                started = now_sec(device)
                train(longer, cache, Path(folder) / f"{turn}-{count}", device=device, quiet=True)
                seconds[count] = now_sec(device) - started
            loop_sec.append((seconds[2 * steps] - seconds[steps]) / steps)
            bare_sec.append(bare.seconds(steps))
            ratios.append(loop_sec[-1] / bare_sec[-1])
    preset, batch = LOOP[kind]
    clock = "" if kind == "cuda" else "CPU time, "
    about = f"{clock}{preset}, batch {batch}, {config.train.precision}; median of {len(ratios)}"
    return [
        row("bare step", 1e3 * statistics.median(bare_sec), "ms", about),
        row("step of the loop", 1e3 * statistics.median(loop_sec), "ms", about),
        row("loop over bare step", statistics.median(ratios), "", f"{min(ratios):.3f} to {max(ratios):.3f}"),
        row("examples a second", batch / statistics.median(loop_sec), "1/s", about),
    ]


def now_sec(device: str) -> float:
    """A clock: of the wall where a GPU computes, which it waits for; else of this process alone, whatever else runs."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class BareStep:
    """Forward, backward and optimiser on one batch."""

    def __init__(self, config: RunConfig, cache: LatentCache, device: str) -> None:
        batch = config.train.batch_size
        self.model = build_model(config, cache, 0).to(device)
        self.optimizer = make_optimizer(self.model, config.optim)
        generator = keyed_generator(0, "bench", 0)
        x_0 = torch.randn(batch, cache.channels, cache.frames, generator=generator)
        tokens = torch.randn(batch, cache.text_tokens, cache.text_dim, generator=generator)
        mask = torch.ones(batch, cache.text_tokens, dtype=torch.bool)
        condition = Condition(tokens, mask, torch.zeros(batch, dtype=torch.bool))
        t = torch.rand(batch, generator=generator)
        self.example = Example(x_0, torch.randn_like(x_0), t, condition, None).to(device)
        self.autocast = torch.autocast(
            device.partition(":")[0], torch.bfloat16, enabled=config.train.precision == "bf16"
        )
        self.device = device

    def seconds(self, steps: int) -> float:
        """Of a step, the mean of so many after two that warm up."""
        for step in range(steps + 2):
            if step == 2:
                started = now_sec(self.device)
            with self.autocast:
                losses(self.model, self.example, self.model.predicts).mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return (now_sec(self.device) - started) / steps


def measure_stage(cache: LatentCache, device: str, quick: bool) -> list[dict]:
    """The shares of benchmarks/stage_cost.py, in CPU time."""
    sys.path.insert(0, str(Path(__file__).parent))
    from stage_cost import parts

    found = parts(cache, 50_000, rounds=1 if quick else 5, steps=2 if quick else 12)
    of = "of a static run"
    shares = [row(name, 100 * share, "%", of) for name, share in found["share_of_static_run"].items()]
    return [*shares, row("all of it, at most", 100 * found["most"], "%", f"{of} of 50,000 examples; CPU time")]


def measure_generation(cache: LatentCache, device: str, quick: bool) -> list[dict]:
    """Seconds of sound a second, by an untrained model, whose work is that of a trained one."""
    kind = device.partition(":")[0]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        train(config_of(kind, 2), cache, Path(folder), device=device, quiet=True)
        pipeline = Pipeline.load(Path(folder), device=device)
        prompts = [cache.row(i)["captions"][0] for i in range(4 if quick else 16)]
        for steps in GENERATION_STEPS:
            sampling = replace(Sampling(), steps=steps)
            taken = []
            for _ in range(3):
                started = time.perf_counter()
                waves = pipeline.generate(prompts, sampling=sampling)
                taken.append(time.perf_counter() - started)
            seconds = len(prompts) * waves.shape[-1] / pipeline.codec.sample_rate_hz
            about = f"{LOOP[kind][0]}, {len(prompts)} prompts at once, guidance, with decoding; least of 3"
            rows.append(row(f"at {steps} steps", seconds / min(taken), "s of sound / s", about))
    return rows


def measure_memory(cache: LatentCache, device: str, quick: bool, precision: str = "fp32") -> list[dict]:
    """The peak of a few steps, beside what was stated before the first; nothing else is done in this process."""
    config = override(config_of(device.partition(":")[0], 4), [f"train.precision={precision}"])
    stated = stated_bytes(run_need(config, cache, dit_config(config, cache)), torch.device(device))
    with tempfile.TemporaryDirectory() as folder:
        train(config, cache, Path(folder), device=device, quiet=True)
    reached = peak_bytes(torch.device(device)) / 2**20
    return [row("reached", reached, "MiB", f"stated {stated / 2**20:,.0f} MiB")]


OWN: dict[str, Callable[[LatentCache, str, bool], list[dict]]] = {
    "loop": measure_loop,
    "stage": measure_stage,
    "generation": measure_generation,
    "memory": measure_memory,
    "memory_bf16": partial(measure_memory, precision="bf16"),
}


# --- collecting -----------------------------------------------------------------------------------------------------


def figures_of(report: dict, path: tuple[str, ...] = ()) -> list[dict]:
    """The rows of another script's report: its "rows", or all numbers under its keys "figures_UNIT"."""
    if "rows" in report:
        return report["rows"]
    rows = []
    for name, value in report.items():
        if name.startswith("figures"):
            rows += _leaves(value, (), name.partition("_")[2])
    return rows


def _leaves(value: object, path: tuple[str, ...], unit: str) -> list[dict]:
    if isinstance(value, dict):
        return [leaf for name, part in value.items() for leaf in _leaves(part, (*path, str(name)), unit)]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return [row(", ".join(path), float(value), unit)] if is_number else []


def collect(cache: Path, device: str, out: Path, quick: bool, peers: str = "") -> dict[str, list[dict]]:
    """Part -> rows; a part that did not run is one row that says why."""
    found = {}
    for part in PARTS:
        file = out / f"{part}.json"
        file.unlink(missing_ok=True)
        script = Path(__file__).with_name(f"{part}.py")
        if part in OWN:
            words = [__file__, "--only", part, "--cache", str(cache), "--device", device, "--json", str(file)]
            words += ["--quick"] if quick else []
        elif script.exists():
            words = [str(script)] + ([str(cache)] if part == "host" else ["--device", device]) + ["--json", str(file)]
            words += (["--rounds", "3"] if part == "host" else ["--quick"]) if quick else []
            words += ["--peers", peers] if peers and part == "model_step" else []
        else:
            found[part] = [row("not run", None, note=f"no benchmarks/{part}.py")]
            continue
        print(f"{TITLES[part]} ...", file=sys.stderr, flush=True)
        found[part] = _run(words, file, LIMIT_SEC[device.partition(":")[0]])
    return found


def _run(words: list[str], file: Path, limit_sec: float) -> list[dict]:
    try:
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=limit_sec)
    except subprocess.TimeoutExpired:
        return [row("not run", None, note=f"longer than {limit_sec:.0f} s")]
    if done.returncode != 0 or not file.exists():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        return [row("not run", None, note=(lines or ["no word"])[-1][:160])]
    return figures_of(json.loads(file.read_text()))


def table_of(report: dict) -> str:
    """The report as Markdown."""
    origin = report["origin"]
    lines = [
        f"`{origin['command']}`",
        f"at {origin['commit']} on {origin['machine']}; {origin['device']};",
        f"torch {origin['versions']['torch']}, Python {origin['versions']['python']}.",
        "",
        "| what | value | unit | about |",
        "|---|---|---|---|",
    ]
    for part, rows in report["parts"].items():
        lines.append(f"| **{TITLES[part]}** | | | |")
        for found in rows:
            value = "" if found["value"] is None else _short(found["value"])
            lines.append(f"| {found['what']} | {value} | {found['unit']} | {found['note'].replace('|', '/')} |")
    return "\n".join(lines)


def _short(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def insert_table(page: str, kind: str, table: str) -> str:
    """The page with this table between the marks of its kind of device ("cpu" or "cuda")."""
    begin, end = f"<!-- {kind}: written by make bench -->", f"<!-- {kind}: end -->"
    found = re.search(re.escape(begin) + ".*?" + re.escape(end), page, flags=re.DOTALL)
    if found is None:
        sys.exit(f"{PAGE}: no place for a table of {kind}; hint: put {begin} and {end} there")
    return page[: found.start()] + f"{begin}\n{table}\n{end}" + page[found.end() :]


def make_cache(out: Path, device: str) -> Path:
    """A cache of notes, as the demo makes it, with its teacher."""
    clips = load_manifest(render_demo_set(out / "data", clips=CLIPS, seed=0))
    codec, text, teacher = load_codec(default_codec()), load_conditioner("minilm"), load_teacher("compact").to(device)
    return build_cache(clips, codec, text, teacher, out=out / "cache", seconds=SECONDS, device=device).path


def main() -> None:
    """Measure one part, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cache", type=Path, help="with a teacher; made from demo notes if it is not given")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--quick", action="store_true", help="few rounds: whether everything runs, no figures to keep")
    parser.add_argument("--peers", default="", help="folder in which stable-audio-tools is installed (model_step.py)")
    parser.add_argument("--only", choices=list(OWN), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    device = device_of(given.device)
    if given.only:
        given.json.write_text(json.dumps({"rows": OWN[given.only](open_cache(given.cache), device, given.quick)}))
        return
    given.out.mkdir(parents=True, exist_ok=True)
    cache = given.cache or make_cache(given.out, device)
    report = {
        "origin": {
            "command": command(),
            "commit": commit(),
            "machine": machine(),
            "device": describe_device(device),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
        },
        "parts": collect(cache, device, given.out, given.quick, given.peers),
    }
    (given.out / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
    table = table_of(report)
    kind = "cuda" if device.startswith("cuda") else "cpu"
    given.page.write_text(insert_table(given.page.read_text(encoding="utf-8"), kind, table), encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
