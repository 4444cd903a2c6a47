"""Files as people really have them: lengths are what can be decoded, whole files are read, odd levels are named."""

import io
import os
import shutil
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from segue.audio import decoders, mpeg
from segue.audio.read import Readers, Stretches, examine, read_claim, read_header, read_segment, read_wave
from segue.audio.sound import BadAudio
from segue.audio.tags import read_tags

HAS_PYAV = decoders.pyav() is not None


@pytest.fixture
def by_ffmpeg(tmp_path_factory, monkeypatch):
    """As on a machine without PyAV whose ffmpeg is a little program of ours (that itself decodes by PyAV)."""
    if not HAS_PYAV:
        pytest.skip("PyAV is not installed")
    program = tmp_path_factory.mktemp("bin") / "ffmpeg"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys, av, numpy as np\n"
        "words = sys.argv[1:]\n"
        "assert '-nostdin' in words and words[-1] == '-' and words[words.index('-protocol_whitelist') + 1] == 'file,pipe'\n"
        "path = words[words.index('-i') + 1]\n"
        "assert path.startswith('file:')\n"
        "kind = words[words.index('-f') + 1]\n"
        "out, head = sys.stdout.buffer, False\n"
        "def frames(file):\n"
        "    for packet in file.demux(audio=0):\n"
        "        try:\n"
        "            yield from packet.decode()\n"
        "        except av.FFmpegError:\n"
        "            pass  # as the program does\n"
        "with av.open(open(path[5:], 'rb'), format=kind) as file:\n"
        "    for frame in frames(file):\n"
        "        x = frame.to_ndarray().astype('>f4')\n"
        "        if not head:\n"
        "            head = [24, 0xFFFFFFFF, 6, frame.sample_rate, len(x)]\n"
        "            out.write(b'.snd' + b''.join(n.to_bytes(4, 'big') for n in head))\n"
        "        out.write(x.T.tobytes())\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(decoders, "pyav", lambda: None)
    monkeypatch.setattr(decoders.shutil, "which", lambda name: str(program) if name == "ffmpeg" else None)


@pytest.fixture(params=["pyav", "ffmpeg", "neither"])
def way(request):
    """Every way in which an MP3 may be decoded."""
    if request.param == "pyav" and not HAS_PYAV:
        pytest.skip("PyAV is not installed")
    if request.param != "pyav":
        request.getfixturevalue({"ffmpeg": "by_ffmpeg", "neither": "without_decoders"}[request.param])
    return request.param


def tone_mp3(seconds=2.0, rate_hz=44100, hz=440.0) -> bytes:
    file = io.BytesIO()
    soundfile.write(
        file, 0.4 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz), rate_hz, format="MP3"
    )
    return file.getvalue()


def without_information(data: bytes) -> bytes:
    """An MP3 without its Xing frame."""
    frame = mpeg.parse(data[:4])
    return data[frame.size :]


def id3(payload: bytes) -> bytes:
    size = len(payload)
    return b"ID3\3\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + payload


@pytest.mark.parametrize("name", ["cbr_cover.mp3", "short_vbr.mp3"])
def test_an_mp3_without_a_xing_header_is_as_long_as_its_sound(cases, way, name):
    header, levels = examine(cases / name)
    assert header.frames == 133_632 and header.seconds == pytest.approx(3.03, abs=0.005)
    assert read_header(cases / name) == header and 0.2 < levels.peak < 0.5
    first = read_wave(cases / name, 16000)
    assert len(first) == round(133_632 / 44100 * 16000)
    np.testing.assert_array_equal(first, read_wave(cases / name, 16000))
    end = read_segment(cases / name, header, 2.5, 1.0, (16000,))[0][0]
    np.testing.assert_allclose(end[: len(first) - 40_000], first[40_000:], atol=2e-3)
    assert not end[len(first) - 40_000 :].any(), "nothing is made up behind the end"


