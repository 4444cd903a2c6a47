"""A figure with all that is needed to read it, quote it and make it again: value, interval, N and metric card."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from segue._version import __version__
from segue.evaluation.bootstrap import bootstrap_interval
from segue.types import UserError


@dataclass(frozen=True)
class Measure:
    """One figure.

    Attributes:
        name: of the measure, with its direction or scale where there are several.
        value: finite; what cannot be computed raises instead.
        interval: bootstrap interval over clips; the card says how it was drawn.
        n: number of clips (or pairs) that the interval is drawn over.
        unit: of value and interval; empty where it has none.
        better: "higher" or "lower".
        card: every parameter, the embedding with the hash of its weights, preprocessing, versions; plain JSON.
    """

    name: str
    value: float
    interval: tuple[float, float]
    n: int
    unit: str
    better: str
    card: dict

    def to_json(self) -> dict:
        """Plain data for a JSON file."""
        return asdict(self)


def make_measure(
    name: str,
    value: float,
    interval: tuple[float, float],
    n: int,
    *,
    better: str,
    unit: str = "",
    parameters: Mapping | None = None,
    embedding: Mapping | None = None,
) -> Measure:
    """A measure with its card.

    Raises:
        UserError: value or interval is not finite: no number stands for "could not be computed".
    """
    # Refused here, so that no table can hold a NaN that looks like a figure.
    if not all(math.isfinite(x) for x in (value, *interval)):
        raise UserError(f"{name} is {value:g} [{interval[0]:g}, {interval[1]:g}] here: it cannot be computed")
    card = {"measure": name, **(parameters or {}), "versions": versions()}
    if embedding is not None:
        card["embedding"] = dict(embedding)
    return Measure(name, float(value), (float(interval[0]), float(interval[1])), int(n), unit, better, card)


def mean_over_clips(
    name: str,
    by_clip: np.ndarray,
    *,
    better: str,
    unit: str = "",
    parameters: Mapping | None = None,
    embedding: Mapping | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Measure:
    """The mean of one number a clip [N], with its bootstrap interval over clips.

    Raises:
        UserError: fewer than two clips, or a number that is not finite.
    """
    by_clip = np.asarray(by_clip, dtype=np.float64)
    if by_clip.ndim != 1 or len(by_clip) < 2:
        raise UserError(f"{name} needs at least 2 clips for an interval; got {list(by_clip.shape)}")
    # Counted and named instead of left out: a mean over what is left would be another figure.
    broken = np.flatnonzero(~np.isfinite(by_clip))
    if len(broken):
        raise UserError(
            f"{name} is not finite for {len(broken)} of {len(by_clip)} clips (equal to their reference, or silent)"
        )
    by_clip = np.sort(by_clip)  # the order of the clips then changes nothing, not even the last digit
    interval = bootstrap_interval(lambda i: by_clip[i].mean(), len(by_clip), draws=draws, level=level, seed=seed)
    about = {"aggregation": "mean over clips", "interval": bootstrap_words(draws, level, seed), **(parameters or {})}
    return make_measure(
        name, by_clip.mean(), interval, len(by_clip), better=better, unit=unit, parameters=about, embedding=embedding
    )


def bootstrap_words(draws: int, level: float, seed: int, how: str = "percentile bootstrap over clips") -> str:
    """How an interval was drawn, for a card."""
    return f"{how}, {draws} draws, level {level:g}, seed {seed}"


def versions() -> dict[str, str]:
    """Of this package and of what computes its figures."""
    found = {"segue": __version__, "python": platform.python_version()}
    # Whatever may change a digit; what is not installed has changed none.
    for package in ("numpy", "torch", "soxr", "soundfile", "transformers", "visqol-python"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
