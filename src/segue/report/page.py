"""Parts of a page: HTML that needs no network, no script and no file beside it."""

from __future__ import annotations

import base64
import wave as wave_file
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np

from segue.files import write_text

CSS = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--line:#e3e6ec;--text:#1c2230;--soft:#626b7c;--accent:#3b82f6;
--warm:#b45309;--warm-bg:#fef3c7;--track:#e8ebf1;--code:#f0f2f6}
@media (prefers-color-scheme:dark){:root{--bg:#0f1218;--card:#171b23;--line:#2a303c;--text:#e7eaf0;--soft:#98a1b2;
--accent:#60a5fa;--warm:#fcd34d;--warm-bg:#3b2f10;--track:#2a303c;--code:#11151c}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--text);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,Ubuntu,
"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:40px 24px 72px}
h1{font-size:30px;line-height:1.2;margin:0 0 6px;letter-spacing:-.02em}
h2{font-size:20px;margin:44px 0 12px;letter-spacing:-.01em}
h3{font-size:16px;margin:0;font-weight:600}
p{margin:8px 0;max-width:80ch}
.lead,.note,figcaption,.classified,dt{color:var(--soft)}
.note,figcaption,.classified{font-size:13px}
.chips{display:flex;flex-wrap:wrap;gap:6px;margin:14px 0 18px;padding:0;list-style:none}
.chips li{border:1px solid var(--line);border-radius:999px;padding:2px 11px;font-size:13px;color:var(--soft);
background:var(--card)}
.chips b{color:var(--text);font-weight:600}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px 18px;margin:14px 0;
overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:9px 12px;text-align:left;vertical-align:top;white-space:nowrap}
th{font-size:12.5px;font-weight:600;color:var(--soft);border-bottom:1px solid var(--line);vertical-align:bottom}
tbody th{color:var(--text);font-size:15px;border-bottom:0;font-weight:600;vertical-align:top}
tr+tr>*{border-top:1px solid var(--line)}
tr.ceiling>*{color:var(--soft);font-weight:400}
td small{display:block;color:var(--soft);font-size:12px}
svg.bar{display:block;margin-top:5px}
.track{fill:var(--track)}.fill{fill:var(--accent)}.ceiling .fill{fill:var(--soft)}
.whisker{stroke:var(--text);stroke-width:1.5}.chance{stroke:var(--warm);stroke-width:2}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(290px,1fr));gap:14px 18px}
.sounds{grid-template-columns:repeat(auto-fit,minmax(210px,1fr))}
figure{margin:0}figure img{display:block;width:100%;height:auto}
audio{display:block;width:100%;height:34px;margin:6px 0 4px}
.label{font-size:13px;font-weight:600;margin:0 0 4px}
.prompt{display:flex;flex-wrap:wrap;align-items:center;gap:8px;margin-bottom:12px}
.prompt i{font-style:normal;color:var(--soft);font-size:13px}
.badge{background:var(--warm-bg);color:var(--warm);font-size:12px;font-weight:600;border-radius:6px;padding:1px 8px}
pre{background:var(--code);border:1px solid var(--line);border-radius:8px;padding:12px 14px;overflow-x:auto;
font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;margin:8px 0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px;margin:0}dd{margin:0;overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--soft)}details{margin:28px 0}
.verdict{margin:0 0 14px;padding:0;list-style:none}
.verdict li{border-left:3px solid var(--accent);padding:1px 12px;margin:6px 0;max-width:90ch}
.verdict li.warn{border-color:var(--warm)}
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def heading(title: str, lead: str, chips: Sequence[tuple[str, str]]) -> str:
    """Title, one line of what this is, and facts as chips; facts that are empty are left out."""
    items = "".join(f"<li>{escape(name)} <b>{escape(value)}</b></li>" for name, value in chips if value)
    return f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p><ul class="chips">{items}</ul>'


def image(png: bytes, words: str) -> str:
    """A picture inside the page; `words` for those who cannot see it."""
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def player(wave: np.ndarray, sample_rate_hz: int) -> str:
    """A player that carries its sound, [T] or [A, T]."""
    sound = base64.b64encode(wav_bytes(wave, sample_rate_hz)).decode()
    return f'<audio controls preload="metadata" src="data:audio/wav;base64,{sound}"></audio>'


def wav_bytes(wave: np.ndarray, sample_rate_hz: int) -> bytes:
    """[T] or [A, T] float -> WAV, PCM 16; samples beyond full scale are clipped."""
    # Clipped and rounded, not wrapped: int16 would turn an overshoot into a click.
    samples = np.clip(np.atleast_2d(np.asarray(wave, dtype=np.float64)), -1.0, 1.0)
    buffer = BytesIO()
    with wave_file.open(buffer, "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(2)
        file.setframerate(sample_rate_hz)
        file.writeframes(np.round(samples.T * 32767.0).astype("<i2").tobytes())
    return buffer.getvalue()


def figure(content: str, caption: str = "") -> str:
    """Something to look at, with a line under it."""
    return f"<figure>{content}{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}</figure>"


def bar(value: float, interval: Sequence[float] | None, chance: float | None, width_px: int = 132) -> str:
    """A share in [0, 1] as a bar, its interval as a whisker, chance as a tick."""
    parts = [
        f'<rect class="track" width="{width_px}" height="8" y="3" rx="4"/>',
        f'<rect class="fill" width="{width_px * value:.1f}" height="8" y="3" rx="4"/>',
    ]
    if interval:
        low, high = (width_px * x for x in interval)
        parts.append(f'<path class="whisker" fill="none" d="M{low:.1f} 7H{high:.1f}M{low:.1f} 4v6M{high:.1f} 4v6"/>')
    if chance is not None:
        parts.append(f'<path class="chance" d="M{width_px * chance:.1f} 0v14"/>')
    return f'<svg class="bar" width="{width_px}" height="14" aria-hidden="true">{"".join(parts)}</svg>'


def table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str], bool]]) -> str:
    """A table in a card. rows: (name, cells as HTML, whether it is a reference rather than a competitor)."""
    # Everything that is shown is escaped, since captions and names are anybody's text.
    header = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr{' class=ceiling' if ceiling else ''}><th>{escape(name)}</th><td>{'</td><td>'.join(cells)}</td></tr>"
        for name, cells, ceiling in rows
    )
    return f'<div class="card"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def folded(title: str, content: str) -> str:
    """Something that most readers do not need, behind its title."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and values as a list; nested values are flattened to dotted names."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(number(value))}</dd>" for name, value in flatten(pairs))
    return f'<div class="card"><dl>{items}</dl></div>'


def flatten(pairs: Iterable[tuple[str, object]]) -> list[tuple[str, object]]:
    """("a", {"b": 1}) -> ("a.b", 1)."""
    flat: list[tuple[str, object]] = []
    for name, value in pairs:
        if isinstance(value, dict):
            flat += flatten((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            flat.append((name, value))
    return flat


def number(value: object) -> str:
    """A value as people read it: three significant digits, thousands apart, lists with commas."""
    # True is an int, too, and would be shown as 1.
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(number, value))
    return str(value)


def duration(seconds: float) -> str:
    """Seconds as 45 s, 3 min 20 s or 2 h 5 min."""
    # Rounded first: 59.7 s is a minute.
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def write_page(path: Path, text: str) -> Path:
    """Write a page whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    write_text(path, text)
    return path