def test_every_way_of_decoding_mp3_gives_the_same_samples(cases, tmp_path, request):
    data = tone_mp3()
    kinds = {
        "as written": data,
        "no information": without_information(data),
        "a cover of 300 kB": id3(b"\xff\xd8\xff\xe0" + bytes(300_000)) + data,
        "a tag behind": data + b"TAG" + bytes(125),
        "rubbish before": bytes(1000) + without_information(data),
        "low rate": tone_mp3(rate_hz=16000),
    }
    for name, content in kinds.items():
        (tmp_path / f"{name}.mp3").write_bytes(content)
    paths = [*sorted(tmp_path.glob("*.mp3")), cases / "cbr_cover.mp3", cases / "short_vbr.mp3"]
    by_pyav = {path: read_wave(path, read_claim(path).sample_rate_hz) for path in paths}
    request.getfixturevalue("without_decoders")
    for path in paths:
        wave = read_wave(path, read_claim(path).sample_rate_hz)
        assert len(wave) == len(by_pyav[path]), path.name
        np.testing.assert_allclose(wave, by_pyav[path], atol=1e-5, err_msg=path.name)
    assert len(by_pyav[tmp_path / "as written.mp3"]) == 88_200


@pytest.mark.parametrize("first_xing", [True, False])
def test_mp3_files_put_end_to_end_are_read_to_the_end(tmp_path, way, first_xing):
    one, two = tone_mp3(hz=440.0), tone_mp3(hz=880.0, seconds=3.0)
    (tmp_path / "a.mp3").write_bytes((one if first_xing else without_information(one)) + id3(bytes(200_000)) + two)
    header, _ = examine(tmp_path / "a.mp3")
    assert header.seconds == pytest.approx(5.0, abs=0.12)
    spectrum = np.abs(np.fft.rfft(read_wave(tmp_path / "a.mp3", 44100)[-44100:]))
    assert spectrum.argmax() == 880


def test_an_mp3_whose_bitrate_rises_loses_nothing(tmp_path, way):
    """libsndfile guesses the length from the first frames: too short where they are large."""
    loud = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * 44100)
    file = io.BytesIO()
    soundfile.write(file, np.concatenate([loud, np.zeros(6 * 44100)]), 44100, format="MP3", bitrate_mode="VARIABLE")
    (tmp_path / "a.mp3").write_bytes(without_information(file.getvalue()))
    assert examine(tmp_path / "a.mp3")[0].seconds == pytest.approx(8.0, abs=0.1)


def test_frames_of_another_layer_do_not_stop_the_count(tmp_path, way):
    """Once, the search for the next frame found the same one again and again."""
    layer_two = bytes([0xFF, 0xFD, 0x40, 0xC4])
    other = (layer_two + bytes(mpeg.parse(layer_two).size - 4)) * 5
    (tmp_path / "a.mp3").write_bytes(tone_mp3() + other)
    assert read_claim(tmp_path / "a.mp3").seconds == pytest.approx(2.0, abs=0.1)


