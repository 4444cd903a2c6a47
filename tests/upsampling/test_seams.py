"""No seam of the shipped model's output can be found by its spectral flux: chunks are where nobody hears them."""

import numpy as np
import pytest
import soundfile

from segue.audio.analyse import analyse
from segue.audio.chunks import cut, joined, make_plan
from segue.audio.read import read_header
from segue.evaluation.baselines import sinc
from segue.pipeline import SuperResolver
from segue.upsampling.enhance import Enhancer

pytestmark = pytest.mark.slow

RATE_HZ, CORE = 16000, 32 * 256


@pytest.fixture(scope="module")
def shipped():
    return SuperResolver.load(None)


@pytest.fixture
def widen(shipped, tmp_path):
    """8 kHz sound [T] -> what the tool makes of it at 16 kHz: whole, in chunks with context, or cut hard."""

    def do(wave, how):
        soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
        found = analyse(tmp_path / "a.wav", read_header(tmp_path / "a.wav"))
        low = sinc(wave, 8000, RATE_HZ).astype(np.float32)[:, None]
        enhance = Enhancer(shipped, found, 3900.0, steps=4, seed=0, stereo="left-right")
        if how == "hard":
            return np.concatenate([enhance(low[s : s + CORE], s) for s in range(0, len(low), CORE)])[:, 0]
        core = None if how == "whole" else CORE
        plan = make_plan(len(low), core, shipped.context_samples, shipped.hop_samples, RATE_HZ)
        made = ((w, enhance(x, w.start)[w.first - w.start : w.last - w.start]) for w, x in cut([low], plan))
        return np.concatenate(list(joined(made, plan)))[:, 0]

    return do


def tones():
    time_sec = np.arange(80_000) / 8000
    return 0.05 * sum(np.sin(2 * np.pi * 220 * k * time_sec) / k**0.5 for k in range(1, 17))


def flux(wave):
    """Mean change of the new band's log magnitudes from one frame of 16 ms to the next, 2 ms later."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, 256)[::32] * np.hanning(256)
    return np.abs(np.diff(np.log(np.abs(np.fft.rfft(frames))[:, 67:] + 1e-4), axis=0)).mean(axis=1)


def border_z(wave):
    """How many standard deviations the flux at the chunks' borders lies from that at other places.

    Of each grid of places a chunk apart the mean over 12 ms at each is taken: one grid is the borders, the others are
    it moved by whole frames of the model, whose own rhythm is then the same in all.
    """
    moved, steps = flux(wave), CORE // 32
    grids = [
        np.mean([moved[k * steps + shift - 6 : k * steps + shift - 1].mean() for k in range(1, len(wave) // CORE - 1)])
        for shift in range(0, steps, 8)
    ]
    return (grids[0] - np.mean(grids[1:])) / np.std(grids[1:])


@pytest.mark.parametrize("kind", ["steady tones", "noise in syllables"])
def test_borders_of_chunks_are_no_place_of_their_own(widen, sound, kind):
    wave = tones() if kind == "steady tones" else sound(10.0, rate_hz=8000)
    whole, chunked, hard = (widen(wave, how) for how in ("whole", "chunked", "hard"))
    assert np.abs(chunked - whole).max() < 1e-3 * np.abs(whole).max()
    assert np.abs(flux(chunked) - flux(whole)).max() < 0.01 * flux(whole).mean()
    assert abs(border_z(chunked)) < 3
    # Where chunks without context are put end to end, both find it.
    assert np.abs(flux(hard) - flux(whole)).max() > 0.5 * flux(whole).mean()
    assert border_z(hard) > border_z(chunked) + 2
