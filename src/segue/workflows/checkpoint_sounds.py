"""Sounds while a run trains: the same held-out captions and the same noise each time, so that only the model changes.

They are made by the averaged weights in memory, from the cached embeddings of their captions: no text encoder is
loaded. Their noise is keyed by their number (process/noise.py), so that training goes on as if they had not been made.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from segue.codecs import codec_of
from segue.codecs.base import Codec
from segue.codecs.latent_space import LatentSpace
from segue.conditioners.base import TextConditioner
from segue.data.cache import LatentCache
from segue.files import write_bytes
from segue.models.backbone import Backbone
from segue.models.files import SavedModel
from segue.pipeline import Pipeline
from segue.report.pictures import spectrogram_png
from segue.training.build import model_card
from segue.training.config import RunConfig, intervals
from segue.training.log import RunLog
from segue.types import UserError, first_line
from segue.workflows.run_samples import Sample, sample_rows, write_originals, write_samples

DEAR = 0.05  # share of the time since the last ones, above which the line says how to make fewer


class CachedCaptions(TextConditioner):
    """The text encoder of a cache, for captions that it has encoded already."""

    def __init__(self, cache: LatentCache, rows: Sequence[int]) -> None:
        self.name = cache.meta["text"]["name"]
        self.dim = cache.text_dim
        self.max_tokens = cache.text_tokens
        self._cache = cache
        self.rows = {cache.row(row)["captions"][0]: row for row in rows}

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens [B, K, E] and mask [B, K] as they are cached."""
        return self._cache.text([self.rows[caption] for caption in captions])

    def fingerprint(self) -> dict:
        """Of the encoder that made them."""
        return self._cache.meta["text"]


class CheckpointSounds:
    """Makes the sounds of one run; `training.loop.train` calls it when they are due."""

    def __init__(self, config: RunConfig, cache: LatentCache, run_dir: Path, count: int) -> None:
        """
        Args:
            count: number of sounds each time, each from another caption.

        Raises:
            UserError: a run whose sounds are not made from captions.
        """
        if config.train.task != "generation":
            raise UserError(
                f"train.sample_every: not for {config.train.task}, which has no captions; hint: leave it away"
            )
        self._config = config
        self._cache = cache
        self._run_dir = run_dir
        self._captions = CachedCaptions(cache, sample_rows(cache, count))
        self._codec: Codec | None = None
        self._last: float | None = None

    def __call__(self, model: Backbone, space: LatentSpace, seen: int, log: RunLog) -> str:
        """Write the sounds of a model; returns a line for people.

        What fails here costs its sounds and not the run: the line then says what it was.

        Args:
            model: with averaged weights, on its device.
            space: of its latents.
            seen: examples so far.
            log: gets a "sounds" line, and TensorBoard the sounds and their pictures.
        """
        started = time.monotonic()
        try:
            self._write(model, space, seen, log)
        except (UserError, OSError, RuntimeError) as error:
            return f"{seen:,} examples: no sounds ({first_line(error)})"
        seconds = time.monotonic() - started
        log.write("sounds", seen, count=len(self._captions.rows), sound_sec=seconds)
        return self._cost(seen, seconds)

    def _write(self, model: Backbone, space: LatentSpace, seen: int, log: RunLog) -> None:
        meta = self._cache.meta
        if self._codec is None:
            self._codec = codec_of(meta["codec_source"], meta["codec"])
        device = next(model.parameters()).device
        saved = SavedModel(model, space.mean, space.std, model_card(self._config, self._cache, model, seen))
        pipeline = Pipeline(saved, self._codec, self._captions, str(device))
        captions = list(self._captions.rows)
        try:
            # One after the other: a codec may need more memory for a batch than training leaves.
            waves = pipeline.generate(captions, batch_size=1)
            write_originals(self._run_dir, self._cache, list(self._captions.rows.values()), pipeline)
        finally:
            # A device that trains needs its memory.
            self._codec = self._codec.to("cpu")
        folder = Path("samples") / f"examples-{seen:010d}"
        rate_hz = self._codec.sample_rate_hz
        rows = [self._captions.rows[caption] for caption in captions]
        samples = [
            Sample(f"{i:03d}.wav", wave, caption, self._cache.row(row)["split"] == "test")
            for i, (wave, caption, row) in enumerate(zip(waves, captions, rows))
        ]
        write_samples(self._run_dir, samples, rate_hz, f"{self._run_dir} {seen} examples seed 0", folder)
        for sample in samples:
            mono = sample.wave.reshape(-1, sample.wave.shape[-1]).mean(0)
            picture = spectrogram_png(mono.numpy(), rate_hz)
            write_bytes((self._run_dir / folder / sample.file).with_suffix(".png"), picture)
            log.show_sound(sample.prompt, mono, rate_hz, picture, seen)

    def _cost(self, seen: int, seconds: float) -> str:
        """What was made and what it cost; where that is much of a run's time, how to make less."""
        now = time.monotonic()
        before, self._last = self._last, now
        times = (self._config.train.total_examples - 1) // intervals(self._config.train).sounds
        line = f"{seen:,} examples: {len(self._captions.rows)} sounds in {seconds:.1f} s, {times} times in this run"
        if before is not None and seconds > DEAR * (now - before):
            line += f", {seconds / (now - before):.0%} of its time; hint: --samples 1, or a larger train.sample_every"
        return line


def sounds_at_checkpoints(config: RunConfig, cache: LatentCache, run_dir: Path, count: int) -> CheckpointSounds | None:
    """What makes the sounds of a run while it trains; None where it makes none.

    Raises:
        UserError: train.sample_every is set for a run that cannot have them.
    """
    if config.train.sample_every and config.train.sharding != "none":
        raise UserError(
            "train.sample_every: under train.sharding=fsdp2 no process holds the model; hint: leave it away"
        )
    if count == 0 or (
        not config.train.sample_every and (config.train.task != "generation" or config.train.sharding != "none")
    ):
        return None
    return CheckpointSounds(config, cache, run_dir, count)
