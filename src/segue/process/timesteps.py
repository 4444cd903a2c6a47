"""Timestep distributions on (0, 1): frozen, sampled through their quantile function from an explicit generator.

A draw pushes uniform numbers through the quantile, so that stratified and independent draws share one code, and a
distribution is checked by quantile(cdf(t)) = t.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Times stay this far from the ends: at t = 0 a clean-sample prediction has no velocity, at t = 1 a logit is infinite.
EDGE = 1e-5
_QUADRATURE = 4096  # points of the midpoint rule behind `mean`
_TABLE = 16384  # intervals of the table in which a quantile without a closed form is looked up
_NEWTON = 3  # most steps from there; a smooth one needs none
_BISECTIONS = 40  # halvings of one interval (1/16384) to float64's last bit, where Newton does not arrive (a kink)
_EXACT = 1e-13  # |cdf(t) - u| at which a quantile has arrived


def _invert(cubic: Any, left: Any, x: Any) -> Any:
    """Times at a share x of the rise of the cdf over the intervals `left`; tensors or arrays."""
    a, b, c = cubic
    return (left + x * (a + x * (b + x * c))) / _TABLE


class TimestepDistribution(ABC):
    """A distribution of training times. Subclasses are frozen dataclasses and print as the formula that they are."""

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """p(t), float64 in, float64 out."""

    @abstractmethod
    def cdf(self, t: Tensor) -> Tensor:
        """P(time <= t)."""

    @cached_property
    def _intervals(self) -> np.ndarray:
        """[6, _TABLE] of an even grid of times, made once for a distribution: what a quantile starts from.

        Of each interval: cdf at its start, rise of the cdf, the coefficients of the cubic that inverts the cdf, and 1
        where that cubic is the quantile as far as float64 goes.
        """
        t = torch.linspace(0, 1, _TABLE + 1, dtype=torch.float64)
        levels, density = self.cdf(t), self.density(t)
        rise = levels.diff().clamp_min(1e-300)
        # Slopes of the inverse at both ends, where both axes go from 0 to 1 (a cubic of Hermite's).
        start, end = (rise * _TABLE / density[:-1]), (rise * _TABLE / density[1:])
        cubic = torch.stack([start, 3 - 2 * start - end, start + end - 2])
        # With slopes below 3 it rises throughout (Fritsch and Carlson 1980); elsewhere a line does, such as at a kink.
        line = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)[:, None]
        table = torch.stack([levels[:-1], rise, *torch.where((start < 3) & (end < 3), cubic, line)])
        # What a cubic misses, it misses most of about the middle.
        inside = [(torch.full_like(rise, x), levels[:-1] + x * rise) for x in (0.25, 0.5, 0.75)]
        miss = [(self.cdf(_invert(table[2:], torch.arange(_TABLE), x)) - level).abs() for x, level in inside]
        exact = torch.stack(miss).amax(0) <= _EXACT
        return torch.cat([table, exact.double()[None]]).numpy()

    def quantile(self, u: Tensor) -> Tensor:
        """The inverse of `cdf`: a table and Newton's method, bisection where that fails; closed forms override it."""
        shape, u = u.shape, u.reshape(-1).double()
        # From the table, which mostly is the answer. By numpy, whose calls on a batch of times cost a fifth of torch's:
        # every step of a training asks.
        levels = u.numpy()
        left = (np.searchsorted(self._intervals[0], levels) - 1).clip(0, _TABLE - 1)
        start, rise, *cubic, exact = self._intervals[:, left]
        t = torch.from_numpy(_invert(cubic, left, ((levels - start) / rise).clip(0, 1)))
        if exact.all():
            return t.reshape(shape)
        # Newton's method, kept inside the interval in which the quantile must lie.
        low, high = torch.from_numpy(left / _TABLE), torch.from_numpy((left + 1) / _TABLE)
        for _ in range(_NEWTON):
            error = self.cdf(t) - u
            if (error.abs() <= _EXACT).all():
                return t.reshape(shape)
            t = (t - error / self.density(t).clamp_min(1e-300)).clamp(low, high)
        # Bisection of the same interval, where a step of Newton's leads nowhere.
        for _ in range(_BISECTIONS):
            t = (low + high) / 2
            below = self.cdf(t) < u
            low, high = torch.where(below, t, low), torch.where(below, high, t)
        return t.reshape(shape)

    def sample(self, batch: int, generator: torch.Generator, stratified: bool = False) -> Tensor:
        """Draw times [batch], float32, inside (0, 1).

        Args:
            batch: how many.
            generator: where randomness comes from.
            stratified: one draw from each of `batch` slices of equal probability, in random order: each example is
                distributed as before, and the batch's mean loss has less noise (as in variational diffusion models,
                arXiv 2107.00630, appendix I).
        """
        u = torch.rand(batch, generator=generator, dtype=torch.float64)
        if stratified:
            u = (torch.randperm(batch, generator=generator) + u) / batch
        return self.quantile(u).clamp(EDGE, 1 - EDGE).float()

    def mean(self) -> float:
        """The mean time, by the midpoint rule on the quantile."""
        u = (torch.arange(_QUADRATURE, dtype=torch.float64) + 0.5) / _QUADRATURE
        return float(self.quantile(u).mean())

    @abstractmethod
    def to_json(self) -> dict:
        """The distribution as plain JSON; `distribution_from_json` is the inverse."""


