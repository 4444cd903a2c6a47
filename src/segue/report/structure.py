"""Pictures of block structure over training, from the "stage" lines of log.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from segue.report.page import figure, image
from segue.report.pictures import _GREY, COLOURS, _figure, _png
from segue.types import UserError, import_extra

_SHOWN = 3  # similarity matrices side by side: the first check, the middle one, the last


def structure_figures(events: Sequence[dict]) -> list[str]:
    """HTML figures of one run's events: similarity of its blocks at up to three checks, and their groups over training.

    Empty where the log holds no structure check.
    """
    checks = [e for e in events if e.get("event") == "stage" and e.get("similarity")]
    if not checks:
        return []
    # The set drops what a short run repeats: its first check may also be its last.
    chosen = [checks[i] for i in sorted({0, len(checks) // 2, len(checks) - 1})][-_SHOWN:]
    tables = [(f"{_thousands(e['examples_seen'])} examples", e["similarity"]) for e in chosen]
    pictures = [figure(image(similarity_png(tables), "similarity of block weights at several checks"))]
    grouped = [e for e in checks if e.get("groups")]
    if grouped:
        seen = [e["examples_seen"] for e in grouped]
        groups = [e["groups"] for e in grouped]
        active = [e["examples_seen"] for e in events if e.get("event") == "stage" and e.get("structure_active") is True]
        png = groups_png(seen, groups, min(active, default=None))
        pictures.append(figure(image(png, "groups of blocks over training"), _caption(events)))
    return pictures


def similarity_png(
    tables: Sequence[tuple[str, Sequence[Sequence[float]]]], *, width_px: int = 720, height_px: int = 300
) -> bytes:
    """Matrices [L, L] of similarity, titled, side by side on one colour scale from 0 to the largest off the diagonal.

    Raises:
        UserError: no table, or one that is not square and finite.
    """
    arrays = [(title, np.asarray(table, dtype=float)) for title, table in tables]
    if not arrays or any(a.ndim != 2 or a.shape[0] != a.shape[1] or not np.isfinite(a).all() for _, a in arrays):
        raise UserError("a picture of block similarity needs square tables of finite numbers; got none or others")
    # Of all tables together, so that colours compare between them.
    highest = max((float(a[~np.eye(len(a), dtype=bool)].max(initial=0.0)) for _, a in arrays), default=0.0)
    drawing, first = _figure(width_px, height_px, titled=True)
    left, bottom, right, top = first.get_position().extents
    # The drawing's own axes gave the margins; each matrix then gets a part of their width.
    first.remove()
    right -= 0.09  # room for the scale
    step = (right - left) / len(arrays)
    for index, (title, table) in enumerate(arrays):
        axes = drawing.add_axes((left + index * step, bottom, 0.86 * step, top - bottom))
        # The diagonal is 1 by definition and would wash out the rest.
        shown = np.ma.masked_array(table, np.eye(len(table), dtype=bool))
        drawn = axes.imshow(shown, cmap="viridis", vmin=0.0, vmax=highest or 1.0, interpolation="nearest")
        axes.set_title(title, color=_GREY, fontsize=8, loc="left")
        _style(axes)
        axes.locator_params(nbins=5, integer=True)
        axes.set_xlabel("block", color=_GREY, fontsize=8.5)
        if index == 0:
            axes.set_ylabel("block", color=_GREY, fontsize=8.5)
    scale = drawing.colorbar(drawn, cax=drawing.add_axes((right + 0.005, bottom, 0.018, top - bottom)))
    scale.outline.set_visible(False)
    scale.ax.tick_params(colors=_GREY, labelsize=8)
    return _png(drawing)


def groups_png(
    seen: Sequence[int],
    groups: Sequence[Sequence[int]],
    active_at: int | None = None,
    *,
    width_px: int = 720,
    height_px: int = 300,
) -> bytes:
    """Group of each block (rows) at each check (columns), one colour a group; excluded blocks stay empty.

    Groups keep their colours from check to check as well as their members allow. A line marks activation.

    Raises:
        UserError: the checks differ in their number of blocks, or are none.
    """
    if not seen or len(seen) != len(groups) or len({len(g) for g in groups}) != 1:
        raise UserError("a picture of block groups needs checks with the same blocks each; got none or others")
    followed = np.asarray(follow_groups(groups)).T  # [blocks, checks]
    drawing, axes = _figure(width_px, height_px, titled=True)
    colours = import_extra("matplotlib.colors", "train")
    count = max(1, int(followed.max()) + 1)
    # One colour a group, followed from check to check.
    # As many colours as groups in the longest list; they repeat beyond six.
    cycle = colours.ListedColormap([COLOURS[i % len(COLOURS)] for i in range(count)])
    axes.imshow(
        np.ma.masked_less(followed, 0), cmap=cycle, vmin=-0.5, vmax=count - 0.5, aspect="auto", interpolation="nearest",
        origin="lower",
    )  # fmt: skip
    ticks = sorted({round(i) for i in np.linspace(0, len(seen) - 1, min(7, len(seen)))})
    axes.set_xticks(ticks, [_thousands(seen[i]) for i in ticks])
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("examples seen, one column a check")
    axes.set_ylabel("block")
    axes.set_title("groups of blocks", color=_GREY, fontsize=10, loc="left", fontweight="bold")
    if active_at is not None:
        # Checks before the activation are columns to the left of the line.
        column = sum(n < active_at for n in seen) - 0.5
        axes.axvline(column, color=_GREY, linewidth=1.6)
        axes.annotate(
            "term on", (column, 1.01), xycoords=("data", "axes fraction"), color=_GREY, fontsize=8, ha="center"
        )
    return _png(drawing)


def follow_groups(groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Labels renamed so that each check's groups keep the names of the earlier groups with most members in common.

    -1 (excluded) stays. Names of groups that end are free again.
    """
    assignment = import_extra("scipy.optimize", "train").linear_sum_assignment
    followed: list[list[int]] = []
    for labels in groups:
        if not followed:
            followed.append([int(label) for label in labels])
            continue
        size = 1 + max(*labels, *followed[-1], 0)
        shared = np.zeros((size, size))
        for now, before in zip(labels, followed[-1]):
            if now >= 0 and before >= 0:
                # How many blocks each pair of groups has in common, from one check to the next.
                shared[now, before] += 1
        # The assignment that keeps most blocks under their old name; it minimises, so that counts are turned over.
        names = dict(zip(*(part.tolist() for part in assignment(-shared))))
        followed.append([names[label] if label >= 0 else -1 for label in labels])
    return followed


def _caption(events: Sequence[dict]) -> str:
    """What the last line that says anything of structure says."""
    # From the end, since the last reason is the one that stands.
    for event in reversed(events):
        if event.get("event") == "stage" and isinstance(event.get("structure_reason"), str):
            return f"block term {event['structure_reason']}"
    on = any(e.get("structure_active") is True for e in events)
    return f"block term {'switched on' if on else 'off throughout'}"


def _style(axes) -> None:
    axes.patch.set_alpha(0.0)
    axes.tick_params(colors=_GREY, labelsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _thousands(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else str(value)
