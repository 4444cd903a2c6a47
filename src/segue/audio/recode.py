"""A wave through a lossy code and back, in memory: what a telephone or an MP3 does to a training clip."""

from __future__ import annotations

import io

import numpy as np
import soundfile

from segue.audio.interpolate import interpolate

# coding -> container, encoding, and the sampling rates that it knows. All by libsndfile: G.711 (A-law, mu-law) as ITU's
# tables have it, GSM 06.10 full rate, Opus and LAME at their default bitrates.
CODINGS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "alaw": ("WAV", "ALAW", (8000,)),
    "mulaw": ("WAV", "ULAW", (8000,)),
    "gsm": ("WAV", "GSM610", (8000,)),
    "opus": ("OGG", "OPUS", (8000, 12000, 16000, 24000, 48000)),
    "mp3": ("MP3", "MPEG_LAYER_III", (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)),
}


def recoded(wave: np.ndarray, sample_rate_hz: int, coding: str, cutoff_hz: float) -> np.ndarray:
    """A mono wave [n] that ends at `cutoff_hz` -> what is left of it behind a coder and its decoder, float32 [n].

    It is stored at the lowest rate of the coding that holds the cutoff (the highest where none does), and clips at full
    scale, as files do.
    """
    container, subtype, rates = CODINGS[coding]
    rate_hz = next((rate for rate in rates if rate >= 2 * cutoff_hz), rates[-1])
    stored = interpolate(wave[:, None], sample_rate_hz, rate_hz, round(len(wave) * rate_hz / sample_rate_hz))
    file = io.BytesIO()
    soundfile.write(file, np.clip(stored, -1.0, 1.0), rate_hz, format=container, subtype=subtype)
    file.seek(0)
    made, _ = soundfile.read(file, dtype="float32", always_2d=True)
    # Coders work in frames, and give what they padded the last one with.
    made = np.pad(made[: len(stored)], [(0, max(0, len(stored) - len(made))), (0, 0)])
    return interpolate(made, rate_hz, sample_rate_hz, len(wave))[:, 0].astype(np.float32)
