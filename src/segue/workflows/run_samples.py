"""The sounds that a run's folder shows: samples/*.wav, and samples.json that says what each of them is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from segue.audio.write import write_wav
from segue.data.cache import LatentCache
from segue.files import write_text
from segue.pipeline import Pipeline, SuperResolver
from segue.tasks.degradation import degrade
from segue.training.config import RunConfig


@dataclass(frozen=True)
class Sample:
    """One sound of a run.

    Attributes:
        file: its name in samples/.
        wave: [A, T] waveform.
        prompt: caption that it was made from; the title of the file.
        held_out: whether its clip is of the split "test": in the demo, of a pair that was never trained on. A set
            without such a split shows clips of "valid".
    """

    file: str
    wave: Tensor
    prompt: str
    held_out: bool


def write_samples(
    run_dir: Path, samples: Sequence[Sample], sample_rate_hz: int, comment: str = "", below: Path = Path("samples")
) -> None:
    """Write sounds into samples/ of a run folder, and samples.json with {"file", "prompt", "held_out"} of each.

    Args:
        comment: kept in each file's metadata.
        below: the folder inside the run's; sounds while it trains have one for each time.
    """
    folder = run_dir / below
    folder.mkdir(parents=True, exist_ok=True)
    for sample in samples:
        write_wav(folder / sample.file, sample.wave.numpy(), sample_rate_hz, sample.prompt, comment)
    listed = [{"file": s.file, "prompt": s.prompt, "held_out": s.held_out} for s in samples]
    write_text(folder / "samples.json", json.dumps(listed, indent=1))


def generate_samples(run_dir: Path, cache: LatentCache, count: int) -> None:
    """Generate `count` held-out captions of the cache with the run's newest checkpoint."""
    pipeline = Pipeline.load(run_dir)
    rows = sample_rows(cache, count)
    entries = [cache.row(row) for row in rows]
    captions = [entry["captions"][0] for entry in entries]
    # One after the other, as at the checkpoints: the same noise and shapes, so that the model alone differs.
    waves = pipeline.generate(captions, batch_size=1)
    write_originals(run_dir, cache, rows, pipeline)
    samples = [
        Sample(f"{index:03d}.wav", wave, caption, entry["split"] == "test")
        for index, (entry, caption, wave) in enumerate(zip(entries, captions, waves))
    ]
    write_samples(run_dir, samples, pipeline.codec.sample_rate_hz, f"{run_dir} seed 0")


@torch.inference_mode()
def write_originals(run_dir: Path, cache: LatentCache, rows: Sequence[int], pipeline: Pipeline) -> None:
    """Write the held-out clips themselves into samples/original/, as the codec decodes their latents; once a run.

    That is the best that a model of these latents can sound like.
    """
    below = Path("samples") / "original"
    if (run_dir / below / "samples.json").is_file():
        return
    codec = pipeline.codec
    samples = []
    for index, row in enumerate(rows):
        latents, mask = cache.latents([row])
        # Without the silence that fills a short clip up to the length of a row.
        length = min(round(cache.meta["seconds"] * codec.sample_rate_hz), int(mask.sum()) * codec.hop_samples)
        entry = cache.row(row)
        wave = codec.decode(latents.to(pipeline.device), length)[0].cpu()
        samples.append(Sample(f"{index:03d}.wav", wave, entry["captions"][0], entry["split"] == "test"))
    write_samples(run_dir, samples, codec.sample_rate_hz, "the held-out clip, through the codec", below)


def upsample_samples(run_dir: Path, cache: LatentCache, config: RunConfig, count: int) -> None:
    """Write `count` held-out clips thrice: what the degradation leaves, what the model makes of it, and the truth."""
    resolver = SuperResolver.load(run_dir)
    rows = spread(held_out(cache), count)
    samples = round(cache.meta["seconds"] * resolver.sample_rate_hz)
    true = resolver.codec.decode(cache.latents(rows)[0], samples)
    filter_ = config.degradation.held_out
    low = degrade(true, resolver.sample_rate_hz, [filter_] * len(rows))
    # A seed for each clip, its number: the noise is the same in every run.
    noise = torch.stack([resolver.noise(resolver.frames(samples), index) for index in range(len(rows))])
    gain = resolver.level_gain(low)
    made = resolver.resolve(low * gain, torch.full((len(rows),), filter_.cutoff_hz), noise) / gain

    written = []
    for index, row in enumerate(rows):
        entry = cache.row(row)
        for name, waves in (("low", low), ("made", made), ("true", true)):
            about = f"{entry['captions'][0]} ({name})"
            written.append(Sample(f"{index:03d}-{name}.wav", waves[index], about, entry["split"] == "test"))
    write_samples(run_dir, written, resolver.sample_rate_hz)


def sample_rows(cache: LatentCache, count: int) -> list[int]:
    """Rows whose captions a run's sounds are made from, at its checkpoints and at its end: at most `count`."""
    # One row a caption, since the same caption would be the same sound. Spread over rows that are often sorted by kind.
    by_caption = {cache.row(row)["captions"][0]: row for row in reversed(held_out(cache))}
    return spread(sorted(by_caption.values()), count)


def held_out(cache: LatentCache) -> list[int]:
    """Rows whose captions a run's sounds are made from."""
    # The test split where there is one: it took no part in validation.
    return cache.rows("test") or cache.rows("valid")


def spread(rows: list[int], count: int) -> list[int]:
    """At most `count` of the rows, evenly spaced."""
    return rows[:: max(1, len(rows) // count)][:count]
