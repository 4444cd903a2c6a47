"""Pictures as PNG bytes. Transparent, with mid-grey text, so that they read on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from torch import Tensor

from segue.evaluation.mel import mel_edges_hz, mel_magnitude
from segue.types import UserError, import_extra

# Two variants side by side is the usual case: blue and orange stay apart for colour-blind eyes.
COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#e0559a", "#8b5cf6", "#94a3b8")
SPECTROGRAM_RANGE_DB = (-95.0, -15.0)
_GREY = "#858b98"
_DASHES = ("-", "--", ":", "-.")
_N_FFT = 1024
_BANDS = 96
_DPI = 160
_LEFT_IN, _RIGHT_IN = 0.62, 0.08  # margins of every picture


def spectrogram_png(
    wave: np.ndarray,
    sample_rate_hz: int,
    *,
    width_px: int = 640,
    height_px: int = 300,
    range_db=SPECTROGRAM_RANGE_DB,
    linear: bool = False,
) -> bytes:
    """Log-mel spectrogram of one clip [T] or [A, T]: 96 HTK bands, 1024-point Hann window, axes in s and Hz.

    `linear` draws the bins themselves, 15 Hz apart at 16 kHz: the upper half of a band is then half of the picture.

    Colour is dB relative to a full-scale sine over a fixed range, so that pictures of different clips compare.

    Raises:
        UserError: not one non-empty clip of finite samples, or matplotlib is not installed.
    """
    wave = np.asarray(wave, dtype=np.float32)
    # Of a stereo sound the mean of its sides is drawn.
    wave = wave.mean(axis=0) if wave.ndim == 2 and wave.size else wave
    if wave.ndim != 1 or wave.size == 0 or not np.isfinite(wave).all():
        raise UserError(f"a spectrogram needs one clip [T] or [A, T] of finite samples; got {list(wave.shape)}")
    clip = torch.from_numpy(wave)
    decibels = linear_db(clip) if linear else log_mel_db(clip, sample_rate_hz)
    figure, axes = _figure(width_px, height_px)
    axes.imshow(
        decibels.numpy(), origin="lower", aspect="auto", cmap="magma", vmin=range_db[0], vmax=range_db[1],
        extent=(0.0, wave.size / sample_rate_hz, -0.5, len(decibels) - 0.5), interpolation="nearest",
    )  # fmt: skip
    # Ticks at round frequencies, at the rows of the picture that stand for them.
    if linear:
        ticks_hz = list(range(0, sample_rate_hz // 2 + 1, 2000 * max(1, sample_rate_hz // 20_000)))
        places = np.array(ticks_hz) * _N_FFT / sample_rate_hz
    else:
        # Not up to the very edge, where a label would be cut.
        ticks_hz = [f for f in (250, 500, 1000, 2000, 4000, 8000, 16000) if f < 0.9 * sample_rate_hz / 2]
        places = np.interp(ticks_hz, mel_edges_hz(_BANDS, 0.0, sample_rate_hz / 2.0)[1:-1].numpy(), np.arange(_BANDS))
    axes.set_yticks(places, [f"{f:,}".replace(",", " ") for f in ticks_hz])
    axes.set_ylabel("Hz")
    axes.set_xlabel("s")
    axes.locator_params(axis="x", nbins=5)
    return _png(figure)


def waveform_png(
    wave: np.ndarray,
    sample_rate_hz: int,
    *,
    marked_sec: tuple[float, float | None] | None = None,
    width_px: int = 1120,
    height_px: int = 220,
) -> bytes:
    """The outline of a clip [A, T] over its seconds, perhaps with a marked range; `waveform_sec` reads a click on it.

    Args:
        marked_sec: begin and end of the range; without an end its begin alone is drawn.
    """
    mono = np.asarray(wave, np.float32).reshape(-1, np.shape(wave)[-1]).mean(axis=0)
    seconds = mono.size / sample_rate_hz
    # As many columns as the picture has pixels, each from its lowest to its highest sample.
    columns = np.array_split(mono, min(mono.size, width_px))
    x = np.linspace(0.0, seconds, len(columns))
    figure, axes = _figure(width_px, height_px)
    axes.fill_between(x, [c.min() for c in columns], [c.max() for c in columns], color=COLOURS[0], linewidth=0.6)
    if marked_sec is not None:
        begin, end = marked_sec
        axes.axvline(begin, color=COLOURS[1], linewidth=1.5)
        if end is not None:
            axes.axvspan(begin, end, color=COLOURS[1], alpha=0.25, linewidth=0)
            axes.axvline(end, color=COLOURS[1], linewidth=1.5)
    axes.set_xlim(0.0, seconds)
    top = max(1e-4, float(np.abs(mono).max(initial=0.0))) * 1.05
    axes.set_ylim(-top, top)
    axes.set_yticks([])
    axes.set_xlabel("s")
    return _png(figure)


def waveform_sec(x_px: float, seconds: float, width_px: int = 1120) -> float:
    """The second of a clip at a place on its `waveform_png`, counted from the left."""
    left, right = _LEFT_IN * _DPI, width_px - _RIGHT_IN * _DPI
    return min(seconds, max(0.0, (x_px - left) / (right - left) * seconds))


def log_mel_db(wave: Tensor, sample_rate_hz: int) -> Tensor:
    """[T] -> [96 HTK bands, frames] in dB below a full-scale sine; about 512 frames, however long the clip."""
    return _decibels(mel_magnitude(wave[None], sample_rate_hz, n_fft=_N_FFT, hop_samples=_hop(wave), bands=_BANDS)[0])


def linear_db(wave: Tensor) -> Tensor:
    """[T] -> [bins, frames], as `log_mel_db`."""
    window = torch.hann_window(_N_FFT)
    return _decibels(
        torch.stft(wave, _N_FFT, _hop(wave), window=window, pad_mode="constant", return_complex=True).abs()
    )


def _hop(wave: Tensor) -> int:
    return max(64, len(wave) // 512)


def _decibels(magnitude: Tensor) -> Tensor:
    full_scale = _N_FFT / 4.0  # what a sine of amplitude 1 reads through a Hann window
    return 20.0 * torch.log10((magnitude / full_scale).clamp(min=1e-8))


@dataclass(frozen=True)
class Line:
    """A curve, perhaps with an interval at each point."""

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    low: Sequence[float] | np.ndarray | None = None
    high: Sequence[float] | np.ndarray | None = None


def curve_png(
    lines: Mapping[str, Line],
    xlabel: str,
    title: str,
    *,
    width_px: int = 900,
    height_px: int = 560,
    names: Sequence[str] = (),
) -> bytes:
    """Curves in the colours of all our pictures; beyond six, the same colours dashed. Intervals as pale bands.

    Args:
        names: of all curves that a page compares, some of which may be missing here: each keeps its colour.
    """
    figure, axes = _figure(width_px, height_px, titled=True)
    places = {name: place for place, name in enumerate(dict.fromkeys([*names, *lines]))}
    # Colours repeat with another dash, so that every line has a look of its own.
    for name, line in lines.items():
        index = places[name]
        colour = COLOURS[index % len(COLOURS)]
        dash = _DASHES[index // len(COLOURS) % len(_DASHES)]
        axes.plot(line.x, line.y, dash, color=colour, label=name, linewidth=1.8,
                  marker="o" if len(line.x) <= 24 else None, markersize=3.5)  # fmt: skip
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.12, linewidth=0)
    # Bands of few runs are wide: the curves decide the frame.
    if any(line.low is not None for line in lines.values()):
        _frame_on_means(axes, lines)
    axes.grid(True, color=_GREY, alpha=0.22, linewidth=0.7)
    axes.set_xlabel(xlabel)
    axes.set_title(title, color=_GREY, fontsize=10, loc="left", fontweight="bold")
    if len(lines) > 1:
        axes.legend(frameon=False, labelcolor=_GREY, fontsize=7.5, ncols=1 + len(lines) // 7)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}")
    return _png(figure)


def _frame_on_means(axes, lines: Mapping[str, Line]) -> None:
    """Let the curves, not the widest band of a few seeds, set the height of the picture."""
    values = np.concatenate([np.asarray(line.y, float) for line in lines.values()])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.35 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(low - room, high + room)


def _figure(width_px: int, height_px: int, titled: bool = False):
    """A transparent figure that knows no global state (no pyplot) and draws without a screen."""
    figure_module = import_extra("matplotlib.figure", "train")
    width, height = width_px / _DPI, height_px / _DPI
    figure = figure_module.Figure(figsize=(width, height), dpi=_DPI)
    import_extra("matplotlib.backends.backend_agg", "train").FigureCanvasAgg(figure)
    figure.patch.set_alpha(0.0)
    # Fixed margins: matplotlib's automatic layout takes longer than all the rest of the drawing.
    left, right, bottom, top = (
        (_LEFT_IN / width),
        (1 - _RIGHT_IN / width),
        (0.42 / height),
        (1 - (0.3 if titled else 0.08) / height),
    )
    axes = figure.add_axes((left, bottom, right - left, top - bottom))
    axes.patch.set_alpha(0.0)
    axes.tick_params(colors=_GREY, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_color(_GREY)
        spine.set_visible(side in ("left", "bottom"))
        spine.set_linewidth(0.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(_GREY)
        axis.label.set_size(8.5)
    return figure, axes


def _png(figure) -> bytes:
    buffer = BytesIO()
    # Without the name of the software: the same data give the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
