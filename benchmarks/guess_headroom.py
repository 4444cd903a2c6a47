"""What a second layer of super-resolution can earn on top of a predictor's guess, and what a linear one does earn.

    python benchmarks/guess_headroom.py CACHE [--clips 72]

CACHE is one of full-band sounds by the codec gain-shape at the rate of a shipped predictor. The first table puts
together levels and fine structure of held-out clips from the truth, the guess and noise: LSD and the other measures of
each, with 95 % intervals over clips. The second is about the skip of models without a guess: a ridge regression from
known and guessed levels to what the guess lacks, as a share of the mean square without it, on the kind of sound (the
clips' first captions) that was left out of its fit and on all that were in it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segue.data.cache import LatentCache
from segue.data.open_cache import open_cache
from segue.evaluation.bootstrap import bootstrap_interval
from segue.evaluation.high_band import harmonic_to_noise_error_db, level_correlation, log_mel_l1_above
from segue.evaluation.spectral_distances import lsd
from segue.models.audio_skip import SKIP_FRAMES, SKIP_KINKS
from segue.predictor import level_gain
from segue.process.noise import BatchDraws, keyed_noise
from segue.recipes import load_recipe
from segue.tasks.degradation import degrade
from segue.tasks.super_resolution import SuperResolution
from segue.training.build import build_model, make_task

MEASURES = ("LSD full", "LSD high", "level correlation", "log-mel L1 above", "HNR error dB")
RIDGES = (1e-5, 1e-2, 1.0)
FITTED_ON = 256  # clips of a kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--clips", type=int, default=72)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cache = open_cache(asked.cache)
    config = load_recipe("sr-predicted-static")
    task = make_task(config, cache)
    assert isinstance(task, SuperResolution)
    task.initialise(build_model(config, cache, 0), cache)
    with torch.no_grad():
        headroom(task, cache, asked.clips)
        left_out(task, cache)


def headroom(task: SuperResolution, cache: LatentCache, clips: int) -> None:
    """Print the first table."""
    full = [row for row in cache.rows("valid") if int(cache.latents([row])[1].sum()) >= 0.9 * cache.frames]
    rows = full[:: max(1, -(-len(full) // clips))]
    values: dict[str, list[list[float]]] = {}
    rate_hz, cutoff_hz = task.space.codec.sample_rate_hz, task.config.held_out.cutoff_hz
    for first in range(0, len(rows), 32):
        part = rows[first : first + 32]
        for name, (made, true) in ways(task, cache, part, first).items():
            for m, t in zip(made[:, 0].double(), true[:, 0].double()):
                pair = (m[None], t[None], rate_hz)
                found = [lsd(*pair, "nuwave2", band=band, cutoff_hz=cutoff_hz) for band in ("full", "high")]
                found += [
                    f(*pair, cutoff_hz) for f in (level_correlation, log_mel_l1_above, harmonic_to_noise_error_db)
                ]
                values.setdefault(name, []).append([float(x) for x in found])
    print(f"| {len(rows)} held-out clips | " + " | ".join(MEASURES) + " |")
    print("|---" * (len(MEASURES) + 1) + "|")
    for name, found in values.items():
        print(f"| {name} | " + " | ".join(with_interval(column) for column in np.array(found).T) + " |")


def ways(task: SuperResolution, cache: LatentCache, rows: list[int], first: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> waves made of the parts that it names, and the true ones."""
    space, codec = task.space, task.space.codec
    x_0, condition, _ = task.prepare(cache.batch(rows))
    assert condition.mean is not None and condition.turn is not None and condition.audio is not None
    audio, known = condition.known_audio()
    # What the task makes of the truth has the true levels and magnitudes, and phases of the guess.
    turned = condition.fill_known(x_0)
    guess = audio.where(known, audio * condition.turn)
    true = clean_of(task, cache, rows)
    noise = keyed_noise(true[:, codec.levels :].shape[1:], 0, "headroom", range(first, first + len(rows)))
    flat = condition.turn[:, codec.levels :]
    parts = {
        "guess": guess,
        "true levels, fine structure of the guess": with_levels(true, guess, codec.levels),
        "true levels and magnitudes, phases of the guess": turned,
        "true levels, flat magnitudes, phases of the guess": with_levels(true, flat, codec.levels),
        "true levels, noise": with_levels(true, noise, codec.levels),
        "guessed levels, true magnitudes, phases of the guess": with_levels(guess, turned, codec.levels),
        "guessed levels, flat magnitudes, phases of the guess": with_levels(guess, flat, codec.levels),
        "guessed levels, noise": with_levels(guess, noise, codec.levels),
    }
    whole = space.decode(true, task.samples)
    return {name: (space.decode(true.where(known, part), task.samples), whole) for name, part in parts.items()}


