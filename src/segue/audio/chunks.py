"""Streams of sound, cut into windows with context and joined again without a seam. Arrays are [n, channels]."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

_FADE_SEC = 0.02


@dataclass(frozen=True)
class Plan:
    """How a stream is cut.

    Attributes:
        total: samples of the stream.
        core: samples that each window is for; a multiple of the model's hop.
        context: samples computed on either side and discarded; a multiple of the hop, at least the fade.
        fade: samples over which neighbouring cores are cross-faded; even.
    """

    total: int
    core: int
    context: int
    fade: int

    @property
    def count(self) -> int:
        """How many windows there are: a rest shorter than a cross-fade belongs to the one before."""
        return max(1, -(-(self.total - self.fade) // self.core))


@dataclass(frozen=True)
class Window:
    """Samples `start` to `stop` of the stream, of which `first` to `last` are wanted."""

    start: int
    stop: int
    first: int
    last: int


def make_plan(total: int, core: int | None, context: int, hop: int, sample_rate_hz: int) -> Plan:
    """Cores of about `core` samples (None: one for all), each with `context` beside its half of the cross-fades."""
    # Even, so that each neighbour gives one half of the cross-fade.
    fade = 2 * round(_FADE_SEC * sample_rate_hz / 2)
    core = total if core is None else core
    # A core must hold a whole cross-fade, and whole hops keep the model's frames in step across windows.
    whole = max(hop, _multiple(fade, hop), core // hop * hop)
    # The context is counted from where the cross-fade begins, not from the core's own edge.
    return Plan(total, whole, _multiple(context + fade // 2, hop), fade)


def windows(plan: Plan) -> Iterator[Window]:
    """The windows of a plan, in order."""
    half = plan.fade // 2
    for index in range(plan.count):
        is_last = index + 1 == plan.count
        begin, end = index * plan.core, plan.total if is_last else (index + 1) * plan.core
        yield Window(
            max(0, begin - plan.context),
            min(plan.total, end + plan.context),
            # Each window reaches half a cross-fade into its neighbours; the stream's two ends have none.
            begin - half if index else 0,
            end if is_last else end + half,
        )


def cut(blocks: Iterable[np.ndarray], plan: Plan) -> Iterator[tuple[Window, np.ndarray]]:
    """Each window with its samples. Holds no more than one window and one block."""
    blocks = iter(blocks)
    held = None
    start = 0
    for window in windows(plan):
        while held is None or start + len(held) < window.stop:
            block = next(blocks)
            held = block if held is None else np.concatenate([held, block])
        held, start = held[window.start - start :], window.start
        yield window, held[: window.stop - window.start]


def joined(pieces: Iterable[tuple[Window, np.ndarray]], plan: Plan) -> Iterator[np.ndarray]:
    """The wanted parts of the windows, cross-faded linearly where they overlap: a stream of `plan.total` samples."""
    # Samples in the middle of their steps: rise and its mirror image then add to exactly 1.
    rise = ((np.arange(plan.fade, dtype=np.float32) + 0.5) / plan.fade)[:, None]
    tail = None
    for window, piece in pieces:
        if tail is not None:
            piece = np.concatenate([tail * (1 - rise) + piece[: plan.fade] * rise, piece[plan.fade :]])
        if window.last < plan.total:
            piece, tail = piece[: -plan.fade], piece[-plan.fade :]
        yield piece


def _multiple(samples: int, of: int) -> int:
    return -(-samples // of) * of
