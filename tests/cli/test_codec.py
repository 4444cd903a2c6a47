"""`segue codec` on stereo sound: trained, measured and used by name; what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from segue.codecs import load_codec

RATE_HZ = 8000


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """16 stereo sounds of 5 s with captions beside them."""
    folder = tmp_path_factory.mktemp("pairs")
    time_sec = np.arange(5 * RATE_HZ) / RATE_HZ
    for index in range(16):
        tone = 0.3 * np.sin(2 * np.pi * (150 + 40 * index) * time_sec)
        soundfile.write(folder / f"steady tone {index}.flac", np.stack([tone, 0.4 * tone[::-1]], axis=1), RATE_HZ)
    return folder


def test_a_stereo_codec_is_trained_measured_and_encoded_with(segue, pairs, tmp_path):
    out = tmp_path / "codec"
    ran = segue(
        "codec", "train", pairs, "--out", out, "--steps", 1, "--rate", RATE_HZ, "--channels", 2,
        "--latent-channels", 8, "--mask-share", 0.5, "--consistency-weight", 0.1,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    figures = json.loads(ran.out[: ran.out.rindex("}") + 1])
    assert figures["kinds"]["sound"]["width_error_db"] >= 0
    codec = load_codec(str(out))
    assert (codec.audio_channels, codec.channels, codec.sample_rate_hz) == (2, 8, RATE_HZ)
    assert "width error, dB" in (out / "report.html").read_text()
    ran = segue("codec", "refine", out, pairs, "--out", tmp_path / "o")
    assert ran.code == 2 and "a stereo codec, which refine does not take; hint: " in ran.line
    ran = segue(
        "encode", pairs, "--out", tmp_path / "cache", "--codec", out, "--captions", "filename", "--teacher", "none",
        "--text", "bytes", "--channels", 1,
    )  # fmt: skip
    assert ran.code == 2 and "a stereo codec, not mono; hint: leave --channels out" in ran.line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--channels", 3), "--channels 3; hint: give 1 (mono) or 2 (stereo), or --latent-channels 3"),
        (("--channels", 2, "--latent-channels", 2), "--latent-channels 2; hint: give 3 or more"),
        (("--latent-channels", 0), "--latent-channels 0; hint: give 1 or more"),
        (("--mask-share", 1.5), "--mask-share 1.5"),
        (("--consistency-weight", "nan"), "--consistency-weight nan"),
    ],
)
def test_options_that_make_no_codec_are_refused_before_sounds_are_read(segue, tmp_path, options, says):
    ran = segue("codec", "train", tmp_path / "nowhere", "--out", tmp_path / "o", *options)
    assert ran.code == 2 and says in ran.line, ran.line
    assert not (tmp_path / "o").exists()
