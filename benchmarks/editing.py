"""How well what a model makes fits what it is given: python benchmarks/editing.py RUN --cache CACHE [--clips 64]

Held-out clips of a cache, as their codec gives them. A stretch of each is made anew under the clip's caption (three
tenths of the clip, in its middle), or its second half is (continuation), and compared with what was there. Two figures:
the mean absolute difference of log-mel levels in the stretch (dB), and how much larger the change of these levels over
a joint is than the clip's own change there (dB; 0 where a joint is no larger than the sound's own changes). Lower is
better for both. `pasted` puts a sound in that was generated from the caption alone. --out FILE keeps all figures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import segue.pipeline
from segue.data.open_cache import open_cache
from segue.evaluation.bootstrap import bootstrap_interval
from segue.evaluation.mel import mel_magnitude
from segue.pipeline import Pipeline
from segue.process.replacement import solve_replacing
from segue.provenance import command, commit, machine
from segue.tasks.known_parts import splice

HOP, FLOOR = 160, 1e-3
EDITS = {"replace": (0.35, 0.65), "extend": (0.5, 1.0)}


class ByReplacement(Pipeline):
    """Any model, as one that was not trained with known parts."""

    keeps_by = "replacement"


def levels(wave: Tensor, rate_hz: int) -> Tensor:
    """[A, T] -> [bands, frames] in dB."""
    mel = mel_magnitude(wave.mean(0)[None].double(), rate_hz, n_fft=512, hop_samples=HOP, bands=32)[0]
    return 20 * torch.log10(mel.clamp(min=FLOOR))


def figures(wave: Tensor, made: Tensor, first: int, last: int, rate_hz: int) -> tuple[float, float]:
    """Difference of levels in samples [first, last), and the excess of the change over its joints."""
    was, now = levels(wave, rate_hz), levels(made, rate_hz)
    inside = slice(first // HOP + 1, last // HOP)
    difference = float((was - now)[:, inside].abs().mean())
    joints = [joint // HOP for joint in (first, last) if 0 < joint < wave.shape[-1]]
    # Over 40 ms: a window that lies across the joint sees both sides of it.
    change = [float((x[:, j + 2] - x[:, j - 2]).abs().mean()) for x in (now, was) for j in joints]
    half = len(joints)
    return difference, float(np.mean(change[:half]) - np.mean(change[half:]))


def ways(run: Path, device: str) -> dict[str, tuple[Pipeline, int]]:
    """Name -> a pipeline, and the rounds of replacement (0: none is done)."""
    pipeline = Pipeline.load(run, device=device)
    other = ByReplacement(pipeline.saved, pipeline.codec, pipeline.conditioner, device)
    found = {"pasted": (pipeline, 0)} | {f"replacement, {n} rounds": (other, n) for n in (1, 2, 4, 8)}
    return ({"trained": (pipeline, 0)} if pipeline.keeps_by == "training" else {}) | found


def edited(name: str, edit: str, pipeline: Pipeline, wave: Tensor, caption: str, seed: int) -> Tensor:
    """One clip, edited: [A, T]."""
    rate_hz, samples = pipeline.codec.sample_rate_hz, wave.shape[-1]
    first, last = (round(share * samples) for share in EDITS[edit])
    if name == "pasted":
        free = pipeline.generate([caption], seconds=samples / rate_hz, seed=seed)[0]
        return splice(wave, free, first, last, round(0.02 * rate_hz))
    if edit == "replace":
        return pipeline.replace(wave, caption, start_sec=first / rate_hz, end_sec=last / rate_hz, seed=seed)[0]
    return pipeline.extend(wave[:, :first], caption, seconds=(last - first) / rate_hz, seed=seed)[0]


def measure(make: Callable[[Tensor, str, int], Tensor], clips: list[tuple[Tensor, str]], edit: str, rate_hz: int):
    """[clips, 2] figures, and seconds a clip."""
    found, started = [], time.process_time()
    for seed, (wave, caption) in enumerate(clips):
        first, last = (round(share * wave.shape[-1]) for share in EDITS[edit])
        found.append(figures(wave, make(wave, caption, seed), first, last, rate_hz))
    return np.array(found), (time.process_time() - started) / len(clips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cache = open_cache(options.cache)
    rows = [row for row in cache.rows("test") or cache.rows("valid") if cache.row(row)["frames"] == cache.frames]
    rows = rows[:: max(1, len(rows) // options.clips)][: options.clips]
    kinds = ways(options.run, options.device)
    codec = next(iter(kinds.values()))[0].codec
    samples = round(cache.meta["seconds"] * codec.sample_rate_hz)
    waves = codec.decode(cache.batch(rows).latents.float(), samples)
    clips = [(wave, cache.row(row)["captions"][0]) for wave, row in zip(waves, rows)]
    result: dict = {"command": command(), "commit": commit(), "machine": machine(), "clips": len(clips), "edits": {}}
    print(f"{len(clips)} clips of {cache.meta['seconds']:g} s; CPU seconds a clip; 95 % intervals over clips\n")
    print("| edit | way | difference (dB) | joint (dB) | s |\n|---|---|---|---|---|")
    for edit in EDITS:
        for name, (pipeline, rounds) in kinds.items():
            segue.pipeline.solve_replacing = partial(solve_replacing, rounds=rounds)
            make = partial(edited, name, edit, pipeline)
            found, seconds = measure(make, clips, edit, codec.sample_rate_hz)
            cells = []
            for column in found.T:
                low, high = bootstrap_interval(lambda index, column=column: column[index].mean(), len(column))
                cells.append(f"{column.mean():.2f} ({low:.2f} to {high:.2f})")
            print(f"| {edit} | {name} | {cells[0]} | {cells[1]} | {seconds:.2f} |", flush=True)
            result["edits"][f"{edit}: {name}"] = {"figures": found.tolist(), "seconds": seconds}
    if options.out:
        options.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
