"""One file: what the tool keeps, and that chunks cannot be heard."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from segue.audio.interpolate import interpolate
from segue.audio.stereo import MODES, axes
from segue.types import UserError
from segue.upsampling.io_paths import Job
from segue.upsampling.prepare import Settings, prepare
from segue.upsampling.upsample import carry_out


@pytest.fixture
def run(stand_in, tmp_path):
    """Upsample one file; gives samples [n, channels], rate and report."""

    def do(path, model=None, **settings):
        model = model or stand_in()
        settings = Settings(**{"rate_hz": model.sample_rate_hz, "overwrite": True, **settings})
        job = Job(path, tmp_path / "out", path.stem)
        report = carry_out(prepare(job, model, settings), model, settings, lambda sec: None)
        wave, rate_hz = soundfile.read(report["output"], always_2d=True, dtype="float64")
        return wave, rate_hz, report

    return do


def band(wave, rate_hz, low_hz, high_hz):
    """The part of [n, ...] between two frequencies."""
    spectrum = np.fft.rfft(wave, axis=0)
    hz = np.fft.rfftfreq(len(wave), 1 / rate_hz)
    spectrum[(hz < low_hz) | (hz >= high_hz)] = 0
    return np.fft.irfft(spectrum, len(wave), axis=0)


def power(wave):
    return float(np.mean(np.square(wave)))


def rms_db(wave):
    return 10 * math.log10(power(wave))


@pytest.mark.parametrize("rate_hz", [8000, 11025, 16000, 22050, 44100])
def test_length_loudness_and_the_low_band_are_kept_and_the_high_band_is_new(sound, write, run, stand_in, rate_hz):
    wave = sound(3.017, 4000, rate_hz)
    path = write("a.wav", wave, rate_hz, subtype="FLOAT")
    out, made_hz, report = run(path, stand_in(shake=0))
    assert made_hz == 16000 and len(out) == round(len(wave) * 16000 / rate_hz)
    assert report["status"] == "upsampled" and 3600 < report["cutoff_hz"] < 4050
    low = interpolate(wave[:, None], rate_hz, 16000, len(out))[:, 0]
    assert power(band(out[:, 0] - low, 16000, 0, 3500)) < 1e-5 * power(low)
    assert power(band(out[:, 0], 16000, 4500, 7500)) > 1000 * power(band(low, 16000, 4500, 7500))
    assert abs(report["output_rms_db"] - report["input_rms_db"]) < 0.6
    assert report["output_peak"] <= max(np.abs(wave).max(), np.abs(low).max()) + 1e-4


def test_chunked_equals_unchunked(sound, write, run):
    path = write("a.wav", np.stack([sound(9.0), sound(9.0, seed=1)], axis=1), subtype="FLOAT")
    whole, _, one = run(path, chunk_sec=math.inf)
    assert one["chunks"] == 1
    for seconds in (0.7, 2.0, 5.3):
        cut, _, report = run(path, chunk_sec=seconds)
        assert report["chunks"] > 1
        assert np.abs(cut - whole).max() < 1e-4


def test_no_seam_in_spectral_flux(sound, write, run):
    """At the joins the spectrum changes no more than elsewhere."""
    path = write("a.wav", sound(16.0), subtype="FLOAT")
    out, rate_hz, report = run(path, chunk_sec=1.0)
    hop = 128
    frames = np.lib.stride_tricks.sliding_window_view(out[:, 0], 512)[::hop] * np.hanning(512)
    spectrum = np.log(np.abs(np.fft.rfft(frames)) + 1e-5)[:, 130:]  # the new band
    flux = np.abs(np.diff(spectrum, axis=0)).mean(axis=1)
    joins = np.arange(1, report["chunks"]) * round(report["chunk_sec"] * rate_hz)
    at_joins = np.concatenate([flux[(j - 512) // hop : j // hop + 1] for j in joins])
    assert at_joins.mean() < np.mean(flux) + 3 * np.std(flux) / math.sqrt(len(at_joins) / 3)
    assert at_joins.max() <= flux.max()


def test_misplaced_noise_would_be_found(sound, write, run, stand_in):
    """The test above is able to fail: noise that does not know where it is leaves chunks that differ."""

    class Forgetful(stand_in):
        def noise(self, shape_frames, seed, first_frame):
            return super().noise(shape_frames, seed, 0)

    path = write("a.wav", sound(6.0), subtype="FLOAT")
    whole, _, _ = run(path, Forgetful(), chunk_sec=math.inf)
    cut, _, _ = run(path, Forgetful(), chunk_sec=2.0)
    assert np.abs(cut - whole).max() > 1e-2


def test_the_seed_decides(sound, write, run):
    path = write("a.wav", sound(2.0))
    first, again, other = (run(path, seed=seed)[0] for seed in (3, 3, 4))
    assert (first == again).all() and np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize("stereo", MODES)
@pytest.mark.parametrize("left, right", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.3, 0.9), (0.8, -0.8)])
def test_a_source_keeps_its_place(sound, write, run, left, right, stereo):
    mono = sound(3.0, level=0.05)
    out, _, _ = run(write("a.wav", np.stack([left * mono, right * mono], axis=1), subtype="FLOAT"), stereo=stereo)
    new = band(out, 16000, 4500, 7500)
    assert power(new) > 1e-8
    across = new @ np.array([right, -left]) / math.hypot(left, right)
    assert power(across) < 1e-6 * power(new)


def test_a_stereo_model_gives_each_channel_what_a_mono_one_gives(sound, write, run, stand_in):
    path = write("a.wav", np.stack([sound(2.0), 0 * sound(2.0)], axis=1), subtype="FLOAT")
    model = stand_in()
    model.audio_channels = 2
    out, _, _ = run(path, model)
    np.testing.assert_allclose(out, run(path)[0], atol=1e-6)
    assert all(shape[1] == 2 for shape in model.calls) and not out[:, 1].any()


def test_dual_mono_is_what_mono_gives(sound, write, run):
    wave = sound(2.0)
    mono, _, _ = run(write("m.wav", wave, subtype="FLOAT"))
    for stereo in MODES:
        dual, _, report = run(write("d.wav", np.stack([wave, wave], axis=1), subtype="FLOAT"), stereo=stereo)
        assert report["stereo"] == stereo
        np.testing.assert_allclose(dual, np.repeat(mono, 2, axis=1), atol=2e-5)


def test_axes_turn_and_turn_back():
    sources = np.random.default_rng(0).standard_normal((2, 1000)) * [[1.0], [0.2]]
    middle = np.array([sources[0] + sources[1], sources[0] - sources[1]])
    turn = axes(np.cov(middle), "mid-side")
    np.testing.assert_allclose(np.abs(turn), math.sqrt(0.5), atol=0.02)  # mid and side
    np.testing.assert_allclose(turn.T @ turn, np.eye(2), atol=1e-12)
    assert (axes(np.cov(sources), "mid-side") == np.eye(2)).all()  # nothing in common
    assert (axes(np.cov([sources[0], -sources[0]]), "left-right") == np.diag([1, -1])).all()


def test_ten_times_as_loud_gives_ten_times_as_much(sound, write, run):
    wave = sound(2.0, level=0.02)
    soft, _, _ = run(write("s.wav", 0.1 * wave, subtype="FLOAT"))
    loud, _, _ = run(write("l.wav", wave, subtype="FLOAT"))
    assert power(loud - 10 * soft) < 1e-5 * power(loud)


def test_silence_stays_silence(sound, write, run):
    wave = sound(3.0)
    wave[16_000:32_000] = 0
    out, _, report = run(write("a.wav", wave, subtype="PCM_16"))
    assert (out[16_400:31_600] == 0).all() and power(band(out[:15_000, 0], 16000, 4500, 7500)) > 1e-7
    assert 0.25 < report["silent_share"] < 0.4
    out, _, report = run(write("b.wav", np.zeros((8000, 2)), 8000))
    assert out.shape == (16_000, 2) and not out.any() and report["silent_share"] == 1 and "silent" in report["notes"][0]


def test_one_silent_channel_stays_silent_beside_a_loud_one(sound, write, run):
    left, right = sound(3.0), sound(3.0, seed=1)
    right[8000:30_000] = 0
    out, _, _ = run(write("a.wav", np.stack([left, right + 0.5 * left * (right != 0)], axis=1)))
    assert not out[8400:29_600, 1].any() and out[8400:29_600, 0].any()


def test_offset_is_kept_and_does_not_count_as_sound(sound, write, run):
    wave = sound(2.0, level=0.05)
    wave[8000:] = 0
    out, _, report = run(write("a.wav", wave + 0.2, subtype="FLOAT"))
    assert report["dc_offset"][0] == pytest.approx(0.2, abs=0.01)
    assert any("DC offset +0.2" in note for note in report["notes"])
    assert np.abs(out[8400:] - 0.2).max() < 1e-6 and out[:8000].mean() == pytest.approx(0.2, abs=0.01)


def test_peaks_are_held_and_what_clips_is_counted(sound, write, run):
    wave = sound(3.0)
    wave /= np.abs(wave).max()
    _, _, report = run(write("a.wav", 0.999 * wave, subtype="PCM_24"))
    assert report["output_peak"] <= 1.0 and report["output_clipped"] == 0 and report["held_back_share"] > 0
    square = soxr.resample(np.sign(np.sin(np.arange(16_000) * 0.17)), 8000, 8000) * 0.9999
    _, _, report = run(write("b.wav", square, 8000))  # between its samples it is beyond full scale
    assert report["output_clipped"] > 0 and report["input_clipped"] > 0
    assert any("output samples clipped" in note for note in report["notes"])


@pytest.mark.parametrize(
    "name, subtype, made",
    [
        ("a.wav", "PCM_U8", ("WAV", "PCM_U8")),
        ("a.wav", "PCM_24", ("WAV", "PCM_24")),
        ("a.wav", "FLOAT", ("WAV", "FLOAT")),
        ("a.wav", "ULAW", ("WAV", "PCM_16")),
        ("a.flac", "PCM_24", ("FLAC", "PCM_24")),
        ("a.aiff", "PCM_16", ("WAV", "PCM_16")),
        ("a.ogg", "VORBIS", ("FLAC", "PCM_16")),
        ("a.mp3", None, ("FLAC", "PCM_16")),
    ],
)
def test_the_output_is_written_as_the_input_was(sound, write, run, name, subtype, made):
    path = write(name, sound(2.0, rate_hz=8000), 8000, subtype=subtype)
    _, _, report = run(path)
    info = soundfile.info(report["output"])
    assert (info.format, info.subtype, info.samplerate) == (*made, 16000)
    assert ("8-bit" in " ".join(report["notes"])) == (subtype == "PCM_U8")


@pytest.mark.parametrize("container, subtype", [("flac", "PCM_24"), ("wav", "FLOAT")])
def test_another_form_can_be_asked_for(sound, write, run, container, subtype):
    _, _, report = run(write("a.wav", sound(1.0)), container=container, subtype=subtype)
    info = soundfile.info(report["output"])
    assert (info.format, info.subtype) == (container.upper(), subtype)


def test_a_lower_rate_than_the_models(sound, write, run, stand_in):
    wave = sound(2.0, 4000, 8000)
    out, rate_hz, _ = run(write("a.wav", wave, 8000), stand_in(48_000), rate_hz=22_050)
    assert rate_hz == 22_050 and len(out) == round(len(wave) * 22_050 / 8000)
    assert power(band(out, 22_050, 4500, 9000)) > 1e-7


def test_a_full_band_file_is_copied_byte_for_byte(sound, write, run):
    path = write("a.wav", sound(2.0, 8000))
    _, _, report = run(path)
    assert report["status"] == "copied" and "full-band" in report["notes"][0]
    assert Path(report["output"]).read_bytes() == path.read_bytes()
    wave, _ = soundfile.read(path)
    out, _, report = run(path, container="flac")
    assert report["output"].endswith(".flac") and (out[:, 0] == wave).all()
    assert run(path, cutoff_hz=6000.0)[2]["status"] == "upsampled"


def test_a_cutoff_must_fit_the_file(sound, write, run):
    path = write("a.wav", sound(1.0, rate_hz=8000), 8000)
    report = run(path, cutoff_hz=3000.0)[2]
    other = "--cutoff {} Hz is followed; 4,000 Hz was detected (rate)"
    assert report["cutoff_found_by"] == "--cutoff" and report["notes"] == [other.format("3,000")]
    assert run(path, cutoff_hz=1500.0)[2]["notes"] == [
        other.format("1,500"), "ends at 1,500 Hz; the model was trained for 2,000 to 12,000 Hz"
    ]  # fmt: skip
    assert run(path, cutoff_hz=4000.0)[2]["notes"] == []
    for hz in (4000.1, 5000.0):
        with pytest.raises(UserError, match="up to 4000 Hz"):
            run(path, cutoff_hz=hz)
    with pytest.raises(UserError, match="up to 8000 Hz"):
        run(write("b.wav", sound(1.0)), cutoff_hz=8000.0)


def test_the_whole_band_of_a_file_is_kept_up_to_half_its_rate(sound, write, run, stand_in):
    wave = sound(6.0, 4000, 8000)
    out, _, report = run(write("a.wav", wave, 8000, subtype="FLOAT"), stand_in(shake=0))
    assert report["cutoff_hz"] == 4000.0
    low = interpolate(wave[:, None], 8000, 16000, len(out))[:, 0]
    kept = band(out[8000:-8000, 0] - low[8000:-8000], 16000, 0, 3950)
    assert power(kept) < 1e-5 * power(low)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_tags_are_kept(sound, tmp_path, run, name):
    path = tmp_path / name
    with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16") as file:
        file.title, file.artist, file.comment, file.date = "Ein Stück", "Jemand", "aus dem Keller", "1962"
        file.write(sound(1.0, rate_hz=8000))
    _, _, report = run(path)
    with soundfile.SoundFile(report["output"]) as file:
        assert (file.title, file.artist, file.comment, file.date) == ("Ein Stück", "Jemand", "aus dem Keller", "1962")


@pytest.mark.parametrize("samples", [160, 161, 400, 1000, 4097])
def test_short_files(write, run, samples):
    wave = 0.1 * np.sin(np.arange(samples) * 0.3)
    out, _, _ = run(write("a.wav", wave, 8000))
    assert len(out) == 2 * samples and np.isfinite(out).all()


def test_a_memory_limit_shortens_chunks(sound, write, run):
    path = write("a.wav", sound(12.0))
    assert run(path)[2]["chunk_sec"] == 10.0
    tight = run(path, max_memory=20 << 20)[2]
    assert 1.0 <= tight["chunk_sec"] < 10.0
    with pytest.raises(UserError, match="this model needs"):
        run(path, max_memory=1 << 20)
