from __future__ import annotations

import numpy as np
import pytest
import soundfile

from segue.audio.read import examine, read_header, read_segment, read_wave
from segue.audio.sound import BadAudio

FORMATS = [
    ("a.wav", 44100, 2, {}),
    ("a.wav", 48000, 1, {"subtype": "FLOAT"}),
    ("a.wav", 22050, 6, {"subtype": "PCM_24"}),
    ("a.flac", 96000, 2, {}),
    ("a.flac", 8000, 1, {}),
    ("a.ogg", 44100, 2, {}),
    ("a.opus", 48000, 1, {"format": "OGG", "subtype": "OPUS"}),
    ("a.mp3", 44100, 2, {}),
    ("a.mp3", 16000, 1, {}),
    ("a.aiff", 44100, 2, {}),
]


@pytest.mark.parametrize(("name", "rate_hz", "channels", "kwargs"), FORMATS)
def test_any_format_rate_and_channel_count_gives_the_same_tone(write_sine, name, rate_hz, channels, kwargs):
    path = write_sine(name, 440, 1.0, rate_hz, channels, **kwargs)
    wave = read_wave(path, 16000)
    assert wave.dtype == np.float32 and wave.shape == (16000,)
    spectrum = np.abs(np.fft.rfft(wave))
    assert abs(spectrum.argmax() - 440) <= 1
    assert abs(np.abs(wave[2000:-2000]).max() - 0.5) < 0.03
    header = read_header(path)
    assert (header.sample_rate_hz, header.channels, header.frames) == (rate_hz, channels, rate_hz)


def test_channels_are_averaged(tmp_path):
    left, right = np.full(800, 0.5), np.linspace(-0.1, 0.3, 800)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 8000, subtype="FLOAT")
    np.testing.assert_allclose(read_wave(tmp_path / "a.wav", 8000), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 44100])
def test_segments_join_into_the_whole(tmp_path, rate_hz):
    rng = np.random.default_rng(0)
    wave = np.cumsum(rng.standard_normal(3 * rate_hz)) / rate_hz  # a smooth random curve
    soundfile.write(tmp_path / "a.wav", wave, rate_hz, subtype="FLOAT")
    header, whole = read_header(tmp_path / "a.wav"), read_wave(tmp_path / "a.wav", 8000)
    parts = [read_segment(tmp_path / "a.wav", header, start, 0.75, (8000,))[0][0] for start in (0, 0.75, 1.5, 2.25)]
    joined = np.concatenate(parts)
    assert joined.shape == whole.shape
    assert np.abs(joined - whole)[200:-200].max() < 1e-3 * np.abs(whole).max()


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


@pytest.mark.parametrize(("name", "rate_hz", "channels", "kwargs"), FORMATS)
def test_a_truncated_file_is_named_so(write_sine, name, rate_hz, channels, kwargs):
    path = cut(write_sine(name, 440, 4.0, rate_hz, channels, **kwargs))
    for read in (examine, lambda p: read_wave(p, 16000)):
        with pytest.raises(BadAudio) as caught:
            read(path)
        assert caught.value.path == path
        # Of an Ogg file without a whole first page nothing can be told but that it is malformed.
        assert caught.value.reason.startswith("truncated") or ("malformed" in caught.value.reason and channels == 1)


def test_other_bad_files_are_named_with_their_reason(tmp_path, write_sine):
    def wav(name, samples):
        soundfile.write(tmp_path / name, np.asarray(samples, dtype=np.float32), 8000, subtype="FLOAT")
        return tmp_path / name

    (tmp_path / "text.wav").write_text("this is no sound\n")
    (tmp_path / "void.wav").write_bytes(b"")
    (tmp_path / "noise.wav").write_bytes(bytes(range(256)) * 8)
    tone = 0.1 * np.sin(np.arange(4000))
    damaged = write_sine("damaged.flac", seconds=2.0, rate_hz=44100)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    damaged.write_bytes(data)
    cases = {
        tmp_path / "text.wav": "text file",
        tmp_path / "void.wav": "zero length",
        tmp_path / "noise.wav": "unreadable",
        tmp_path / "missing.wav": "unreadable",
        wav("none.wav", np.zeros((0, 1))): "zero length",
        wav("nan.wav", [*tone, np.nan]): "non-finite",
        wav("inf.wav", [np.inf, *tone]): "non-finite",
        wav("quiet.wav", np.zeros(4000)): "silent",
        wav("cancels.wav", np.stack([tone, -tone], 1)): "cancel",
        wav("short.wav", tone[:20]): "too short",
        damaged: "truncated or damaged",
    }
    for path, reason in cases.items():
        with pytest.raises(BadAudio, match=reason):
            examine(path)
        if reason != "too short":
            with pytest.raises(BadAudio):
                read_wave(path, 8000)


def test_clipping_is_measured(tmp_path):
    wave = np.clip(3 * np.sin(np.arange(8000) / 10), -1, 1)
    soundfile.write(tmp_path / "a.wav", wave, 8000)
    assert examine(tmp_path / "a.wav")[1].clipped_share > 0.5
