"""What the sounds of folders are, by instruments: python benchmarks/sounds_by_instruments.py FOLDER [FOLDER ...]

Quartiles over the files of each folder: length (`evaluation/recordings.py`), loudness, correlation of the sides, share
above 10 kHz, and the level of the second half against the first. Such folders are OUT/measured and
OUT/runs/NAME/measured of `segue demo --sounds`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile
import torch

from segue.audio.loudness import loudness_lufs
from segue.evaluation.recordings import sounding_sec, treble_db

FIGURES = ("length, s", "loudness, LUFS", "correlation of the sides", "above 10 kHz, dB", "second half, dB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    print(f"| folder | files | {' | '.join(FIGURES)} |\n" + "|---" * (2 + len(FIGURES)) + "|")
    for folder in parser.parse_args().folders:
        found = np.array([figures(path) for path in sorted(folder.glob("*.flac"))])
        found[~np.isfinite(found)] = np.nan
        cells = ["{1:.2f} ({0:.2f} to {2:.2f})".format(*np.nanquantile(x, [0.25, 0.5, 0.75])) for x in found.T]
        print(f"| {folder} | {len(found)} | {' | '.join(cells)} |")


def figures(path: Path) -> tuple[float, ...]:
    """FIGURES of a stereo file."""
    wave, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    sides = wave.T
    batch = torch.from_numpy(sides.copy())[None]
    alike = float(np.corrcoef(sides)[0, 1]) if sides.std(1).min() > 1e-6 else float("nan")
    half = sides.shape[1] // 2
    first, second = (10 * np.log10(np.mean(x.astype(float) ** 2) + 1e-12) for x in (sides[:, :half], sides[:, half:]))
    return (
        float(sounding_sec(batch, rate_hz)),
        loudness_lufs(sides, rate_hz),
        alike,
        float(treble_db(batch, rate_hz)),
        second - first,
    )


if __name__ == "__main__":
    main()
