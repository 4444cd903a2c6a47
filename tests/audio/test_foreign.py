"""Files that other programs left behind: rubbish between frames, several files in one, sizes that nobody filled in."""

import os

import numpy as np
import pytest
import soundfile

from segue.audio import decoders, mpeg
from segue.audio.read import examine, read_header
from segue.audio.sound import BadAudio


@pytest.fixture(params=["as installed", "libsndfile alone"])
def way(request, monkeypatch):
    """With the decoders of this machine, and without any."""
    if request.param == "libsndfile alone":
        monkeypatch.setattr(decoders, "pyav", lambda: None)
        monkeypatch.setattr(decoders.shutil, "which", lambda name: None)


def tone(rate_hz: int, channels: int = 1) -> np.ndarray:
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(2 * rate_hz) / rate_hz)
    return np.repeat(wave[:, None], channels, axis=1)


def mp3(path, rate_hz: int = 44100, channels: int = 1) -> bytes:
    soundfile.write(path, tone(rate_hz, channels), rate_hz, format="MP3")
    return path.read_bytes()


def frames(path) -> list[bytes]:
    """Those of a file, without its information frame."""
    data = path.read_bytes()
    with path.open("rb") as file:
        at = mpeg.scan(file, len(data)).runs[0][0]
    found = []
    while frame := mpeg.parse(data[at : at + 4]):
        found.append(data[at : at + frame.size])
        at += frame.size
    return found


@pytest.mark.parametrize("rubbish", [b"\0" * 200_000, bytes(range(1, 251)) * 12])
def test_no_frame_behind_rubbish_is_lost(tmp_path, way, rubbish):
    path = tmp_path / "a.mp3"
    mp3(path)
    parts = frames(path)
    path.write_bytes(b"".join(parts))
    whole = read_header(path).frames
    path.write_bytes(b"".join(parts[:30]) + rubbish + b"".join(parts[30:]))
    assert abs(read_header(path).frames - whole) <= 2 * 1152
    assert examine(path)[0].frames == read_header(path).frames


@pytest.mark.parametrize(("rate_hz", "channels"), [(22050, 1), (44100, 2)])
def test_mp3s_of_other_kinds_in_one_file_are_named(tmp_path, way, rate_hz, channels):
    path = tmp_path / "a.mp3"
    path.write_bytes(mp3(path) + mp3(tmp_path / "b.mp3", rate_hz, channels))
    with pytest.raises(BadAudio, match="several files in one, of different sample rates or channel counts"):
        examine(path)


@pytest.mark.parametrize("kind", ["AU", "CAF", "W64"])
def test_files_that_were_cut_are_named(tmp_path, way, kind):
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, tone(8000), 8000, format=kind, subtype="PCM_16")
    assert examine(path)[0].frames == 16000
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadAudio, match="truncated: the file ends before its sound does"):
        examine(path)


def test_an_au_of_no_length_and_a_caf_of_unknown_length_are_read_to_the_end(tmp_path, way):
    au, caf = tmp_path / "a.au", tmp_path / "a.caf"
    for path in (au, caf):
        soundfile.write(path, tone(8000), 8000, subtype="PCM_16")
    data = au.read_bytes()
    au.write_bytes(data[:8] + bytes(4) + data[12:])
    data = caf.read_bytes()
    at = data.index(b"data") + 4
    caf.write_bytes(data[:at] + b"\xff" * 8 + data[at + 8 :])
    assert examine(au)[0].frames == examine(caf)[0].frames == 16000


@pytest.mark.parametrize(("scale", "divisor"), [(9800, 2**15), (2.5e6, 2**23), (2.0**30, 2**31)])
def test_the_hint_for_integers_fits_their_width(tmp_path, scale, divisor):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(8000) / 0.3 * scale, 8000, subtype="DOUBLE")
    with pytest.raises(BadAudio, match=f"integers stored as floats.*by {divisor}$"):
        examine(path)


@pytest.mark.skipif(decoders.pyav() is None, reason="PyAV is not installed")
def test_a_webm_of_which_a_part_is_damaged_is_named(tmp_path):
    av = decoders.pyav()
    path = tmp_path / "a.webm"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libopus", rate=48000, layout="mono")
        wave = (32767 * tone(48000)).astype(np.int16).T.copy()
        for at in range(0, wave.shape[1], 960):
            frame = av.AudioFrame.from_ndarray(wave[:, at : at + 960], format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48000, at
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    assert examine(path)[0].seconds == pytest.approx(2.0, abs=0.03)
    data = bytearray(path.read_bytes())
    middle = len(data) // 3
    data[middle:] = bytes(len(data) - middle)
    path.write_bytes(data)
    with pytest.raises(BadAudio, match=r"damaged: .* of 2\.\d+ s can be decoded|cannot be decoded"):
        examine(path)


def test_nobody_waits_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(BadAudio, match="no file but a folder, pipe, socket or device"):
        examine(tmp_path / "a.wav")
