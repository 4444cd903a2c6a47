"""Pictures of how a run went through its stages, from the "stage" lines of its log."""

from __future__ import annotations

from collections.abc import Sequence

from segue.report.curves import points
from segue.report.page import figure, image
from segue.report.pictures import Line, curve_png
from segue.report.structure import structure_figures

_SEEN = "examples seen"
_WIDTH_PX, _HEIGHT_PX = 720, 430


def stage_figures(events: Sequence[dict], name: str = "") -> list[str]:
    """HTML figures of one run: regime, alignment weight, mean t, discrepancy by t or condition gain, blocks.

    Args:
        events: lines of its log.jsonl.
        name: said in the titles where several runs share a page.

    Returns:
        What the lines have numbers for: nothing for a run that measured nothing and never moved.
    """
    lines = [e for e in events if e.get("event") == "stage"]
    # A static run without measurements has "stage" lines that say nothing.
    if not any(_is_number(e.get("regime")) or _is_number(e.get("discrepancy")) for e in lines):
        return []
    drawn = [
        _curves("regime r (0 semantic, 1 refinement)", _regime(lines), name),
        _curves("alignment weight", _nonzero(_series(lines, "alignment_weight")), name),
        _curves("mean t drawn", _series(lines, "timestep_mean"), name),
        _curves("SSL-space discrepancy", _discrepancy(lines), name),
        _curves("condition gain", _series(lines, "condition_gain", "C"), name),
    ]
    return [panel for panel in drawn if panel] + structure_figures(lines)


def _regime(lines: Sequence[dict]) -> dict[str, Line]:
    return _series(lines, "regime", "r") | _series(lines, "regime_monotone", "r_m (its running maximum)")


def _discrepancy(lines: Sequence[dict]) -> dict[str, Line]:
    times = sorted({t for e in lines for t in e.get("discrepancy_by_t") or {}}, key=float)
    found = {f"t = {t}": _line(lines, "discrepancy_by_t", t) for t in times} | {"mean D": _line(lines, "discrepancy")}
    return {name: line for name, line in found.items() if len(line.x)}


def _series(lines: Sequence[dict], key: str, name: str = "") -> dict[str, Line]:
    line = _line(lines, key)
    return {name or key: line} if len(line.x) else {}


def _nonzero(found: dict[str, Line]) -> dict[str, Line]:
    return {name: line for name, line in found.items() if any(line.y)}


def _line(lines: Sequence[dict], *keys: str) -> Line:
    return Line(*points(lines, "stage", *keys))


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
