"""In-training evaluation of super-resolution: LSD on held-out clips of the cache, the same and with the same noise
for every variant, seed and evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segue.data.cache import LatentCache
from segue.evaluation.notes import spread
from segue.evaluation.spectral_distances import lsd
from segue.pipeline import SuperResolver
from segue.tasks.degradation import Degradation, degrade
from segue_lab.study.evaluation import REPLICATES, Evaluator, Measures
from segue_lab.study.study_config import EvaluationSettings

PRESET = "nuwave2"
AT_ONCE = 16  # clips


def super_resolution_evaluator(
    cache: LatentCache, filter_: Degradation, settings: EvaluationSettings, device: str = "cpu"
) -> Evaluator:
    """For `at_each_interval`: LSD (full, low and high band, preset nuwave2) of settings.clips clips.

    Args:
        cache: whose splits valid and test are measured on.
        filter_: what takes the clips' upper band away.
    """
    # Neither split was trained on.
    rows = cache.rows("valid") + cache.rows("test")
    count = min(settings.clips, len(rows))
    rows = spread(rows, count)
    # Drawn once: replicate b has the same clips in every run.
    indices = np.random.default_rng(0).integers(0, count, (REPLICATES, count))

    def evaluate(checkpoint: Path) -> tuple[Measures, dict[str, np.ndarray]]:
        resolver = SuperResolver.load(checkpoint, device=device)
        # In parts, since solving takes memory for every clip.
        pairs = (_pair(resolver, cache, rows, first, filter_, settings) for first in range(0, count, AT_ONCE))
        made, true = (torch.cat(waves) for waves in zip(*pairs, strict=True))
        arrays = {}
        for band in ("full", "low", "high"):
            pair = made.flatten(0, 1), true.flatten(0, 1)
            values = lsd(*pair, resolver.sample_rate_hz, PRESET, band=band, cutoff_hz=filter_.cutoff_hz)
            # The mean over the sides of a clip.
            arrays["lsd" if band == "full" else f"lsd_{band}"] = values.view(count, -1).mean(dim=1).numpy()
        found = {name: float(values.mean()) for name, values in arrays.items()}
        replicates = {f"replicates.{n}": v[indices].mean(1).astype(np.float32) for n, v in arrays.items()}
        return {"clips": count, **found}, arrays | replicates

    return evaluate


def _pair(
    resolver: SuperResolver,
    cache: LatentCache,
    rows: list[int],
    first: int,
    filter_: Degradation,
    settings: EvaluationSettings,
) -> tuple[Tensor, Tensor]:
    """What is made of some rows, and the truth, [B, A, T] each."""
    part = rows[first : first + AT_ONCE]
    samples = round(cache.meta["seconds"] * resolver.sample_rate_hz)
    true = resolver.codec.decode(cache.latents(part)[0], samples)
    low = degrade(true, resolver.sample_rate_hz, [filter_] * len(part))
    frames = resolver.frames(samples)
    # A seed for each clip: the noise does not hang on the size of the parts.
    noise = torch.stack([resolver.noise(frames, settings.seed + first + i) for i in range(len(part))])
    return resolver.resolve(low, torch.full((len(part),), filter_.cutoff_hz), noise, steps=settings.steps), true
