"""How samples are drawn from a trained model: solver, steps, guidance."""

from __future__ import annotations

from dataclasses import dataclass

from segue.process.solvers import SOLVERS
from segue.types import UserError

MOST_STEPS = 10_000  # more are a slip; the grid of times alone would fill the memory


def check_steps(steps: int) -> None:
    """Refuse a number of solver steps that cannot be.

    Raises:
        UserError: none, or far too many.
    """
    if steps < 1:
        raise UserError(f"--steps {steps}: give at least 1")
    if steps > MOST_STEPS:
        raise UserError(f"--steps {steps}: hint: give at most {MOST_STEPS:,}; a few dozen do")


@dataclass(frozen=True)
class Sampling:
    """Settings of the solver and of classifier-free guidance.

    Attributes:
        steps: solver steps.
        solver: "euler", "heun" (two evaluations a step), "multistep" or "dpm" (second order, one evaluation a step).
        guidance_scale: of classifier-free guidance; 1 = none. 2 was best on the demo set (docs/log.md).
        guidance_rescale: 0..1, share of Lin et al.'s rescaling (arXiv 2305.08891), without which guided sounds are too
            loud (docs/log.md).
        guidance_interval: times (low, high) between which guidance acts (arXiv 2404.07724).
    """

    steps: int = 24
    solver: str = "multistep"
    guidance_scale: float = 2.0
    guidance_rescale: float = 0.7
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if self.solver not in SOLVERS:
            raise UserError(f"--solver {self.solver}: use one of {', '.join(SOLVERS)}")
