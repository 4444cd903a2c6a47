"""Pictures are PNGs of the size asked for, show what is there, and do not depend on when they are drawn."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from segue.report.pictures import Line, curve_png, spectrogram_png
from segue.types import UserError


def pixels(png):
    return np.asarray(Image.open(BytesIO(png)).convert("RGBA")).astype(int)


def test_spectrogram_shows_a_tone_at_its_height(wave):
    picture = pixels(spectrogram_png(wave, 16000, width_px=640, height_px=300))
    assert picture.shape == (300, 640, 4)
    column = picture[:, 320, :3].sum(axis=1) * (picture[:, 320, 3] > 0)
    brightest = column.argmax() / 300
    assert 0.6 < brightest < 0.85  # 440 Hz: 2/10 of the mel axis, above the margin


def test_a_linear_spectrogram_gives_the_upper_half_of_the_band_half_of_the_picture():
    tone = (0.1 * np.sin(2 * np.pi * 6000 * np.arange(16000) / 16000)).astype(np.float32)
    picture = pixels(spectrogram_png(tone, 16000, width_px=640, height_px=300, linear=True))
    column = picture[:, 320, :3].sum(axis=1) * (picture[:, 320, 3] > 0)
    assert 0.2 < column.argmax() / 300 < 0.3  # 6 of 8 kHz, above the margin


def test_louder_is_brighter_on_one_scale(wave):
    loud, soft = (pixels(spectrogram_png(g * wave, 16000))[..., :3].sum() for g in (1.0, 0.01))
    assert loud > soft


def test_pictures_repeat_byte_for_byte(wave):
    assert spectrogram_png(wave, 16000) == spectrogram_png(wave, 16000)
    series = {"a": Line([0, 1000, 2000], [3.0, 2.0, float("nan")]), "b": Line([0, 1], [1.0, 2.0])}
    assert curve_png(series, "x", "title") == curve_png(series, "x", "title")


def test_the_ground_is_transparent(wave):
    assert pixels(curve_png({"a": Line([0, 1], [0, 1])}, "x", "title"))[0, 0, 3] == 0


@pytest.mark.parametrize("samples", [1, 100, 20_000])
def test_any_length_can_be_drawn(samples):
    assert spectrogram_png(np.zeros(samples, np.float32), 16000).startswith(b"\x89PNG")


@pytest.mark.parametrize("bad", [np.zeros((1, 2, 5)), np.zeros(0), np.array([0.0, np.nan])])
def test_refuses_what_is_not_a_clip(bad):
    with pytest.raises(UserError, match="one clip"):
        spectrogram_png(bad, 16000)
