"""What surrounds the steps of a run: its log, what a person sees, its clock, and requests to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segue.codecs.latent_space import LatentSpace
from segue.progress import Meter
from segue.stage.decision import Decision
from segue.training.checkpoint import Saved
from segue.training.config import RunConfig
from segue.training.interrupt import Interrupt
from segue.training.loader_share import LoaderShare
from segue.training.log import RunLog
from segue.training.losses import means
from segue.training.ranks import lost_ranks
from segue.training.run_memory import peak_bytes
from segue.training.threads import Threads

# What makes sounds of a run while it trains: (averaged model, its latent space, examples so far, log) -> a line.
Sounds = Callable[[Any, LatentSpace, int, RunLog], str]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run_dir: its folder.
        examples_seen: over all ranks.
        seconds: of training, over all sessions of the run.
        finished: False where it was interrupted; --resume goes on.
        validation: loss at each fixed time at the end, with the averaged weights.
    """

    run_dir: Path
    examples_seen: int
    seconds: float
    finished: bool
    validation: dict[str, float]


class Journal:
    """Of one session of a run; a context manager.

    Attributes:
        log: log.jsonl; of the first rank.
        meter: the terminal.
        share: how much of the steps' time goes into batches.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        accelerator,
        examples_seen: int,
        saved: Saved | None,
        quiet: bool,
        grace_sec: float,
    ) -> None:
        """
        Args:
            examples_seen: where this session begins.
            saved: what it goes on from.
            quiet: no progress.
            grace_sec: of `Interrupt`.
        """
        self._main = main = accelerator.is_main_process
        self._interrupt = Interrupt(grace_sec)
        self._ranks = lost_ranks(run_dir, accelerator.num_processes)
        trackers = [name for name in ("tensorboard", "wandb") if getattr(config.train, name)]
        self.log = RunLog(run_dir, examples_seen=examples_seen, trackers=trackers, active=main)
        self.log.begin(config)
        self.meter = Meter(config.recipe, config.train.total_examples, examples_seen, quiet or not main)
        self.share = LoaderShare()
        self._threads = Threads(accelerator.device)
        self._first_seen = examples_seen
        self._seconds_before = 0.0 if saved is None else saved.state.seconds
        # Monotonic: a clock that is set back changes nothing.
        self._started = time.monotonic()
        self._headline = ""
        self._measured = ""  # what was measured last, as announced
        self._good: list[tuple[float, float]] = []
        self._norm = 0.0
        self._computes = f"computes in {config.train.precision} on {accelerator.device}"

    def __enter__(self) -> Journal:
        self._stack = ExitStack()
        for part in (self.log, self.meter, self._interrupt, self._ranks, self._threads):
            self._stack.enter_context(part)
        self.print_line(self._threads.describe())
        self.print_line(self._computes)
        return self

    def __exit__(self, *error) -> bool | None:
        return self._stack.__exit__(*error)

    @property
    def stop_requested(self) -> bool:
        """Whether this process was told to end."""
        return self._interrupt.requested

    @property
    def seconds(self) -> float:
        """Of training, over all sessions."""
        return self._seconds_before + time.monotonic() - self._started

    def print_line(self, line: str | None) -> None:
        """A line for people, where there is one."""
        if line:
            self.meter.say(line)

    def announce(self, decision: Decision, seen: int, again: bool) -> None:
        """Say what was decided, where that is news.

        Args:
            again: say it once more where something is measured in this run.
        """
        if decision.headline != self._headline or (again and decision.next_probe is not None):
            self._headline = decision.headline
            self.meter.say(f"{seen:,} examples: {self._measured}{decision.reason}")

    def write_decision(self, line: dict, seconds: float) -> None:
        """A "stage" line of the log: what was measured, how long that took, what was decided."""
        for name in ("discrepancy", "condition_gain"):
            if line.get(name) is not None:
                self._measured = f"{name.replace('_', ' ')} {line[name]:.3f}, "
        self.log.write("stage", **{k: v for k, v in line.items() if k != "headline"}, probe_sec=seconds)

    def write_memory(self, device: torch.device) -> None:
        """A "memory" line of the log, at the run's end."""
        self.log.write("memory", int(self.meter.total), peak_bytes=peak_bytes(device))

    def note_step(self, loss: float, alignment: float, norm: float) -> None:
        """Mean flow loss, mean alignment and gradient norm of a good step, for the next line."""
        self._good.append((loss, alignment))
        self._norm = norm

    def make_sounds(self, sounds: Sounds, model: nn.Module, space: LatentSpace, seen: int) -> None:
        """Let the first rank make its sounds, and print what it says of them."""
        if self._main:
            self.print_line(sounds(model, space, seen, self.log))

    def write_steps(self, seen: int, decision: Decision, **numbers: float) -> None:
        """A "train" line of the log: means over the good steps since the last, if there were some."""
        if not self._good:
            return
        loss, alignment = means(self._good)
        self._good.clear()
        elapsed = time.monotonic() - self._started
        self.log.write(
            "train", seen, loss=loss, alignment=alignment, grad_norm=self._norm, **numbers,
            timestep_mean=decision.timesteps.mean(),
            examples_per_sec=(seen - self._first_seen) / elapsed, loader_share=self.share.take(),
        )  # fmt: skip
        self.meter.update(seen, f"loss {loss:.3f}")
        self.print_line(self._threads.adjust())
