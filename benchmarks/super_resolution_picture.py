"""Before and after, to look at and to hear: python benchmarks/super_resolution_picture.py OUT NAME=FILE [NAME=FILE ...]

Of each recording the first seconds become a narrow wav file, by exact decimation, which `segue upsample` makes wide
again. OUT/NAME-{low,replication,predictor,...,true}.flac are the sounds, OUT/PICTURE.png their linear spectrograms.
--model LABEL=RUN:STEPS adds a diffusion model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile
import torch

from segue.evaluation.baselines import band_replication, sinc
from segue.upsampling.io_paths import find_jobs
from segue.upsampling.load import load_resolver
from segue.upsampling.prepare import Settings, prepare
from segue.upsampling.upsample import carry_out

WINDOW_SEC, FLOOR_DB, TOP_DB = 0.032, -100.0, -25.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("sounds", nargs="+", help="NAME=FILE")
    parser.add_argument("--rate", type=int, default=16_000)
    parser.add_argument("--input-rate", type=int, default=8000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--picture", default="spectrograms")
    parser.add_argument("--model", action="append", default=[], help="LABEL=RUN:STEPS, beside the shipped predictor")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    systems = {"predictor": ("default", None)}
    for label, _, place in (item.partition("=") for item in asked.model):
        run, _, steps = place.rpartition(":")
        systems[label] = (run, int(steps))
    sounds = {}
    for name, _, file in (item.partition("=") for item in asked.sounds):
        sounds[name] = made_of(asked.out, name, Path(file), systems, asked)
    draw(asked.out / f"{asked.picture}.png", sounds, asked.rate)


def made_of(out: Path, name: str, file: Path, systems: dict, asked: argparse.Namespace) -> dict[str, np.ndarray]:
    """Label -> wave at the output's rate, each also as a flac file."""
    own_hz = soundfile.info(file).samplerate
    wave = soundfile.read(file, frames=round(asked.seconds * own_hz), always_2d=True)[0].mean(1)
    true = sinc(wave, own_hz, asked.rate)
    true = 0.9 * true[: len(true) // 6 * 6] / np.abs(true).max()
    low = np.clip(sinc(true, asked.rate, asked.input_rate), -1, 1)
    narrow = out / f"{name}-low.wav"
    soundfile.write(narrow, low, asked.input_rate, subtype="PCM_16")
    wide = sinc(low, asked.input_rate, asked.rate)
    copied = band_replication(torch.from_numpy(wide)[None], asked.rate, asked.input_rate / 2)[0].numpy()
    found = {"low": wide, "replication": copied}
    for label, (run, steps) in systems.items():
        resolver = load_resolver(run, steps=steps, rate_hz=asked.rate)
        settings = Settings(rate_hz=asked.rate, steps=steps, overwrite=True)
        target = out / f"{name}-{label}.flac"
        carry_out(prepare(find_jobs(narrow, target)[0], resolver, settings), resolver, settings, lambda _: None)
        found[label] = soundfile.read(target)[0]
    found["true"] = true
    for label in ("low", "replication", "true"):
        soundfile.write(out / f"{name}-{label}.flac", np.clip(found[label], -1, 1), asked.rate, subtype="PCM_16")
    narrow.unlink()
    return found


def draw(path: Path, sounds: dict[str, dict[str, np.ndarray]], rate_hz: int) -> None:
    """A row a sound, a column a system."""
    from matplotlib.figure import Figure

    columns = list(next(iter(sounds.values())))
    figure = Figure(figsize=(3.0 * len(columns), 2.1 * len(sounds)), dpi=90, layout="constrained")
    for row, (name, waves) in enumerate(sounds.items()):
        for column, label in enumerate(columns):
            axes = figure.add_subplot(len(sounds), len(columns), row * len(columns) + column + 1)
            extent = (0.0, len(waves[label]) / rate_hz, 0.0, rate_hz / 2000)
            axes.imshow(levels_db(waves[label], rate_hz), origin="lower", aspect="auto", extent=extent, cmap="magma",
                        vmin=FLOOR_DB, vmax=TOP_DB)  # fmt: skip
            axes.tick_params(labelsize=7)
            if row == 0:
                axes.set_title({"low": "narrow", "true": "original"}.get(label, label), fontsize=9)
            if column == 0:
                axes.set_ylabel(f"{name}\nkHz", fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def levels_db(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    """[n] -> [bins, frames] in dB."""
    size = round(WINDOW_SEC * rate_hz)
    window = torch.hann_window(size, dtype=torch.float64)
    spectrum = torch.stft(torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float64)), size, size // 8,
                          window=window, return_complex=True).abs() / (size / 4)  # fmt: skip
    return (20 * (spectrum + 1e-6).log10()).numpy()


if __name__ == "__main__":
    main()