def test_an_mp3_that_claims_an_hour_is_cut_and_said_so(tmp_path, way):
    data = bytearray(tone_mp3())
    at = data.index(b"Xing") + 8
    data[at : at + 4] = (3600 * 44100 // 1152).to_bytes(4, "big")
    (tmp_path / "a.mp3").write_bytes(data)
    for read in (examine, read_header, lambda path: read_wave(path, 8000)):
        with pytest.raises(BadAudio, match="truncated"):
            read(tmp_path / "a.mp3")
    data[at : at + 4] = (3).to_bytes(4, "big")  # one that claims too little
    (tmp_path / "b.mp3").write_bytes(data)
    assert examine(tmp_path / "b.mp3")[0].seconds == pytest.approx(2.0, abs=0.06)


def test_stretches_of_an_mp3_join_into_the_whole_in_any_order(tmp_path, way):
    (tmp_path / "a.mp3").write_bytes(tone_mp3(seconds=4.0, hz=333.3))
    header, whole = read_header(tmp_path / "a.mp3"), read_wave(tmp_path / "a.mp3", 8000)
    with Stretches(tmp_path / "a.mp3", header, (8000,)) as stretches:
        parts = {k: stretches.read(0.5 * k, 0.5)[0][0] for k in (0, 1, 2, 5, 3, 4, 7, 6)}
    joined = np.concatenate([parts[k] for k in range(8)])
    assert np.abs(joined - whole)[200:-200].max() < 2e-3


def test_a_file_is_decoded_once_however_many_stretches_are_cut(tmp_path, monkeypatch, write_sine):
    opened = []
    real = decoders.look
    monkeypatch.setattr(decoders, "look", lambda path: opened.append(path) or real(path))
    (tmp_path / "a.mp3").write_bytes(tone_mp3(seconds=20.0, rate_hz=16000))
    paths = [tmp_path / "a.mp3", write_sine("b.wav", seconds=20.0), write_sine("c.ogg", seconds=20.0)]
    headers = [read_header(path) for path in paths]
    opened.clear()
    with Readers((8000, 4000)) as readers:
        for path, header in zip(paths, headers):
            for k in range(40):
                pieces = readers.read(path, header, 0.5 * k, 0.5)
                assert [piece.shape for piece in pieces] == [(1, 4000), (1, 2000)]
    assert len(opened) == 3


def test_whole_files_that_were_called_damaged_are_read(cases, tmp_path, write_sine):
    assert examine(cases / "call.oga")[0].seconds == pytest.approx(2.0, abs=0.01)
    header, levels = examine(cases / "gsm.wav")
    assert (header.frames, header.subtype) == (10_400, "GSM610") and levels.peak > 0.2
    assert examine(cases / "size0.wav")[0].frames == 16_000


def test_an_ogg_without_its_last_flag_is_whole_and_a_cut_one_is_not(write_sine):
    for form in ({}, {"format": "OGG", "subtype": "OPUS"}):
        path = write_sine("a.ogg", seconds=4.0, rate_hz=48000, **form)
        data, wave = bytearray(path.read_bytes()), read_wave(path, 8000)
        last = data.rfind(b"OggS")
        data[last + 5] &= ~4
        path.write_bytes(data)  # the page's checksum is wrong now, too
        np.testing.assert_allclose(read_wave(path, 8000), wave, atol=1e-3)
        path.write_bytes(data[: last + 20])
        with pytest.raises(BadAudio, match="truncated"):
            examine(path)


def test_ogg_files_put_end_to_end_are_one(tmp_path, write_sine):
    one, two = (write_sine(f"{hz}.ogg", hz=hz, seconds=1.0, rate_hz=16000).read_bytes() for hz in (440, 880))
    (tmp_path / "both.ogg").write_bytes(one + two)
    wave = read_wave(tmp_path / "both.ogg", 16000)
    assert len(wave) == 32_000 and np.abs(np.fft.rfft(wave[16_000:])).argmax() == 880
    other = write_sine("c.ogg", rate_hz=8000).read_bytes()
    (tmp_path / "both.ogg").write_bytes(one + other)
    with pytest.raises(BadAudio, match="different sample rates"):
        examine(tmp_path / "both.ogg")


def test_a_flac_of_unknown_length_is_read_to_its_end(write_sine):
    path = write_sine("a.flac", seconds=3.0, rate_hz=44100)
    data, wave = bytearray(path.read_bytes()), read_wave(path, 16000)
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path.write_bytes(data)
    header, _ = examine(path)
    assert header.frames == 3 * 44100 and header == read_header(path)
    np.testing.assert_array_equal(read_wave(path, 16000), wave)
    piece = read_segment(path, header, 1.0, 0.5, (16000,))[0][0]
    np.testing.assert_allclose(piece[100:-100], wave[16_100:23_900], atol=1e-3)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadAudio):
        examine(path)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
@pytest.mark.parametrize("form", [{"subtype": "PCM_16"}, {"subtype": "FLOAT"}, {"format": "RF64"}, {"format": "AIFF"}])
def test_a_streamed_file_is_read_to_its_end(write_sine, size, form):
    path = write_sine("a.wav", seconds=1.0, rate_hz=16000, channels=2, **form)
    data, wave = bytearray(path.read_bytes()), read_wave(path, 16000)
    order = "big" if form.get("format") == "AIFF" else "little"
    sound = data.index(b"SSND" if order == "big" else b"data")
    data[sound + 4 : sound + 8] = size.to_bytes(4, order)
    data[4:8] = size.to_bytes(4, order)
    if (long := data.find(b"ds64")) > 0:
        data[sound + 4 : sound + 8] = b"\xff" * 4
        data[long + 8 : long + 32] = (0 if size == 0 else 2**64 - 1).to_bytes(8, "little") * 3
    if order == "big":
        common = data.index(b"COMM")
        data[common + 10 : common + 14] = bytes(4)
    path.write_bytes(data)
    assert examine(path)[0].frames == 16_000
    np.testing.assert_array_equal(read_wave(path, 16000), wave)


