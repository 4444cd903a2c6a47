"""Two channels on the way into a cache: sides stay in their places, and what becomes of the sound is said."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch

from segue.audio.read import Stretches, examine, read_header, read_segment, read_sound
from segue.audio.sound import BadAudio, Header
from segue.codecs import load_codec
from segue.data.cache import LatentCache
from segue.data.channels import channels_of, what_becomes
from segue.data.encoding import build_cache
from segue.data.identity import identity, refuse_other_contents
from segue.data.manifest import load_manifest
from segue.types import UserError

RATE_HZ = 8000


def tone(hz=440.0, seconds=1.0, rate_hz=RATE_HZ):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)


def write(path, *sides, rate_hz=RATE_HZ):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.stack(sides, axis=1), rate_hz, subtype="PCM_24" if path.suffix != ".ogg" else None)
    return path


def left_only(path, **options):
    wave = tone(**options)
    return write(path, wave, np.zeros_like(wave), rate_hz=options.get("rate_hz", RATE_HZ))


@pytest.fixture
def build(fakes, tmp_path):
    def build(source, channels=2, out="cache", codec=None, teacher=None, **options):
        codec = codec or fakes.FakeCodec(audio_channels=channels)
        clips = load_manifest(source, "filename")
        parts = {"out": tmp_path / out, "seconds": 0.5, "dtype": "float32"} | options
        return build_cache(clips, codec, fakes.FakeText(), teacher, **parts)

    return build


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("rate_hz", [8000, 11025])
def test_a_tone_on_the_left_is_read_on_the_left_by_every_reader(tmp_path, suffix, rate_hz):
    path = left_only(tmp_path / f"a.{suffix}", rate_hz=rate_hz)
    header = read_header(path)
    with Stretches(path, header, (RATE_HZ, 4000), channels=2) as stretches:
        pieces = [*stretches.read(0.25, 0.5), *stretches.read(0.0, 0.3)]
    pieces += [read_sound(path, 2)[0], *read_segment(path, header, 0.1, 0.4, (RATE_HZ,), 2)]
    for piece in pieces:
        assert piece.shape[0] == 2
        assert np.abs(piece[0]).max() > 0.45 and np.abs(piece[1]).max() < 0.01
    assert read_sound(path, 1)[0].shape[0] == 1


def test_a_tone_on_the_left_comes_out_of_the_cache_on_the_left(build, tmp_path, fakes):
    for name in ("left tone a", "left tone b", "left tone c"):
        left_only(tmp_path / "set" / f"{name}.wav", hz=300 + 40 * len(name))
    left_only(tmp_path / "set" / "from another rate.wav", rate_hz=11025)
    for codec in (fakes.FakeCodec(audio_channels=2), *(load_codec(n, RATE_HZ, 2) for n in ("spectral", "gain-shape"))):
        cache = build(tmp_path / "set", codec=codec, out=codec.name)
        assert cache.meta["audio_channels"] == 2 and cache.channels == codec.channels
        wave = codec.decode(cache.latents(range(len(cache)))[0], round(0.5 * RATE_HZ))
        assert wave.shape == (len(cache), 2, 4000)
        assert wave[:, 0].abs().amax(dim=1).min() > 0.45 and wave[:, 1].abs().max() < 0.01


def test_a_mono_file_on_a_stereo_codec_stays_exactly_mono_in_half_the_bits(build, tmp_path):
    write(tmp_path / "set" / "one tone.wav", tone())
    write(tmp_path / "set" / "two alike.wav", tone(300), tone(300))
    for name in ("spectral", "gain-shape"):
        codec = load_codec(name, RATE_HZ, 2)
        cache = build(tmp_path / "set", codec=codec, out=name, dtype="float16")
        wave = codec.decode(cache.latents(range(len(cache)))[0], 4000)
        assert torch.equal(wave[:, 0], wave[:, 1]) and wave.abs().max() > 0.4


def test_a_stereo_file_on_a_mono_codec_is_the_mean_and_a_teacher_gets_that_too(build, tmp_path, fakes):
    write(tmp_path / "set" / "a tone.wav", tone(), tone(300))
    teacher = fakes.FakeTeacher()
    mono, both = (build(tmp_path / "set", n, f"c{n}", teacher=teacher, seconds=1.0) for n in (1, 2))
    mean = (tone() + tone(300)) / 2
    np.testing.assert_allclose(fakes.FakeCodec().decode(mono.latents([0])[0], RATE_HZ)[0, 0], mean, atol=1e-6)
    energies = [cache.teacher([0])[0][..., 0] for cache in (mono, both)]
    torch.testing.assert_close(*energies, atol=1e-5, rtol=1e-4)


def test_sides_that_cancel_are_silent_in_mono_alone(build, tmp_path):
    path = write(tmp_path / "set" / "opposite.wav", tone(), -tone())
    with pytest.raises(BadAudio, match="its channels cancel in mono, and only a stereo codec keeps them"):
        examine(path)
    examine(path, 2)
    assert len(build(tmp_path / "set", 2)) == 2
    with pytest.raises(UserError, match="cancel in mono"):
        build(tmp_path / "set", 1, "mono")


def test_more_than_two_channels_are_refused_for_stereo_or_left_out(build, tmp_path, capsys):
    write(tmp_path / "set" / "surround.wav", *[tone(200 + 50 * k) for k in range(6)])
    left_only(tmp_path / "set" / "tone.wav")
    with pytest.raises(UserError, match="6 channels, where a stereo codec takes 1 or 2; hint: mix it down"):
        build(tmp_path / "set", 2)
    assert not (tmp_path / "cache").exists()
    assert [r["id"] for r in build(tmp_path / "set", 2, skip_bad=True).meta["skipped"]] == ["surround"]
    build(tmp_path / "set", 1, "mono")
    said = capsys.readouterr().err
    assert "8 kHz of 6 channels" in said and "lost: left and right of 2 of 2 files" in said


def test_another_channel_count_is_refused_by_a_cache_and_by_a_run(build, tmp_path):
    left_only(tmp_path / "set" / "tone.wav")
    both, mono = build(tmp_path / "set", 2), build(tmp_path / "set", 1, "mono")
    for channels, out, says in ((1, "cache", "a cache of stereo sound, and the codec is mono"),
                                (2, "mono", "a cache of mono sound, and the codec is stereo")):  # fmt: skip
        with pytest.raises(UserError, match=f"{says}; hint: --out another folder"):
            build(tmp_path / "set", channels, out)
    with pytest.raises(UserError, match=r"trained on mono sound, and .* holds stereo; hint: --data"):
        refuse_other_contents("run", identity(mono), both)
    refuse_other_contents("run", json.loads(json.dumps(identity(both))), LatentCache.open(tmp_path / "cache"))
    assert "audio_channels" not in identity(mono)
    # Caches of before there were two are mono.
    meta = json.loads((tmp_path / "mono" / "meta.json").read_text())
    del meta["audio_channels"]
    shutil.copytree(tmp_path / "mono", tmp_path / "old")
    (tmp_path / "old" / "meta.json").write_text(json.dumps(meta))
    assert channels_of(LatentCache.open(tmp_path / "old").meta) == 1
    meta["audio_channels"] = 6
    (tmp_path / "old" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="not as segue encode writes it"):
        LatentCache.open(tmp_path / "old")


def header(rate_hz, channels):
    return Header(rate_hz, channels, 1000, "WAV", "PCM_16")


def test_what_becomes_of_the_sound_is_said():
    stereo, mono = load_codec("spectral", 44100, 2), load_codec("spectral", 16000)
    assert what_becomes([header(44100, 2)] * 3, stereo) == ["44.1 kHz stereo becomes 44.1 kHz stereo"]
    kept, sides, band = what_becomes([header(44100, 2)] * 2 + [header(16000, 1)], mono)
    assert kept == "44.1 kHz stereo (2 files), 16 kHz mono (1 file) become 16 kHz mono"
    assert sides.startswith("lost: left and right of 2 of 3 files") and "--codec stereo-44k" in sides
    assert band.startswith("lost: all above 8 kHz of 2 of 3 files") and "--codec stereo-44k" in band
    both = what_becomes([header(48000, 1)], stereo)
    assert both[0] == "48 kHz mono becomes 44.1 kHz stereo"
    assert both[1].startswith("lost: all above 22.05 kHz of the file")
    assert both[2] == "mono sound of the file goes on both sides, which stay alike"
