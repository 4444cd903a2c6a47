"""Laws of training times on (0, 1): frozen, sampled through their quantile function from an explicit generator.

A draw pushes uniform numbers through the quantile, so that stratified and independent draws share one code, and a law
is checked by quantile(cdf(t)) = t.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

# Times stay this far from the ends: at t = 0 a clean-sample prediction has no velocity, at t = 1 a logit is infinite.
EDGE = 1e-5
_QUADRATURE = 4096  # points of the midpoint rule behind `mean`
_BISECTIONS = 52  # halvings that bring a float64 quantile to its last bit


class TimestepLaw(ABC):
    """A distribution of training times. Subclasses are frozen dataclasses and print as the formula that they are."""

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """p(t), float64 in, float64 out."""

    @abstractmethod
    def cdf(self, t: Tensor) -> Tensor:
        """P(time <= t)."""

    def quantile(self, u: Tensor) -> Tensor:
        """The inverse of `cdf`, by bisection where no closed form overrides it."""
        low, high = torch.zeros_like(u), torch.ones_like(u)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            below = self.cdf(middle) < u
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def sample(self, batch: int, generator: torch.Generator, stratified: bool = False) -> Tensor:
        """Draw times [batch], float32, inside (0, 1).

        Args:
            batch: how many.
            generator: where randomness comes from.
            stratified: one draw from each of `batch` slices of equal probability, in random order: the same law for
                each example, and less noise in the batch's mean loss (as variational diffusion models do, arXiv
                2107.00630, appendix I).
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
        """The law as plain JSON; `law_from_json` is the inverse."""


@dataclass(frozen=True)
class Uniform(TimestepLaw):
    """Uniform on (0, 1)."""

    def density(self, t: Tensor) -> Tensor:
        return ((t >= 0) & (t <= 1)).to(t.dtype)

    def cdf(self, t: Tensor) -> Tensor:
        return t.clamp(0, 1)

    def quantile(self, u: Tensor) -> Tensor:
        return u

    def to_json(self) -> dict:
        return {"law": "uniform"}

    def __str__(self) -> str:
        return "U(0, 1)"


@dataclass(frozen=True)
class LogitNormal(TimestepLaw):
    """logit(t) ~ Normal(mu, sigma) (arXiv 2403.03206, section 3.1); mu > 0 leans to noise."""

    mu: float = 0.0
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mu) and self.sigma > 0):
            raise ValueError(f"LogitNormal(mu={self.mu}, sigma={self.sigma}): mu finite, sigma positive")

    def density(self, t: Tensor) -> Tensor:
        inside = t.clamp(1e-300, 1 - 1e-16)
        z = (torch.logit(inside) - self.mu) / self.sigma
        p = torch.exp(-0.5 * z**2) / (self.sigma * math.sqrt(2 * math.pi) * inside * (1 - inside))
        return torch.where((t > 0) & (t < 1), p, torch.zeros_like(p))

    def cdf(self, t: Tensor) -> Tensor:
        return torch.special.ndtr((torch.logit(t.clamp(0, 1)) - self.mu) / self.sigma)

    def quantile(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mu + self.sigma * torch.special.ndtri(u))

    def to_json(self) -> dict:
        return {"law": "logit-normal", "mu": self.mu, "sigma": self.sigma}

    def __str__(self) -> str:
        return f"LogitNormal({self.mu:g}, {self.sigma:g})"


@dataclass(frozen=True)
class Shifted(TimestepLaw):
    """t = s u / (1 + (s - 1) u) of a base law's u (arXiv 2403.03206, eq. 23); shift s > 1 leans to noise."""

    base: TimestepLaw
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
        return {"law": "shifted", "shift": self.shift, "base": self.base.to_json()}

    def __str__(self) -> str:
        return f"{self.base} shifted by {self.shift:g}"


@dataclass(frozen=True)
class Truncated(TimestepLaw):
    """A base law given that low <= t <= high."""

    base: TimestepLaw
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
        return {"law": "truncated", "low": self.low, "high": self.high, "base": self.base.to_json()}

    def __str__(self) -> str:
        return f"{self.base} on [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class Mixture(TimestepLaw):
    """floor * U(0, 1) + (1 - floor) * base: an emphasis under which no noise level starves (our definition)."""

    floor: float
    base: TimestepLaw

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise ValueError(f"Mixture: floor is {self.floor}; it lies in [0, 1]")

    def density(self, t: Tensor) -> Tensor:
        return self.floor * Uniform().density(t) + (1 - self.floor) * self.base.density(t)

    def cdf(self, t: Tensor) -> Tensor:
        return self.floor * t.clamp(0, 1) + (1 - self.floor) * self.base.cdf(t)

    def to_json(self) -> dict:
        return {"law": "mixture", "floor": self.floor, "base": self.base.to_json()}

    def __str__(self) -> str:
        return f"{self.floor:g} U(0, 1) + {1 - self.floor:g} {self.base}"


def law_from_json(data: dict) -> TimestepLaw:
    """The law that `to_json` wrote.

    Raises:
        KeyError: an unknown law or a missing number.
    """
    kinds = {
        "uniform": Uniform,
        "logit-normal": LogitNormal,
        "shifted": Shifted,
        "truncated": Truncated,
        "mixture": Mixture,
    }
    numbers = {k: v for k, v in data.items() if k not in ("law", "base")}
    if "base" in data:
        numbers["base"] = law_from_json(data["base"])
    return kinds[data["law"]](**numbers)
