"""Do short sounds end, and do they sound? python benchmarks/ends.py RUN --cache CACHE [--raw]

Ten prompts are taken from the captions of the cache that a single sound of at most .75 s has, evenly over their
lengths. Of each generated sound: the level of its second half against its first, inside the length that the model was
told, and its peak. --raw leaves out what `segue generate` does behind the told end (models/lengths.py), so that it
shows what the model itself makes there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import segue.pipeline
from segue.data.open_cache import open_cache
from segue.pipeline import Pipeline
from segue.provenance import commit, machine

PROMPTS, LONGEST_SEC, SILENT = 10, 0.75, 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.raw:
        segue.pipeline.faded_out = lambda wave, ends_sec, rate_hz: wave
    pipeline = Pipeline.load(asked.run)
    rate_hz = pipeline.codec.sample_rate_hz
    short = prompts(asked.cache)
    captions = [caption for _, caption in short]
    told = pipeline.values_for(captions, None, None, [asked.seed] * len(captions), range(len(captions)))
    waves = pipeline.generate(captions, seed=asked.seed).numpy()[:, 0]
    print(f"{asked.run}, seed {asked.seed}, commit {commit()}, {machine()}\n")
    print("| prompt | recorded, s | told, s | second half, dB | inside, dB | peak |\n|---|---|---|---|---|---|")
    falls = []
    for (recorded_sec, caption), values, wave in zip(short, told, waves):
        half = len(wave) // 2
        falls.append(level_db(wave[half:]) - level_db(wave[:half]))
        told_sec = values["seconds_total"]
        inside = level_db(wave[: max(1, round(told_sec * rate_hz))])
        peak = np.abs(wave).max()
        print(f"| {caption} | {recorded_sec:.3f} | {told_sec:.3f} | {falls[-1]:.1f} | {inside:.1f} | {peak:.3f} |")
    silent = int(sum(np.abs(wave).max() < SILENT for wave in waves))
    print(f"\nmedian {np.median(falls):.1f} dB, worst {max(falls):.1f} dB, {silent} silent")


def prompts(cache_path: Path) -> list[tuple[float, str]]:
    """Lengths in seconds and captions of PROMPTS short sounds."""
    cache = open_cache(cache_path)
    lengths: dict[str, list[float]] = {}
    for index in range(len(cache)):
        row = cache.row(index)
        lengths.setdefault(row["captions"][0], []).append(row["conditions"]["seconds_total"])
    short = sorted((own[0], c) for c, own in lengths.items() if len(own) == 1 and own[0] <= LONGEST_SEC)
    return [short[round(k * (len(short) - 1) / (PROMPTS - 1))] for k in range(PROMPTS)]


def level_db(wave: np.ndarray) -> float:
    return 10 * float(np.log10(np.mean(wave.astype(float) ** 2) + 1e-20))


if __name__ == "__main__":
    main()
