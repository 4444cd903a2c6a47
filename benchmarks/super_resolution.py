"""Figures of super-resolution from files as users have them: band-limited wav files through `segue upsample`.

    python benchmarks/super_resolution.py OUT voices=LIST samples=LIST music=LIST [--rate 16000 --input-rate 8000]
        [--model stage=RUN --model static=RUN ...] [--steps 1,4,12] [--predictor FOLDER]

LIST is a text file of paths, one a line, of full-band recordings that no model here was trained on. Of each, the first
seconds become OUT/KIND/true (at --rate, mono) and OUT/KIND/low (a 16-bit wav at --input-rate, by exact decimation).
What `segue upsample` does makes what lies in between: the predictor's way once, and that of each --model once for each
number of --steps; sinc and band replication stand beside. What lies in OUT from the same weights and files is taken as
it is, so that the command may be given again with more models. OUT/figures.json holds every figure of every file, and
standard output gets two tables a kind: means and 95 % intervals over files, with the ratio of LSD to band
replication's; and what each model's measures are beyond the predictor's, paired over files.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from segue.evaluation.baselines import band_replication, sinc
from segue.evaluation.bootstrap import bootstrap_interval
from segue.evaluation.high_band import harmonic_to_noise_error_db, level_correlation, log_mel_l1_above
from segue.evaluation.spectral_distances import lsd
from segue.files import sha256_of
from segue.hub import model_place
from segue.models.files import model_file
from segue.pipeline import SHIPPED_SUPER_RESOLUTION
from segue.predictor import predictor_hash, shipped_for
from segue.predictor.files import predictor_file
from segue.upsampling.enhance import Resolver
from segue.upsampling.io_paths import find_jobs
from segue.upsampling.load import load_resolver
from segue.upsampling.prepare import Settings
from segue.upsampling.prepare import prepare as prepare_job
from segue.upsampling.upsample import carry_out

MEASURES = ("LSD full", "LSD low", "LSD high", "level correlation", "log-mel L1 above", "HNR error dB")
REPLICATION, PREDICTOR = "band replication", "predictor"
STAMP = "made-from.json"


@dataclass(frozen=True)
class System:
    """A model at a number of steps.

    Attributes:
        name: of its row; place: of its outputs, below a kind's folder.
        resolver, steps: what makes them.
        weights: a hash that tells its weights from others.
    """

    name: str
    place: str
    resolver: Resolver
    steps: int
    weights: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("kinds", nargs="+", help="KIND=LIST")
    parser.add_argument("--rate", type=int, default=16_000)
    parser.add_argument("--input-rate", type=int, default=8000)
    parser.add_argument("--model", action="append", default=[], help="NAME=RUN; 'default': the shipped diffusion model")
    parser.add_argument("--steps", default="1,4,12", help="of each diffusion model")
    parser.add_argument("--predictor", default="default", help="folder of the predictor; default: the shipped one")
    parser.add_argument("--clips", type=int, default=30, help="of a kind at most, evenly spaced in its list")
    parser.add_argument("--seconds", type=float, default=4.0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    systems = systems_of(asked)
    found = {}
    for kind, source in (item.split("=", 1) for item in asked.kinds):
        folder = asked.out / kind
        prepare(folder, Path(source).read_text().splitlines(), asked)
        replicate(folder, asked)
        for system in systems:
            upsample(folder, system, asked.rate)
        places = {"sinc": "sinc", REPLICATION: "replication"} | {system.name: system.place for system in systems}
        found[kind] = {name: measure(folder, place, asked) for name, place in places.items()}
        print(table(kind, found[kind]), flush=True)
        print(beyond_predictor(kind, found[kind]), flush=True)
        (asked.out / "figures.json").write_text(json.dumps(found, indent=1) + "\n")


def systems_of(asked: argparse.Namespace) -> list[System]:
    """The predictor, and each model at each number of steps."""
    own = shipped_for(asked.rate) if asked.predictor == "default" else asked.predictor
    file = predictor_file(own)
    if file is None:
        raise SystemExit(f"--predictor {own}: no predictor")
    resolver = load_resolver(str(own))
    systems = [System(PREDICTOR, "steps-0", resolver, 0, predictor_hash(file))]
    for name, run in (item.split("=", 1) for item in asked.model):
        file = predictor_file(run)
        counts = [0] if file else [int(word) for word in asked.steps.split(",")]
        # The default without steps would be the predictor.
        resolver = load_resolver(run, steps=counts[0] or None)
        if file is None:
            file = SHIPPED_SUPER_RESOLUTION if run == "default" else model_file(model_place(run))
        of_steps = {steps: (f"{name}, {steps} steps", f"{name}-{steps}") if steps else (name, name) for steps in counts}
        weights = sha256_of([file])
        systems += [System(row, place, resolver, steps, weights) for steps, (row, place) in of_steps.items()]
    return systems


def prepare(folder: Path, paths: list[str], asked: argparse.Namespace) -> None:
    """The true clips, and the narrow wav files that they become."""
    for name in ("true", "low"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths[:: max(1, -(-len(paths) // asked.clips))]):
        rate_hz = soundfile.info(path).samplerate
        wave = soundfile.read(path, frames=round(asked.seconds * rate_hz), dtype="float64", always_2d=True)[0].mean(1)
        true = sinc(wave, rate_hz, asked.rate)
        # Whole periods of the ratio, so that both files have the same length.
        ratio = max(1, asked.rate // asked.input_rate)
        true = true[: len(true) // ratio * ratio]
        if len(true) < asked.rate // 8 or np.abs(true).max() < 1e-3:
            continue
        true = true / max(1.0, np.abs(true).max() / 0.99)
        low = sinc(true, asked.rate, asked.input_rate)
        name = f"{number:03d}-{Path(path).stem[-40:]}.wav"
        soundfile.write(folder / "true" / name, true, asked.rate, subtype="PCM_16")
        soundfile.write(folder / "low" / name, np.clip(low, -1, 1), asked.input_rate, subtype="PCM_16")


def replicate(folder: Path, asked: argparse.Namespace) -> None:
    """The two ways without weights."""
    for name in ("sinc", "replication"):
        (folder / name).mkdir(exist_ok=True)
    for path in sorted((folder / "low").glob("*.wav")):
        wide = sinc(soundfile.read(path, dtype="float64")[0], asked.input_rate, asked.rate)
        soundfile.write(folder / "sinc" / path.name, np.clip(wide, -1, 1), asked.rate, subtype="PCM_16")
        copied = band_replication(torch.from_numpy(wide)[None], asked.rate, asked.input_rate / 2)[0].numpy()
        soundfile.write(folder / "replication" / path.name, np.clip(copied, -1, 1), asked.rate, subtype="PCM_16")


def upsample(folder: Path, system: System, rate_hz: int) -> None:
    """As the command does it, file by file; what the same weights have made of the same files stays."""
    out = folder / system.place
    made_from = {
        "weights": system.weights, "steps": system.steps, "rate_hz": rate_hz,
        "files": sha256_of(sorted((folder / "low").glob("*.wav"))),
    }  # fmt: skip
    stamp = out / STAMP
    if stamp.is_file() and json.loads(stamp.read_text()) == made_from:
        return
    settings = Settings(rate_hz=rate_hz, steps=system.steps, overwrite=True)
    began, seconds = time.process_time(), 0.0
    for job in find_jobs(folder / "low", out):
        prepared = prepare_job(job, system.resolver, settings)
        seconds += carry_out(prepared, system.resolver, settings, lambda _: None)["seconds"]
    took = time.process_time() - began
    print(f"{folder.name}, {system.name}: {seconds / took:.1f} times real time by CPU time", file=sys.stderr)
    stamp.write_text(json.dumps(made_from))


def measure(folder: Path, place: str, asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Every figure of every file: file -> measure -> value."""
    cutoff_hz, rate_hz = asked.input_rate / 2, asked.rate
    found = {}
    for path in sorted((folder / "true").glob("*.wav")):
        true, made = (torch.from_numpy(soundfile.read(p)[0])[None] for p in (path, folder / place / path.name))
        made = torch.nn.functional.pad(made[:, : true.shape[1]], (0, max(0, true.shape[1] - made.shape[1])))
        values = [
            float(lsd(made, true, rate_hz, "nuwave2", band=b, cutoff_hz=cutoff_hz)) for b in ("full", "low", "high")
        ]
        values += [
            float(f(made, true, rate_hz, cutoff_hz))
            for f in (level_correlation, log_mel_l1_above, harmonic_to_noise_error_db)
        ]
        found[path.name] = dict(zip(MEASURES, values))
    return found


