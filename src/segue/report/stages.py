"""Pictures of how a run went through its stages, from the "stage" lines of its log."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from segue.report import pictures
from segue.report.compare import Line, curve_png
from segue.report.page import figure, image

_SEEN = "examples seen"
_WIDTH_PX, _HEIGHT_PX = 720, 430


def stage_figures(events: Sequence[dict], name: str = "") -> list[str]:
    """HTML figures of one run: regime, guidance weight, mean t, discrepancy by t, groups of blocks, their similarity.

    Args:
        events: lines of its log.jsonl.
        name: said in the titles where several runs share a page.

    Returns:
        What the lines have numbers for: nothing for a run that never probed and never moved.
    """
    lines = [e for e in events if e.get("event") == "stage"]
    if not any(_is_number(e.get("regime")) or _is_number(e.get("discrepancy")) for e in lines):
        return []
    drawn = [
        _curves("regime r (0 semantic, 1 refinement)", _regime(lines), name),
        _curves("guidance weight", _nonzero(_series(lines, "guidance_weight")), name),
        _curves("mean t of the law", _series(lines, "timestep_mean"), name),
        _curves("SSL-space discrepancy", _discrepancy(lines), name),
        _picture("groups of blocks", _groups_png(lines), name),
        _picture("similarity of blocks at the last check", _similarity_png(lines), name),
    ]
    return [panel for panel in drawn if panel]


def _regime(lines: Sequence[dict]) -> dict[str, Line]:
    return _series(lines, "regime", "r") | _series(lines, "regime_monotone", "r_m (its running maximum)")


def _discrepancy(lines: Sequence[dict]) -> dict[str, Line]:
    times = sorted({t for e in lines for t in e.get("discrepancy_by_t") or {}}, key=float)
    found = {f"t = {t}": _line(lines, lambda e, t=t: (e.get("discrepancy_by_t") or {}).get(t)) for t in times}
    found["mean D"] = _line(lines, lambda e: e.get("discrepancy"))
    return {name: line for name, line in found.items() if line.x}


def _series(lines: Sequence[dict], key: str, name: str = "") -> dict[str, Line]:
    line = _line(lines, lambda e: e.get(key))
    return {name or key: line} if line.x else {}


def _nonzero(found: dict[str, Line]) -> dict[str, Line]:
    return {name: line for name, line in found.items() if any(line.y)}


def _line(lines: Sequence[dict], value: Callable[[dict], object]) -> Line:
    points = [(e["examples_seen"], value(e)) for e in lines]
    points = [(x, y) for x, y in points if _is_number(y)]
    return Line([x for x, _ in points], [float(y) for _, y in points])


def _groups_png(lines: Sequence[dict]) -> bytes | None:
    """Blocks upward, examples to the right, a colour a group; grey: outside every group."""
    checks = [(e["examples_seen"], e["groups"]) for e in lines if isinstance(e.get("groups"), list) and e["groups"]]
    if not checks:
        return None
    checks = [(seen, groups) for seen, groups in checks if len(groups) == len(checks[-1][1])]
    colours = {-1: pictures._GREY}
    canvas, axes = pictures._figure(_WIDTH_PX, _HEIGHT_PX, True)
    changes = [k for k in range(len(checks)) if k == 0 or checks[k][1] != checks[k - 1][1]]
    last = checks[-1][0] + max(1.0, (checks[-1][0] - checks[0][0]) / max(1, len(checks) - 1))
    for k, end in zip(changes, [*(checks[k][0] for k in changes[1:]), last]):
        start, groups = checks[k]
        for block, label in enumerate(groups):
            colour = colours.setdefault(label, pictures.COLOURS[label % len(pictures.COLOURS)])
            axes.barh(block, end - start, left=start, height=0.86, color=colour, alpha=0.25 if label < 0 else 0.9)
    active = [e["examples_seen"] for e in lines if e.get("structure_active")]
    if active:
        axes.axvline(active[0], color=pictures._GREY, linestyle="--", linewidth=1.2)
        axes.annotate("active", (active[0], len(checks[-1][1]) - 0.4), color=pictures._GREY, fontsize=8)
    axes.set_yticks(range(len(checks[-1][1])))
    axes.set_ylabel("block")
    axes.set_xlabel(_SEEN)
    axes.set_title("groups of blocks", color=pictures._GREY, fontsize=10, loc="left", fontweight="bold")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}")
    return pictures._png(canvas)


def _similarity_png(lines: Sequence[dict]) -> bytes | None:
    """The last similarity matrix [L, L], with its values where they can be read."""
    checks = [e for e in lines if isinstance(e.get("similarity"), list) and e["similarity"]]
    if not checks:
        return None
    matrix = np.asarray(checks[-1]["similarity"], dtype=float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        return None
    canvas, axes = pictures._figure(_WIDTH_PX, _HEIGHT_PX, True)
    apart = matrix[~np.eye(len(matrix), dtype=bool)]
    low, high = (float(apart.min()), float(apart.max())) if apart.size else (0.0, 1.0)
    high = high if high > low else low + 1e-6
    axes.imshow(matrix, cmap="viridis", vmin=low, vmax=high, interpolation="nearest", aspect="auto")
    if len(matrix) <= 12:
        for (row, column), value in np.ndenumerate(matrix):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5,
                      color="black" if value > low + 0.6 * (high - low) else "white")  # fmt: skip
    axes.set_xticks(range(len(matrix)))
    axes.set_yticks(range(len(matrix)))
    title = f"similarity of blocks at {checks[-1]['examples_seen']:,} examples"
    axes.set_title(title, color=pictures._GREY, fontsize=10, loc="left", fontweight="bold")
    return pictures._png(canvas)


def _curves(title: str, series: dict[str, Line], name: str) -> str:
    if not series:
        return ""
    return _picture(title, curve_png(series, _SEEN, title, width_px=_WIDTH_PX, height_px=_HEIGHT_PX), name)


def _picture(title: str, png: bytes | None, name: str) -> str:
    if png is None:
        return ""
    return figure(image(png, f"{title} over {_SEEN}" + (f", {name}" if name else "")))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
