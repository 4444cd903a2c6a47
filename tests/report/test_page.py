"""Parts of the page: sound survives, text cannot break out, files are whole."""

from io import BytesIO

import numpy as np
import pytest
import soundfile

from segue.report.page import bar, duration, facts, heading, number, table, wav_bytes, write_page
from segue.types import UserError


def test_wav_survives_within_half_a_step(wave):
    back, rate = soundfile.read(BytesIO(wav_bytes(wave, 22050)), dtype="float64")
    assert rate == 22050
    np.testing.assert_allclose(back * 32768 / 32767, wave, atol=0.51 / 32767)


def test_wav_clips_what_is_too_loud():
    back, _ = soundfile.read(BytesIO(wav_bytes(np.array([2.0, -2.0]), 8000)), dtype="int16")
    assert back.tolist() == [32767, -32767]


def test_text_is_escaped():
    for html in (
        heading("<b>", "<i>", [("<u>", "<s>")]),
        facts([("<b>", "<i>")]),
        table(["<b>"], [("<i>", ["x"], True)]),
    ):
        assert "<b>" not in html.replace("<b>&lt;s&gt;</b>", "") and "<i>" not in html and "<u>" not in html


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (12345, "12,345"),
        (0.12345, "0.123"),
        (12345.6, "12,346"),
        ([1, 0.5], "1, 0.5"),
        ("x", "x"),
    ],
)
def test_numbers_as_people_read_them(value, text):
    assert number(value) == text


def test_durations():
    assert [duration(x) for x in (12.4, 200, 7500)] == ["12 s", "3 min 20 s", "2 h 5 min"]


def test_bar_scales_with_its_value():
    drawn = bar(0.5, (0.4, 0.6), 0.1, width_px=100)
    assert 'width="50.0"' in drawn and "M40.0 7H60.0" in drawn and "M10.0 0" in drawn


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_page(path, "old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("segue.files.os.replace", full)
    with pytest.raises(UserError, match=r"report\.html: the disk is full"):
        write_page(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
