"""What levels nearer to the mean power cost and give: python benchmarks/mean_share.py PREDICTOR LIST [--cutoff 4000]

The clips of split "valid" of the list that the predictor was trained on, cut by the protocol nuwave2 (seed 0): LSD by
kind (the list's field "kind"), how much the new band's power is off, and the correlation of band levels, for several
shares (`MEAN_SHARE`, docs/super-resolution-method.md).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile
import torch

from segue.evaluation.high_band import level_correlation
from segue.evaluation.spectral_distances import lsd
from segue.predictor import level_gain, load_predictor
from segue.process.noise import keyed_generator
from segue.provenance import commit, machine
from segue.tasks.degradation import degrade, protocol

SHARES = (0.0, 0.15, 0.3, 0.5)
MOST_SEC, BESIDE_HZ = 2, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("predictor", type=Path, help="predictor.safetensors")
    parser.add_argument("list", type=Path, help="JSONL with audio, split and kind; mono, at the predictor's rate")
    parser.add_argument("--cutoff", type=float, default=4000.0)
    parser.add_argument("--clips", type=int, default=50)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = load_predictor(asked.predictor)
    rate_hz, cutoff = model.config.sample_rate_hz, torch.tensor([asked.cutoff])
    rows = [json.loads(line) for line in asked.list.read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "valid"][::2][: asked.clips]
    print(f"{asked.predictor}, cut at {asked.cutoff:g} Hz, commit {commit()}, {machine()}\n")
    kinds = sorted({row["kind"] for row in rows})
    print(f"| share | LSD | {' | '.join(kinds)} | power, median dB | power, mean dB | level correlation |")
    print("|---" * (5 + len(kinds)) + "|")
    for share in SHARES:
        distances: dict[str, list[float]] = {kind: [] for kind in kinds}
        power, correlation = [], []
        for number, row in enumerate(rows):
            read = soundfile.read(asked.list.parent / row["audio"], frames=MOST_SEC * rate_hz, dtype="float32")[0]
            true = torch.from_numpy(read)[None]
            if true.shape[1] < rate_hz // 8:
                continue
            low = degrade(true, rate_hz, protocol("nuwave2", asked.cutoff))
            gain = level_gain(low[:, None])[:, 0]
            noise = torch.randn(true.shape, generator=keyed_generator(0, "mean share", number))
            with torch.inference_mode():
                made = model(low * gain, cutoff, noise, share).wave / gain
            distances[row["kind"]].append(float(lsd(made, true, rate_hz, "nuwave2", cutoff_hz=asked.cutoff)))
            power.append(above_db(made, rate_hz, asked.cutoff) - above_db(true, rate_hz, asked.cutoff))
            correlation.append(float(level_correlation(made, true, rate_hz, asked.cutoff)))
        every = [value for own in distances.values() for value in own]
        cells = [np.mean(every), *(np.mean(distances[kind]) for kind in kinds)]
        powers = f"{np.median(power):+.1f} | {np.mean(power):+.1f}"
        print(f"| {share:g} | {' | '.join(f'{x:.3f}' for x in cells)} | {powers} | {np.nanmean(correlation):.3f} |")


def above_db(wave: torch.Tensor, rate_hz: int, cutoff_hz: float) -> float:
    """Power of [1, T] above the cutoff in dB, of no absolute reference."""
    power = torch.fft.rfft(wave[0]).abs().square()
    return float(10 * (power[int(wave.shape[1] * (cutoff_hz + BESIDE_HZ) / rate_hz) :].sum() + 1e-9).log10())


if __name__ == "__main__":
    main()
