"""How well `segue upsample` keeps the places of sounds: python benchmarks/stereo_upsampling.py OUT LIST [--clips 40]

LIST is a text file of paths, one a line, of stereo recordings that no model here was trained on. A stretch of each
becomes a stereo wav at 8 kHz, which `segue upsample` takes to 16 kHz in each of its forms of stereo (`--stereo`). Over
frames of 50 ms that are at most 30 dB below the loudest, above the cutoff: the median error of the level difference
between the sides (dB), and of their correlation. Beside them the log-spectral distance above the cutoff. Means over
files, with 95 % intervals.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from segue.audio.stereo import MODES
from segue.evaluation.baselines import sinc
from segue.evaluation.bootstrap import bootstrap_interval
from segue.evaluation.spectral_distances import lsd
from segue.provenance import commit, machine
from segue.upsampling.io_paths import find_jobs
from segue.upsampling.load import load_resolver
from segue.upsampling.prepare import Settings, prepare
from segue.upsampling.upsample import carry_out

RATE_HZ, INPUT_HZ = 16_000, 8_000
CUTOFF_HZ = INPUT_HZ / 2
FRAME_SEC, ABOVE_HZ, QUIETEST_DB = 0.05, 4200.0, 30.0
MEASURES = ("level difference dB", "correlation", "LSD high")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("list", type=Path)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--run", default="default")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cut(asked.out, asked.list.read_text().splitlines(), asked.clips, asked.seconds)
    resolver = load_resolver(asked.run)
    print(f"{len(list((asked.out / 'low').glob('*.wav')))} files, commit {commit()}, {machine()}\n")
    print("| --stereo | " + " | ".join(MEASURES) + " |\n" + "|---" * (1 + len(MEASURES)) + "|")
    for mode in MODES:
        settings = Settings(rate_hz=RATE_HZ, stereo=mode, overwrite=True)
        for job in find_jobs(asked.out / "low", asked.out / mode):
            carry_out(prepare(job, resolver, settings), resolver, settings, lambda _: None)
        found = [figures(asked.out, mode, path.name) for path in sorted((asked.out / "true").glob("*.wav"))]
        cells = [_with_interval(np.array(column)) for column in zip(*found)]
        print(f"| {mode} | " + " | ".join(cells) + " |", flush=True)


def cut(out: Path, paths: list[str], count: int, seconds: float) -> None:
    """The true clips, from a third of each recording on, and the narrow wav files that they become."""
    for name in ("true", "low"):
        (out / name).mkdir(parents=True, exist_ok=True)
    done = 0
    for path in paths:
        info = soundfile.info(path)
        first = int(min(20.0, info.duration / 3) * info.samplerate)
        wave = soundfile.read(path, start=first, frames=round(seconds * info.samplerate), always_2d=True)[0]
        # What is mono, silent or too short says nothing of places.
        if info.channels != 2 or len(wave) < info.samplerate // 2 or np.abs(wave).max() < 0.01:
            continue
        if np.abs(wave[:, 0] - wave[:, 1]).max() < 0.02 * np.abs(wave).max():
            continue
        true = np.stack([sinc(side, info.samplerate, RATE_HZ) for side in wave.T])
        true = true[:, : true.shape[1] // 2 * 2] * 0.9 / max(0.9, np.abs(true).max())
        if _above(torch.from_numpy(true)).square().mean() < 1e-7:
            continue
        low = np.stack([sinc(side, RATE_HZ, INPUT_HZ) for side in true])
        soundfile.write(out / "true" / f"{done:03d}.wav", true.T, RATE_HZ, subtype="PCM_16")
        soundfile.write(out / "low" / f"{done:03d}.wav", np.clip(low, -1, 1).T, INPUT_HZ, subtype="PCM_16")
        done += 1
        if done == count:
            return


def figures(out: Path, mode: str, name: str) -> tuple[float, float, float]:
    """Of one file: MEASURES."""
    true, made = (torch.from_numpy(soundfile.read(out / place / name)[0].T.copy()) for place in ("true", mode))
    made = made[:, : true.shape[1]]
    frame = round(FRAME_SEC * RATE_HZ)
    real, own = (_above(x)[:, : x.shape[1] // frame * frame].unflatten(1, (-1, frame)) for x in (true, made))
    power = real.square().mean(-1).sum(0)
    counted = power > power.max() * 10 ** (-QUIETEST_DB / 10)
    difference = (_level_difference_db(own) - _level_difference_db(real))[counted].abs().median()
    correlation = (_correlation(own) - _correlation(real))[counted].abs().median()
    return float(difference), float(correlation), float(lsd(made, true, RATE_HZ, "nuwave2", band="high",
                                                            cutoff_hz=CUTOFF_HZ).mean())  # fmt: skip


def _above(wave: Tensor) -> Tensor:
    """[2, T] -> [2, T] without what lies below ABOVE_HZ."""
    spectrum = torch.fft.rfft(wave)
    spectrum[:, : int(wave.shape[1] * ABOVE_HZ / RATE_HZ)] = 0
    return torch.fft.irfft(spectrum, n=wave.shape[1])


def _level_difference_db(frames: Tensor) -> Tensor:
    power = frames.square().mean(-1) + 1e-10
    return 10 * torch.log10(power[0] / power[1])


def _correlation(frames: Tensor) -> Tensor:
    power = frames.square().mean(-1)
    return (frames[0] * frames[1]).mean(-1) / (power[0] * power[1] + 1e-20).sqrt()


def _with_interval(values: np.ndarray) -> str:
    low, high = bootstrap_interval(lambda i: float(values[i].mean()), len(values))
    return f"{values.mean():.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
