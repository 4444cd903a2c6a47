"""Spectrograms of the clips that a measure finds worst and best, each beside its reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from segue.evaluation.folders.sound_sets import ClipPair
from segue.report.pictures import _GREY, SPECTROGRAM_RANGE_DB, _png, log_mel_db
from segue.types import UserError, import_extra


def worst_and_best_png(rows: Sequence[ClipPair]) -> bytes:
    """One row a pair of clips: log-mel spectrograms (96 HTK bands, dB below a full-scale sine, one fixed range).

    Raises:
        UserError: no rows, or matplotlib is not installed.
    """
    if not rows:
        raise UserError("a picture of the worst and best clips needs clips")
    figure = import_extra("matplotlib.figure", "evaluate").Figure(figsize=(8.0, 1.75 * len(rows)), dpi=110)
    import_extra("matplotlib.backends.backend_agg", "evaluate").FigureCanvasAgg(figure)
    figure.patch.set_alpha(0.0)
    # Rows may have fewer clips than the widest; the others' places stay empty.
    columns = max(len(row.clips) for row in rows)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, places in zip(rows, grid):
        for (label, wave), axes in zip(row.clips, places):
            _draw(axes, np.asarray(wave, dtype=np.float32), row.sample_rate_hz)
            axes.set_title(f"{row.title}: {label}", color=_GREY, fontsize=7.5, loc="left")
    top = 1.0 - 0.3 / (1.75 * len(rows))
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.03, top=top, hspace=0.3, wspace=0.05)
    return _png(figure)


def _draw(axes, wave: np.ndarray, sample_rate_hz: int) -> None:
    low, high = SPECTROGRAM_RANGE_DB
    decibels = log_mel_db(torch.from_numpy(wave), sample_rate_hz)
    axes.imshow(decibels.numpy(), origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high)
    axes.set_axis_off()