def test_a_wav_that_is_meant_to_be_empty_is_named_so(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.wav", "w", 8000, 1, "PCM_16") as file:
        file.title = "nothing"
    with pytest.raises(BadAudio, match="zero length"):
        examine(tmp_path / "a.wav")


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff", "au", "caf", "w64", "rf64"])
def test_levels_that_no_honest_file_has_are_named_alike(tmp_path, suffix):
    subtypes = soundfile.available_subtypes(suffix.upper())
    if "FLOAT" not in subtypes:
        pytest.skip("holds integers only")
    time = np.arange(16_000)
    for name, wave in {
        "integers": 9800 * np.sin(time / 9),
        "one sample": np.where(time == 77, 1e29, 0.1 * np.sin(time / 9)),
        "not a number": np.where(time == 77, np.nan, 0.1 * np.sin(time / 9)),
        "infinite": np.where(time == 77, -np.inf, 0.1 * np.sin(time / 9)),
    }.items():
        path = tmp_path / f"{name}.{suffix}"
        soundfile.write(path, wave.astype(np.float32), 16_000, subtype="FLOAT", format=suffix.upper())
        says = "levels: samples of" if name in ("integers", "one sample") else "non-finite"
        header = read_header(path)
        for read in (examine, lambda p: read_wave(p, 8000), lambda p, h=header: read_segment(p, h, 0.0, 0.5, (8000,))):
            with pytest.raises(BadAudio, match=says):
                read(path)
    honest = tmp_path / f"loud.{suffix}"
    soundfile.write(honest, 4 * np.sin(time / 9), 16_000, subtype="FLOAT", format=suffix.upper())
    assert examine(honest)[1].peak == pytest.approx(4.0, abs=0.01)


def test_integers_stored_as_floats_are_named(cases):
    with pytest.raises(BadAudio, match=r"levels: samples of 9\.83e\+03 times full scale.*hint: .*32768"):
        examine(cases / "int16range.wav")


@pytest.mark.skipif(not HAS_PYAV, reason="PyAV is not installed")
@pytest.mark.parametrize("name", ["m0.m4a", "m1.aac"])
def test_m4a_and_aac_are_decoded_where_something_decodes_them(cases, name, request):
    path = cases / "mixed_m4a" / name
    header, levels = examine(path)
    assert header.seconds == pytest.approx(1.0, abs=0.06) and levels.peak == pytest.approx(0.3, abs=0.02)
    wave = read_wave(path, 16000)
    np.testing.assert_array_equal(wave, read_wave(path, 16000))
    request.getfixturevalue("by_ffmpeg")
    other = read_wave(path, 16000)
    assert abs(len(other) - len(wave)) <= 1024  # the end of an m4a is padded, which not every version leaves out
    np.testing.assert_allclose(other[: len(wave) - 400], wave[: len(other)][: len(wave) - 400], atol=1e-3)


def test_what_is_not_read_is_named_by_what_it_is(tmp_path, write_sine, without_decoders):
    path = write_sine("a.wav")
    data = bytearray(path.read_bytes())
    for tag, name in ((0x00FF, "AAC"), (0x0022, "TrueSpeech"), (0x1234, "encoding 0x1234")):
        data[20:22] = tag.to_bytes(2, "little")
        path.write_bytes(data)
        with pytest.raises(BadAudio, match=f"WAV of {name}, which is not read without PyAV or ffmpeg; hint"):
            examine(path)


def test_without_a_decoder_they_are_named_with_a_hint(cases, without_decoders):
    for name in ("m0.m4a", "m1.aac"):
        with pytest.raises(
            BadAudio, match=r"not read without PyAV or ffmpeg; hint: pip install 'segue-audio\[decoders\]'"
        ):
            examine(cases / "mixed_m4a" / name)


@pytest.mark.skipif(not HAS_PYAV, reason="PyAV is not installed")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("a.wma", (44100, "WMAV2")), ("a.caf", (16000, "ALAC")), ("a.mka", (16000, "VORBIS")), ("a.webm", (48000, "OPUS")),
        ("a.m4b", (16000, "AAC")), ("piped.caf", (16000, "PCM_16")), ("piped.m4a", (16000, "AAC")),
        ("piped.w64", (16000, "PCM_16")), ("piped.au", (16000, "PCM_16")), ("adpcm.wav", (16000, "IMA_ADPCM")),
        ("mp3_inside.wav", (16000, "MPEG_LAYER_III")),
    ],
)  # fmt: skip
def test_other_kinds_and_files_written_to_a_pipe(cases, name, shape):
    header, _ = examine(cases / "kinds" / name)
    assert (header.sample_rate_hz, header.subtype) == shape and header.seconds == pytest.approx(0.5, abs=0.12)
    wave = read_wave(cases / "kinds" / name, 16000)[:4000]
    assert abs(np.abs(np.fft.rfft(wave)).argmax() * 4 - 440) <= 4