@dataclass(frozen=True)
class Uniform(TimestepDistribution):
    """Uniform on (0, 1)."""

    def density(self, t: Tensor) -> Tensor:
        return ((t >= 0) & (t <= 1)).to(t.dtype)

    def cdf(self, t: Tensor) -> Tensor:
        return t.clamp(0, 1)

    def quantile(self, u: Tensor) -> Tensor:
        return u

    def to_json(self) -> dict:
        return {"distribution": "uniform"}

    def __str__(self) -> str:
        return "U(0, 1)"


@dataclass(frozen=True)
class LogitNormal(TimestepDistribution):
    """logit(t) ~ Normal(mu, sigma) (arXiv 2403.03206, section 3.1); mu > 0 favours high noise."""

    mu: float = 0.0
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mu) and self.sigma > 0):
            raise ValueError(f"LogitNormal(mu={self.mu}, sigma={self.sigma}): mu finite, sigma positive")

    def density(self, t: Tensor) -> Tensor:
        # Off the ends, so that the logit is finite; the last line gives the ends density 0.
        inside = t.clamp(1e-300, 1 - 1e-16)
        z = (torch.logit(inside) - self.mu) / self.sigma
        p = torch.exp(-0.5 * z**2) / (self.sigma * math.sqrt(2 * math.pi) * inside * (1 - inside))
        return torch.where((t > 0) & (t < 1), p, torch.zeros_like(p))

    def cdf(self, t: Tensor) -> Tensor:
        return torch.special.ndtr((torch.logit(t.clamp(0, 1)) - self.mu) / self.sigma)

    def quantile(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mu + self.sigma * torch.special.ndtri(u))

    def to_json(self) -> dict:
        return {"distribution": "logit-normal", "mu": self.mu, "sigma": self.sigma}

    def __str__(self) -> str:
        return f"LogitNormal({self.mu:g}, {self.sigma:g})"


@dataclass(frozen=True)
class UniformAngle(TimestepDistribution):
    """The cosine path's own time (`process.path.cosine_angle`) uniform, as stable-audio-tools draws it for v.

    With t = sin / (sin + cos) of the angle, density (2 / pi) / ((1 - t)^2 + t^2): 1.27 at t = 0.5, 0.64 at both ends.
    """

    def density(self, t: Tensor) -> Tensor:
        inside = (t >= 0) & (t <= 1)
        return torch.where(inside, (2 / math.pi) / ((1 - t) ** 2 + t**2), torch.zeros_like(t))

    def cdf(self, t: Tensor) -> Tensor:
        t = t.clamp(0, 1)
        return torch.atan2(t, 1 - t) * (2 / math.pi)

    def quantile(self, u: Tensor) -> Tensor:
        angle = u * (math.pi / 2)
        return angle.sin() / (angle.sin() + angle.cos())

    def to_json(self) -> dict:
        return {"distribution": "uniform-angle"}

    def __str__(self) -> str:
        return "U(0, 1) of the cosine path's angle"