def table(kind: str, rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """Means with their 95 % intervals over files, as Markdown."""
    beside = np.array([v["LSD full"] for v in rows[REPLICATION].values()])
    lines = [f"| {kind}, {len(beside)} files | " + " | ".join(MEASURES) + " | LSD over replication's |",
             "|---" * (len(MEASURES) + 2) + "|"]  # fmt: skip
    for name, by_file in rows.items():
        cells = []
        for measure_name in MEASURES:
            values = np.array([v[measure_name] for v in by_file.values()])
            values = values[np.isfinite(values)]
            cells.append(_with_interval(values) if len(values) > 1 else "-")
        own = np.array([v["LSD full"] for v in by_file.values()])
        low, high = bootstrap_interval(lambda i, own=own: float(own[i].mean() / beside[i].mean()), len(own))
        cells.append(f"{own.mean() / beside.mean():.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def beyond_predictor(kind: str, rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """Each measure minus the predictor's, paired over files: what steps of diffusion earn. Markdown."""
    own = rows[PREDICTOR]
    lines = [f"| {kind}: minus the predictor | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 1) + "|"]
    for name, by_file in rows.items():
        if name in ("sinc", REPLICATION, PREDICTOR):
            continue
        cells = []
        for measure_name in MEASURES:
            values = np.array([v[measure_name] - own[file][measure_name] for file, v in by_file.items()])
            values = values[np.isfinite(values)]
            cells.append(_with_interval(values, "+") if len(values) > 1 else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _with_interval(values: np.ndarray, sign: str = "") -> str:
    low, high = bootstrap_interval(lambda i: float(values[i].mean()), len(values))
    return f"{values.mean():{sign}.3f} ({low:{sign}.2f} to {high:{sign}.2f})"


if __name__ == "__main__":
    main()
