"""What options of several commands have in common: their types and help, and the numbers that can be computed with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from segue.devices import device_of
from segue.types import UserError

Device = Annotated[str, typer.Option(help="Device that computes: cpu, cuda, cuda:1, mps or auto.")]
Threads = Annotated[int, typer.Option(help="Number of CPU threads; 0 leaves the choice to PyTorch.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out files that cannot be used, and name them.")]
Extra = Annotated[list[Path] | None, typer.Option(help="Folder of further sounds that are mixed in. May be repeated.")]
Steps = Annotated[
    int | None,
    typer.Option(help="Length of training in steps, instead of --minutes; such a run is reproducible bit for bit."),
]
ContinueOut = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]

# What these options may be, in whichever command.
_AT_LEAST_ONE = ("--batch-size", "--sample-rate-hz")
_ABOVE_ZERO = ("--seconds", "--minutes", "--cutoff-hz", "--cutoff")


def finite(name: str, value: float | None, low: float = -math.inf, high: float = math.inf, above: bool = False) -> None:
    """Check a number that was given for an option; None was not given.

    Args:
        above: whether `low` itself is too low.

    Raises:
        UserError: it is not finite, or out of its range.
    """
    if value is None:
        return
    # NaN compares false either way, and is caught by the next line.
    fits = low < value <= high if above else low <= value <= high
    if math.isfinite(value) and fits:
        return
    if math.isinf(low) and math.isinf(high):
        wanted = "a finite number"
    elif math.isinf(high):
        wanted = f"a finite number above {low:g}" if above else f"a finite number, {low:g} or more"
    else:
        wanted = f"a number from {low:g} to {high:g}"
    raise UserError(f"{name} {value:g}: hint: give {wanted}")


def check_option(name: str, value: object) -> None:
    """Check an option of any command, as far as its name and its type tell what it may be.

    Raises:
        UserError: a number that is not finite, no workers or an empty batch, a seed beyond all generators, or a device
            that is not here.
    """
    if isinstance(value, float):
        finite(name, value, 0.0 if name in _ABOVE_ZERO else -math.inf, above=name in _ABOVE_ZERO)
    elif name in _AT_LEAST_ONE and isinstance(value, int):
        finite(name, value, 1)
    elif name == "--workers" and isinstance(value, int):
        finite(name, value, 0)
    elif name == "--seed" and isinstance(value, int) and not -(2**63) <= value < 2**63:
        # Seeds of torch's generators have 64 bits.
        raise UserError(f"--seed {value}: hint: give a whole number of at most 18 digits")
    elif name == "--threads" and isinstance(value, int) and value < 0:
        raise UserError(f"--threads {value}: hint: give 1 or more, or 0 for PyTorch's choice")
    elif name == "--device" and isinstance(value, str):
        device_of(value)


def check_rate(rate: int) -> None:
    """Check the --rate that sounds are resampled to.

    Raises:
        UserError: no rate of sound, in Hz.
    """
    if not 1000 <= rate <= 192000:
        raise UserError(f"--rate {rate} Hz is outside 1000..192000; hint: give the rate of your sounds")


def use_threads(threads: int) -> None:
    """Compute with so many CPU threads; 0 leaves PyTorch's choice."""
    import torch

    if threads:
        torch.set_num_threads(threads)


def step_counts(steps: str, least: int = 1) -> tuple[int, ...]:
    """The numbers of --steps.

    Raises:
        UserError: they are no whole numbers, or one is below `least`.
    """
    words = steps.split(",")
    if not all(word.strip().isdecimal() and int(word) >= least for word in words):
        raise UserError(f"--steps {steps}: give whole numbers with commas, such as 4,50")
    return tuple(int(word) for word in words)