@dataclass(frozen=True)
class Shifted(TimestepDistribution):
    """t = s u / (1 + (s - 1) u) of a base distribution's u (arXiv 2403.03206, eq. 23); s > 1 favours high noise."""

    base: TimestepDistribution
    shift: float

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"Shifted: shift is {self.shift}; it must be positive")

    def _back(self, t: Tensor) -> Tensor:
        return t / (self.shift - (self.shift - 1) * t)

    def density(self, t: Tensor) -> Tensor:
        return self.base.density(self._back(t)) * self.shift / (self.shift - (self.shift - 1) * t) ** 2

    def cdf(self, t: Tensor) -> Tensor:
        return self.base.cdf(self._back(t.clamp(0, 1)))

    def quantile(self, u: Tensor) -> Tensor:
        inner = self.base.quantile(u)
        return self.shift * inner / (1 + (self.shift - 1) * inner)

    def to_json(self) -> dict:
        return {"distribution": "shifted", "shift": self.shift, "base": self.base.to_json()}

    def __str__(self) -> str:
        return f"{self.base} shifted by {self.shift:g}"


@dataclass(frozen=True)
class Truncated(TimestepDistribution):
    """A base distribution given that low <= t <= high."""

    base: TimestepDistribution
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"Truncated: needs 0 <= low < high <= 1, has {self.low} and {self.high}")
        low, high = self._ends()
        if not high - low > 1e-9:
            raise ValueError(f"Truncated: {self.base} has no mass on [{self.low:g}, {self.high:g}]")

    def _ends(self) -> Tensor:
        return self.base.cdf(torch.tensor([self.low, self.high], dtype=torch.float64))

    def density(self, t: Tensor) -> Tensor:
        low, high = self._ends()
        inside = (t >= self.low) & (t <= self.high)
        return torch.where(inside, self.base.density(t) / (high - low), torch.zeros_like(t))

    def cdf(self, t: Tensor) -> Tensor:
        low, high = self._ends()
        return (self.base.cdf(t.clamp(self.low, self.high)) - low) / (high - low)

    def quantile(self, u: Tensor) -> Tensor:
        low, high = self._ends()
        return self.base.quantile(low + u * (high - low)).clamp(self.low, self.high)

    def to_json(self) -> dict:
        return {"distribution": "truncated", "low": self.low, "high": self.high, "base": self.base.to_json()}

    def __str__(self) -> str:
        return f"{self.base} on [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class Mixture(TimestepDistribution):
    """floor * U(0, 1) + (1 - floor) * base: an emphasis under which no noise level starves (our definition)."""

    floor: float
    base: TimestepDistribution

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise ValueError(f"Mixture: floor is {self.floor}; it lies in [0, 1]")

    def density(self, t: Tensor) -> Tensor:
        return self.floor * Uniform().density(t) + (1 - self.floor) * self.base.density(t)

    def cdf(self, t: Tensor) -> Tensor:
        return self.floor * t.clamp(0, 1) + (1 - self.floor) * self.base.cdf(t)

    def to_json(self) -> dict:
        return {"distribution": "mixture", "floor": self.floor, "base": self.base.to_json()}

    def __str__(self) -> str:
        return f"{self.floor:g} U(0, 1) + {1 - self.floor:g} {self.base}"


