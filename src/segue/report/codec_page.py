"""The page of a codec: what it does to held-out sounds, in figures by kind and to listen to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from segue.report.page import facts, figure, heading, image, page, player, table, write_page
from segue.report.pictures import SPECTROGRAM_RANGE_DB, spectrogram_png

_COLUMNS = {
    "log_mel_l1": "log-mel L1",
    "log_mel_l1_50ms": "log-mel L1, 50 ms",
    "lsd": "LSD",
    "convergence": "convergence",
    "high_band_db": "high band, dB",
    "flatness_db": "flatness, dB",
    "width_error_db": "width error, dB",
    "noisy_log_mel_l1": "log-mel L1, noisy latents",
    "si_sdr_db": "SI-SDR, dB",
}
_READING = (
    "Means over clips of sounds that the training did not read. Log-mel L1 (nepers; 80 bands, 1024/256, and windows "
    "of about 50 ms), LSD (decades of power; 2048/512) and spectral convergence: 0 is equal. High band: level above a "
    "quarter of the sample rate, against the original's; below 0 dB the sound is duller. Flatness: of the spectrum, "
    "against the original's; above 0 dB it is blurred. SI-SDR compares waveforms sample by sample, and says nothing "
    "where a codec keeps no absolute phase. Width error: how far the level of side against mid is off, of stereo "
    "codecs. Noisy latents: after noise of the stated deviation was added to them, as a model's errors would be."
)


@dataclass(frozen=True)
class RoundTrip:
    """One held-out sound and what came back of it.

    Attributes:
        kind, name: of the sound.
        waves: label -> [T] or [A, T] float; the original first.
        sample_rate_hz: of all of them.
    """

    kind: str
    name: str
    waves: Mapping[str, np.ndarray]
    sample_rate_hz: int


def write_codec_report(
    path: Path, title: str, lead: str, figures: Mapping[str, Mapping], trips: Sequence[RoundTrip], command: str = ""
) -> Path:
    """Write one self-contained page with a table by kind, spectrograms and players; return its path.

    Args:
        figures: label of a codec -> what `measure_codec` says of it.

    Raises:
        UserError: the place cannot be written, or matplotlib is missing.
    """
    low, high = SPECTROGRAM_RANGE_DB
    body = [
        heading(title, lead, _chips(figures)),
        "<h2>Held-out sounds</h2>",
        table(("", "clips", *_COLUMNS.values()), _rows(figures)),
        f'<p class="note">{escape(_READING)}</p>',
        "<h2>Listen</h2>",
        f'<p class="note">Log-mel spectrograms, all from {low:.0f} to {high:.0f} dB re a full-scale sine.</p>',
        *(_card(trip) for trip in trips),
        "<h2>All figures</h2>",
        f"<pre>{escape(command)}</pre>" if command else "",
        f"<details><summary>As `segue codec measure` gives them</summary>{facts(figures.items())}</details>",
    ]
    return write_page(Path(path), page(title, body))


def _chips(figures: Mapping[str, Mapping]) -> list[tuple[str, str]]:
    # The last codec is the one that the page is about; those before it are compared with.
    last = list(figures.values())[-1]
    latents = last["latents"]
    return [
        ("decoding", f"{last['decode_sec_per_sec']:.0f}x real time on {last['threads']} threads"),
        ("latent noise", str(last["latent_noise"])),
        ("latent deviation", f"{latents['std_min']} to {latents['std_max']}"),
        ("correlation of neighbouring frames", str(latents["lag1_correlation"])),
    ]


def _rows(figures: Mapping[str, Mapping]) -> list[tuple[str, list[str], bool]]:
    rows = []
    # By kind first, so that the codecs of one kind stand below each other.
    for kind in next(iter(figures.values()))["kinds"]:
        for label, report in figures.items():
            measured = report["kinds"][kind]
            name = f"{kind}, {label}" if len(figures) > 1 else kind
            cells = [f"{measured['clips']}<small>split {escape(measured['split'])}</small>"]
            cells += [f"{measured[key]:.3g}" if key in measured else "–" for key in _COLUMNS]
            rows.append((name, cells, False))
    return rows


def _card(trip: RoundTrip) -> str:
    cells = "".join(f"<div>{_sound(label, wave, trip)}</div>" for label, wave in trip.waves.items())
    title = f'<div class="prompt"><h3>{escape(trip.kind)}</h3><i>{escape(trip.name)}</i></div>'
    return f'<div class="card">{title}<div class="grid">{cells}</div></div>'


def _sound(label: str, wave: np.ndarray, trip: RoundTrip) -> str:
    picture = spectrogram_png(wave, trip.sample_rate_hz, width_px=620, height_px=310)
    drawn = figure(image(picture, f"spectrogram, {label}: {trip.kind} {trip.name}"))
    return f'<p class="label">{escape(label)}</p>{drawn}{player(wave, trip.sample_rate_hz)}'