def clean_of(task: SuperResolution, cache: LatentCache, rows: list[int]) -> Tensor:
    """[B, C, L] the clean latents, at the level to which the task brings held-out clips."""
    codec = task.space.codec
    latents, mask = cache.latents(rows)
    wave = codec.decode(latents.float(), task.samples)
    low = degrade(wave, codec.sample_rate_hz, [task.config.held_out] * len(rows))
    return task.space.encode(wave * level_gain(low, mask.sum(1) * codec.hop_samples), mask)


def with_levels(levels: Tensor, shapes: Tensor, count: int) -> Tensor:
    """Levels of one latent, and the rest of another, or as it is given."""
    rest = shapes[:, count:] if shapes.shape[1] == levels.shape[1] else shapes
    return torch.cat([levels[:, :count], rest], dim=1)


def with_interval(values: np.ndarray) -> str:
    values = values[np.isfinite(values)]
    low, high = bootstrap_interval(lambda i: float(values[i].mean()), len(values))
    return f"{values.mean():.3f} ({low:.2f} to {high:.2f})"


def left_out(task: SuperResolution, cache: LatentCache) -> None:
    """Print the second table."""
    kinds: dict[str, list[int]] = {}
    for row in cache.rows("train"):
        kinds.setdefault(cache.row(row)["captions"][0], []).append(row)
    sums = {
        kind: sums_of(task, cache, rows[:: max(1, len(rows) // FITTED_ON)][:FITTED_ON]) for kind, rows in kinds.items()
    }
    print("\n| ridge | " + " | ".join(f"fitted without {kind}, on it" for kind in kinds) + " | fitted on all, on all |")
    print("|---" * (len(kinds) + 2) + "|")
    for ridge in RIDGES:
        shares = [
            error(solution({k: v for k, v in sums.items() if k != kind}, ridge), {kind: sums[kind]}) for kind in kinds
        ]
        shares.append(error(solution(sums, ridge), sums))
        print(f"| {ridge:g} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")


Sums = tuple[Tensor, Tensor, Tensor, int]


def sums_of(task: SuperResolution, cache: LatentCache, rows: list[int]) -> Sums:
    """Products of features with each other and with levels of x_0, squares of these, and their number of frames."""
    levels = task.space.codec.levels
    size = SKIP_FRAMES * (1 + len(SKIP_KINKS)) * levels + 1
    gram, cross = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, levels, dtype=torch.float64)
    squares, frames = torch.zeros(levels, dtype=torch.float64), 0
    for first in range(0, len(rows), 64):
        part = rows[first : first + 64]
        x_0, condition, mask = task.prepare(cache.batch(part), BatchDraws(0, first, len(part)))
        assert mask is not None
        own = condition.known_audio()[0][:, :levels]
        features = torch.cat([own, *((own - kink).relu() for kink in SKIP_KINKS)], dim=1)
        padded = torch.nn.functional.pad(features, (SKIP_FRAMES // 2, SKIP_FRAMES // 2))
        windows = padded.unfold(-1, SKIP_FRAMES, 1).permute(0, 2, 1, 3).flatten(2)[mask].double()
        design = torch.cat([windows, torch.ones_like(windows[:, :1])], dim=1)
        wanted = x_0[:, :levels].transpose(1, 2)[mask].double()
        gram += design.T @ design
        cross += design.T @ wanted
        squares += wanted.square().sum(0)
        frames += len(wanted)
    return gram, cross, squares, frames


def solution(sums: dict[str, Sums], ridge: float) -> Tensor:
    """[features, levels]; every kind weighs the same."""
    gram = torch.stack([gram / frames for gram, _, _, frames in sums.values()]).sum(0)
    cross = torch.stack([cross / frames for _, cross, _, frames in sums.values()]).sum(0)
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    return torch.linalg.solve(gram, cross)


def error(weights: Tensor, sums: dict[str, Sums]) -> float:
    """Mean square that is left, over that without the regression; every kind weighs the same."""
    left = whole = 0.0
    for gram, cross, squares, frames in sums.values():
        explained = 2 * (weights * cross).sum() - (weights * (gram @ weights)).sum()
        left += float(squares.sum() - explained) / frames
        whole += float(squares.sum()) / frames
    return left / whole


if __name__ == "__main__":
    main()
