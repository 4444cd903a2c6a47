"""What `segue upsample` makes of files as users have them: python benchmarks/upsampled_files.py FOLDER [--clips 30]

Each sound of FOLDER (at 16 kHz or more, at most 4 s of each) becomes an 8 kHz file, and that a 16 kHz one by the
shipped model. Prints the log-spectral distance to the original (nuwave2's frames and floor) by band, mean and 95 %
interval over clips: of files by a resampler (soxr HQ) and by an exact low-pass, with soxr and with exact interpolation
on the way up; and of a telephone (300 to 3,400 Hz, A-law) without --source, with it, and with --low.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch

from segue.audio.read import read_wave
from segue.audio.resample import resample, resampled
from segue.evaluation.bootstrap import bootstrap_interval
from segue.evaluation.mel import stft_magnitude
from segue.pipeline import SuperResolver
from segue.provenance import commit, machine
from segue.tasks.degradation import Degradation, degrade
from segue.upsampling import upsample
from segue.upsampling.io_paths import Job
from segue.upsampling.prepare import Settings, prepare

RATE_HZ = 16000
EXACT = upsample.interpolated
TELEPHONE = Degradation(3400, "butterworth", 8, low_hz=300, coding="alaw")
WALL = Degradation(4000, "fft")
# row -> what the file is, the interpolation on the way up, settings
ROWS = {
    "soxr file, soxr up": ("soxr", resampled, {}),
    "soxr file, exact up": ("soxr", EXACT, {}),
    "exact file, soxr up, cutoff 3,760": ("wall", resampled, {"cutoff_hz": 3760.0}),
    "exact file, exact up": ("wall", EXACT, {}),
    "telephone": ("telephone", EXACT, {}),
    "telephone, --source telephone": ("telephone", EXACT, {"source": "telephone"}),
    "telephone, --source auto --low": ("telephone", EXACT, {"source": "auto", "low": True}),
}
BANDS = {"full": (0, 8000), "50-300": (50, 300), "300-3,300": (300, 3300), "3,300-4,000": (3300, 4000),
         "4,000-8,000": (4000, 8000)}  # fmt: skip


def narrow(wave: np.ndarray, kind: str) -> np.ndarray:
    """A wave at 16 kHz as the samples of an 8 kHz file."""
    if kind == "soxr":
        return resample(wave, RATE_HZ, 8000)
    degradation = TELEPHONE if kind == "telephone" else WALL
    # Nothing is left above 4 kHz, so that every other sample is all of it.
    return degrade(torch.from_numpy(wave)[None], RATE_HZ, [degradation])[0, ::2].numpy()


def distances(made: np.ndarray, wave: np.ndarray) -> dict[str, float]:
    """LSD in decades of power in each band."""
    pair = [torch.from_numpy(x[: len(wave)]).double()[None] for x in (made, wave)]
    logs = [stft_magnitude(x, 2048, 512).square().clamp(min=1e-8).log10() for x in pair]
    hz = torch.arange(1025) * RATE_HZ / 2048
    return {
        name: float((logs[0] - logs[1])[:, (hz >= low) & (hz <= high)].square().mean(1).sqrt().mean())
        for name, (low, high) in BANDS.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=30)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--only", default="", help="rows whose name begins so")
    options = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(p for p in options.folder.rglob("*") if p.suffix in (".wav", ".flac", ".ogg", ".mp3"))
    paths = paths[:: max(1, len(paths) // options.clips)][: options.clips]
    resolver = SuperResolver.load(None)
    wanted = {name: row for name, row in ROWS.items() if name.startswith(options.only)}
    found: dict[str, list[dict]] = {name: [] for name in wanted}
    cutoffs: dict[str, list[float]] = {name: [] for name in wanted}
    with tempfile.TemporaryDirectory() as work:
        for path in paths:
            wave = read_wave(path, RATE_HZ)[: 4 * RATE_HZ]
            if len(wave) < 8192:
                continue
            wave = 0.5 * wave / np.abs(wave).max()
            for name, (kind, way, settings) in wanted.items():
                source = Path(work) / "narrow.wav"
                soundfile.write(source, narrow(wave, kind), 8000, subtype="PCM_16")
                upsample.interpolated = way
                asked = Settings(RATE_HZ, overwrite=True, steps=options.steps, subtype="FLOAT", **settings)
                work_of = prepare(Job(source, Path(work), "wide"), resolver, asked)
                report = upsample.carry_out(work_of, resolver, asked, lambda sec: None)
                found[name].append(distances(soundfile.read(report["output"], dtype="float32")[0], wave))
                cutoffs[name].append(report["cutoff_hz"])
    count = len(next(iter(found.values())))
    print(f"{count} clips of {options.folder.name}, {options.steps} steps; {commit()}, {machine()}")
    print("| | median cutoff | " + " | ".join(BANDS) + " |")
    for name, rows in found.items():
        cells = []
        for band in BANDS:
            values = np.array([row[band] for row in rows])
            low, high = bootstrap_interval(lambda rows, v=values: float(v[rows].mean()), len(values))
            cells.append(f"{values.mean():.3f} ({low:.2f} to {high:.2f})")
        print(f"| {name} | {np.median(cutoffs[name]):,.0f} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