@dataclass(frozen=True)
class Piecewise(TimestepDistribution):
    """Density proportional to weights at given times, linear between them, constant beyond the first and the last.

    Attributes:
        times: increasing, inside [0, 1].
        weights: as many, not negative, in any unit; not all zero.
    """

    times: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("times", "weights"):  # JSON knows lists only; a distribution is hashable
            object.__setattr__(self, name, tuple(float(x) for x in getattr(self, name)))
        if not self.times or len(self.times) != len(self.weights):
            raise ValueError(f"Piecewise: {len(self.times)} times but {len(self.weights)} weights")
        if not all(a < b for a, b in zip(self.times, self.times[1:])) or self.times[0] < 0 or self.times[-1] > 1:
            raise ValueError(f"Piecewise: times {self.times} must increase inside [0, 1]")
        if not (all(math.isfinite(w) and w >= 0 for w in self.weights) and sum(self.weights) > 0):
            raise ValueError(f"Piecewise: weights {self.weights} must be finite, not negative and not all zero")

    @cached_property
    def _segments(self) -> tuple[Tensor, Tensor, Tensor]:
        """(t [K], density [K], cdf [K]) at the knots, 0 and 1 among them."""
        times, weights = list(self.times), list(self.weights)
        if times[0] > 0:
            times, weights = [0.0, *times], [weights[0], *weights]
        if times[-1] < 1:
            times, weights = [*times, 1.0], [*weights, weights[-1]]
        t, p = torch.tensor(times, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)
        p = p / p.max()  # so that no unit of the weights over- or underflows
        mass = torch.cat([p.new_zeros(1), ((p[1:] + p[:-1]) / 2 * t.diff()).cumsum(0)])
        return t, p / mass[-1], mass / mass[-1]

    def _segment(self, x: Tensor, edges: Tensor) -> Tensor:
        return (torch.searchsorted(edges, x.contiguous(), right=True) - 1).clamp(0, len(edges) - 2)

    def density(self, t: Tensor) -> Tensor:
        knots, p, _ = self._segments
        i = self._segment(t.double(), knots)
        value = p[i] + (p[i + 1] - p[i]) * (t - knots[i]) / (knots[i + 1] - knots[i])
        return torch.where((t >= 0) & (t <= 1), value, torch.zeros_like(value)).to(t.dtype)

    def cdf(self, t: Tensor) -> Tensor:
        knots, p, mass = self._segments
        inside = t.double().clamp(0, 1)
        i = self._segment(inside, knots)
        step = inside - knots[i]
        slope = (p[i + 1] - p[i]) / (knots[i + 1] - knots[i])
        return (mass[i] + step * (p[i] + slope * step / 2)).to(t.dtype)

    def quantile(self, u: Tensor) -> Tensor:
        knots, p, mass = self._segments
        i = self._segment(u.double(), mass)
        excess = u.double() - mass[i]
        slope = (p[i + 1] - p[i]) / (knots[i + 1] - knots[i])
        # The root of mass + p s + slope s^2 / 2 = u in the form that stays exact where the slope vanishes.
        root = torch.sqrt((p[i] ** 2 + 2 * slope * excess).clamp_min(0))
        step = 2 * excess / (p[i] + root).clamp_min(1e-300)
        return torch.minimum(knots[i] + step, knots[i + 1]).to(u.dtype)

    def to_json(self) -> dict:
        return {"distribution": "piecewise", "times": list(self.times), "weights": list(self.weights)}

    def __str__(self) -> str:
        return "Piecewise(" + ", ".join(f"{t:g}: {w:.3g}" for t, w in zip(self.times, self.weights)) + ")"


@dataclass(frozen=True)
class Kumaraswamy(TimestepDistribution):
    """Density a b t^(a-1) (1 - t^a)^(b-1) (Kumaraswamy 1980): near a Beta, with a closed quantile; 1, 1 is uniform.

    Attributes:
        a, b: above 0. a > b favours high noise.
    """

    a: float
    b: float

    def __post_init__(self) -> None:
        if not (self.a > 0 and self.b > 0):
            raise ValueError(f"Kumaraswamy: a is {self.a} and b is {self.b}; both must be above 0")

    def density(self, t: Tensor) -> Tensor:
        inside = (t > 0) & (t < 1)
        t = t.clamp(EDGE, 1 - EDGE)
        return torch.where(inside, self.a * self.b * t ** (self.a - 1) * (1 - t**self.a) ** (self.b - 1), 0.0)

    def cdf(self, t: Tensor) -> Tensor:
        return 1 - (1 - t.clamp(0, 1) ** self.a) ** self.b

    def quantile(self, u: Tensor) -> Tensor:
        return (1 - (1 - u) ** (1 / self.b)) ** (1 / self.a)

    def score(self, t: float) -> tuple[float, float]:
        """Derivatives of the log density at t by ln a and by ln b."""
        t = min(max(t, EDGE), 1 - EDGE)
        power = t**self.a
        by_a = 1 + self.a * math.log(t) * (1 - (self.b - 1) * power / (1 - power))
        return by_a, 1 + self.b * math.log1p(-power)

    def to_json(self) -> dict:
        return {"distribution": "kumaraswamy", "a": self.a, "b": self.b}

    def __str__(self) -> str:
        return f"Kumaraswamy({self.a:.3g}, {self.b:.3g})"


def distribution_from_json(data: dict) -> TimestepDistribution:
    """The distribution that `to_json` wrote.

    Raises:
        KeyError: an unknown distribution or a missing number.
    """
    kinds = {
        "uniform": Uniform,
        "logit-normal": LogitNormal,
        "uniform-angle": UniformAngle,
        "shifted": Shifted,
        "truncated": Truncated,
        "mixture": Mixture,
        "piecewise": Piecewise,
        "kumaraswamy": Kumaraswamy,
    }
    name = data["distribution"] if "distribution" in data else data["law"]  # its name in older runs
    numbers = {k: v for k, v in data.items() if k not in ("distribution", "law", "base")}
    if "base" in data:
        numbers["base"] = distribution_from_json(data["base"])
    return kinds[name](**numbers)
