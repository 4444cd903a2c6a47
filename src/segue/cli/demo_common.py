"""What the demos share: the plan, which clips are measured and played, and what a summary says first."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segue._version import __version__
from segue.audio.read import read_wave
from segue.codecs.base import Codec
from segue.data.cache import LatentCache
from segue.data.clip import Clip
from segue.data.vocabulary import held_out_pairs
from segue.evaluation.notes import note_order, spread
from segue.models.presets import parameters_of
from segue.provenance import command, commit, machine
from segue.training.build import dit_config
from segue.training.config import RunConfig
from segue.training.journal import TrainResult
from segue.training.log import read_log
from segue.workflows.run_samples import Sample, write_samples

SECONDS = 2.048  # of a rendered clip


@dataclass(frozen=True)
class Plan:
    """What a demo folder was made for; a second call with the same plan continues it, another plan is refused."""

    clips: int
    minutes: float
    seed: int
    codec: str
    examples: int
    measured: int
    task: str = "generation"
    sounds: str = ""


@dataclass(frozen=True)
class Trained:
    """A demo whose variants are trained: what its report is made of.

    Attributes:
        config: of the variant without the method.
        results: recipe -> how its run ended.
        started: of the whole, by time.monotonic.
    """

    out: Path
    plan: Plan
    everything: Sequence[Clip]
    codec: Codec
    cache: LatentCache
    config: RunConfig
    results: Mapping[str, TrainResult]
    started: float

    def summary(self, sampling: dict, **parts) -> dict:
        """summary.json: where it comes from and what was trained, then the parts."""
        splits = {split: sum(c.split == split for c in self.everything) for split in ("train", "valid", "test")}
        hours = len(self.everything) * SECONDS / 3600
        return {
            "schema_version": 2,
            "task": self.plan.task,
            # What it takes to make the summary again, before what came out.
            "command": command(),
            "commit": commit(),
            "machine": machine(),
            "versions": {"segue": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "seed": self.plan.seed,
            "seconds_total": time.monotonic() - self.started,
            "dataset": {
                "clips": len(self.everything),
                "hours": hours,
                **splits,
                "held_out_pairs": len(held_out_pairs()),
            },
            "codec": self.codec.fingerprint(),
            "model": {
                "preset": self.config.model.preset,
                "parameters": parameters_of(dit_config(self.config, self.cache)),
                "sampling": sampling,
            },
            **parts,
        }


def say(line: str) -> None:
    """One line of what happens now."""
    print(line, file=sys.stderr, flush=True)


def training_figures(name: str, result: TrainResult) -> dict:
    """What a summary says of a variant's training."""
    log = read_log(result.run_dir / "log.jsonl")
    return {
        "recipe": name,
        "examples_seen": result.examples_seen,
        "seconds": result.seconds,
        "examples_per_sec": result.examples_seen / result.seconds,
        "validation_loss": result.validation,
        # The first validation is from before training: what was learned is the difference.
        "validation_loss_first": next(e for e in log if e["event"] == "validation")["loss_by_t"],
    }


def page_prompts(everything: Sequence[Clip], counts: Mapping[str, tuple[int, int]]) -> list[Clip]:
    """The clips that a page plays, spread over instruments.

    Args:
        counts: kind -> how many of trained and of held-out pairs.
    """
    chosen = []
    for kind, parts in counts.items():
        # Clips of "valid" are of pairs that were trained on, those of "test" of pairs that never were.
        for split, count in zip(("valid", "test"), parts):
            chosen += spread_notes([c for c in everything if c.fields["kind"] == kind and c.split == split], count)
    return chosen


def spread_notes(clips: list[Clip], count: int) -> list[Clip]:
    """`count` clips evenly spaced in order of instrument and pitch (all, where there are fewer)."""
    return spread(sorted(clips, key=lambda clip: note_order(clip.fields, clip.id)), count)


def wave_of(clip: Clip, sample_rate_hz: int) -> Tensor:
    """A clip's waveform [T], cut or padded to the demo's length."""
    wave = read_wave(clip.path, sample_rate_hz)
    samples = round(SECONDS * sample_rate_hz)
    return torch.from_numpy(np.pad(wave[:samples], (0, max(0, samples - len(wave)))))


def keep_sounds(run_dir: Path, prompts: Sequence[Clip], waves: Tensor, sample_rate_hz: int) -> None:
    """Write what a variant made of these prompts into samples/ of its run, beside its checkpoints."""
    samples = [
        Sample(f"{index:03d}.wav", wave, clip.captions[0], clip.split == "test")
        for index, (clip, wave) in enumerate(zip(prompts, waves))
    ]
    # Generation in the demo uses seed 0 throughout.
    write_samples(run_dir, samples, sample_rate_hz, f"{run_dir} seed 0")
