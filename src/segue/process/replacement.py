"""Sampling where a part of the sample is known, by models that never learned to be given one: replacement.

The known part goes along its own straight path from noise to data, (1 - t) x_0 + t eps, whatever the model says of it
(Song et al., arXiv 2011.13456, appendix I.2), and the rest is integrated beside it. The rest then knows the known part
only as noisy as itself. So each stretch of the path is gone several times, with new noise in between, which lets the
two agree (RePaint, arXiv 2201.09865, section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

from segue.process.path import sample_path
from segue.process.solvers import Field, solve

# Chosen on Gaussian processes whose conditional is known, as the best of four times the cost (docs/log.md, 2026-11-28).
ROUNDS = 4  # how often each stretch is gone
STRETCHES = 6  # of the path


def solve_replacing(
    field: Field,
    x: Tensor,
    times: Tensor,
    method: str,
    x_0: Tensor,
    known: Tensor,
    noise: Callable[[int], Tensor],
    rounds: int = ROUNDS,
    stretches: int = STRETCHES,
) -> Tensor:
    """Integrate a velocity field along `times` while a part of the sample is kept.

    Args:
        field: as `solve` takes it.
        x: [B, C, L] at times[0].
        times: descending, to 0.
        method: of `solve`.
        x_0: [B, C, L] clean sample, of which the known part is read.
        known: bool, broadcasts over it.
        noise: number of the draw -> standard normal [B, C, L].
        rounds: evaluations are so many times those of `solve`; 1: plain replacement.
        stretches: into which the path is cut; the sample goes back and forth in each.

    Returns:
        x at times[-1], whose known part is that of x_0.
    """
    draws = count()
    stretch = max(1, (len(times) - 1) // stretches)
    for first in range(0, len(times) - 1, stretch):
        part = times[first : first + stretch + 1]
        begin, end = float(part[0]), float(part[-1])
        for again in range(rounds):
            if again:
                x = renoised(x, end, begin, noise(next(draws)))
            eps = noise(next(draws))
            here = torch.full((len(x),), begin, dtype=x.dtype, device=x.device)
            # A constant velocity is exact in any number of steps of any solver: the known part ends on its own path.
            x = torch.where(known, sample_path(x_0, eps, here), x)
            x = solve(_kept(field, known, eps - x_0), x, part, method)
    return torch.where(known, x_0, x)


def renoised(x: Tensor, end: float, begin: float, noise: Tensor) -> Tensor:
    """A sample at time `end`, with as much noise added as makes it one at the later noise level `begin`.

    On the straight path x_t = (1 - t) x_0 + t eps: the signal is scaled by a = (1 - begin) / (1 - end), and the noise's
    variance is filled up to begin^2.
    """
    scale = (1 - begin) / (1 - end)
    return scale * x + math.sqrt(max(0.0, begin**2 - (scale * end) ** 2)) * noise


def _kept(field: Field, known: Tensor, velocity: Tensor) -> Field:
    return lambda x, t: torch.where(known, velocity, field(x, t))