@pytest.mark.parametrize("name", ["mixed_m4a/m0.m4a", "kinds/a.m4b", "kinds/a.webm", "kinds/a.mka"])
def test_cut_files_of_other_kinds_are_named_so(cases, tmp_path, name):
    data = (cases / name).read_bytes()
    path = tmp_path / Path(name).name
    for share in (0.5, 0.9):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(BadAudio, match="truncated"):
            examine(path)


def test_a_list_of_files_in_disguise_is_not_followed(tmp_path, way):
    (tmp_path / "far.mp3").write_bytes(tone_mp3())
    for text in (f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/far.mp3\n", f"ffconcat version 1.0\nfile '{tmp_path}/far.mp3'\n"):
        for name in ("a.mp3", "a.m4a", "a.webm", "a.wav"):
            (tmp_path / name).write_text(text)
            with pytest.raises(BadAudio, match="text file"):
                examine(tmp_path / name)


@pytest.mark.parametrize("kind", ["mp3", "m4a", "aac", "webm"])
def test_mutated_compressed_files_are_read_or_refused(tmp_path, cases, kind):
    data = {
        "mp3": tone_mp3,
        "m4a": (cases / "mixed_m4a" / "m0.m4a").read_bytes,
        "aac": (cases / "mixed_m4a" / "m1.aac").read_bytes,
        "webm": (cases / "kinds" / "a.webm").read_bytes,
    }[kind]()
    generator = np.random.default_rng(0)
    path = tmp_path / f"a.{kind}"
    for _ in range(40):
        changed = bytearray(data)
        for _ in range(generator.integers(1, 8)):
            span = len(changed) if generator.random() < 0.5 else min(len(changed), 128)
            at = int(generator.integers(0, span))
            changed[at : at + 4] = generator.bytes(4)
        if generator.random() < 0.3:
            changed = changed[: int(generator.integers(1, len(changed)))]
        path.write_bytes(changed)
        try:
            header, levels = examine(path)
        except BadAudio as error:
            assert error.reason and "\n" not in error.reason
            continue
        assert np.isfinite(levels.peak) and header.frames < 10_000_000
        waves = [read_wave(path, 16000) for _ in range(2)]
        np.testing.assert_array_equal(*waves)


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9"), "n" * 247, "cafe\u0301", "a\nb", " - "])
@pytest.mark.parametrize("suffix", ["wav", "mp3", "m4a"])
def test_files_of_any_name_are_read(cases, tmp_path, way, name, suffix):
    sources = {"wav": cases / "size0.wav", "mp3": cases / "cbr_cover.mp3", "m4a": cases / "mixed_m4a" / "m0.m4a"}
    path = tmp_path / f"{name}.{suffix}"
    shutil.copy(sources[suffix], path)
    if suffix == "m4a" and way == "neither":
        return
    assert examine(path)[0].frames > 10_000
    assert isinstance(read_tags(path), dict)
