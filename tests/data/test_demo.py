from __future__ import annotations

import json
import shutil
from collections import Counter
from hashlib import sha256

import numpy as np
import pytest
import soundfile

from segue.data.demo_set import DemoSettings, plan_demo_set, render_demo_set
from segue.data.manifest import load_manifest
from segue.data.vocabulary import (
    CHORDS,
    DRUMS,
    INSTRUMENTS,
    LOUDNESS,
    caption_of,
    demo_vocabulary,
    held_out_pairs,
    phrasings,
    pitch_name,
)
from segue.types import UserError

CLIPS = 120


@pytest.fixture(scope="module")
def demo_set(tmp_path_factory):
    return render_demo_set(tmp_path_factory.mktemp("demo") / "set", clips=CLIPS, seed=5).parent


def rows_of(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def bytes_of(folder):
    return {p.relative_to(folder).as_posix(): sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.*")}


def pitch_of(wave, rate_hz):
    """MIDI pitch by autocorrelation: the first peak that is nearly the highest."""
    wave = wave - wave.mean()
    spectrum = np.abs(np.fft.rfft(wave, 4 * len(wave))) ** 2
    lags = np.fft.irfft(spectrum)[: len(wave) // 2] / (1 - np.arange(len(wave) // 2) / len(wave))
    lags[: np.argmax(lags < 0)] = 0  # the peak at lag 0
    peaks = np.flatnonzero((lags[1:-1] > lags[:-2]) & (lags[1:-1] >= lags[2:]) & (lags[1:-1] > 0.88 * lags.max())) + 1
    a, b, c = lags[peaks[0] - 1 : peaks[0] + 2]
    return 69 + 12 * np.log2(rate_hz / (peaks[0] + 0.5 * (a - c) / (a - 2 * b + c)) / 440)


def test_the_set_is_what_a_user_brings(demo_set):
    clips = load_manifest(demo_set)
    assert len(clips) == CLIPS
    for clip in clips:
        wave, rate_hz = soundfile.read(clip.path)
        assert (wave.shape, rate_hz) == ((32768,), 16000)
        assert 0.003 < np.abs(wave).max() < 1
        # Nothing of the clip before is left, and the first sound comes at once.
        assert np.abs(wave[:32]).max() < 0.002
        assert (
            np.argmax(np.abs(wave) > 0.05 * np.abs(wave).max())
            < (0.6 if clip.fields["kind"] != "sequence" else 18) * 1000
        )


def test_notes_sound_at_their_pitch(demo_set):
    for row in rows_of(demo_set):
        if row["kind"] == "note":
            wave, rate_hz = soundfile.read(demo_set / row["path"])
            seconds = row["events"][0]["duration_sec"]
            played = pitch_of(wave[int(0.1 * rate_hz) : int(max(0.24, min(0.5, seconds)) * rate_hz)], rate_hz)
            assert abs(played - row["pitch"]) < 0.8, row["caption"]


def test_louder_words_are_louder_sounds(demo_set):
    peaks = {word: [] for word in LOUDNESS}
    for row in rows_of(demo_set):
        if row["kind"] == "note":
            peaks[row["loudness"]].append(np.abs(soundfile.read(demo_set / row["path"])[0]).max())
    soft, medium, loud = (np.median(values) for values in peaks.values())
    assert 2 * soft < medium and 1.7 * medium < loud


def test_second_sound_of_a_sequence_starts_in_the_middle(demo_set):
    for row in rows_of(demo_set):
        if row["kind"] == "sequence":
            wave, rate_hz = soundfile.read(demo_set / row["path"])
            assert [e["start_sec"] for e in row["events"]] == [0.0, 1.024]
            second = np.abs(wave[int(1.024 * rate_hz) : int(1.4 * rate_hz)]).max()
            assert second > 0.003 and second > np.abs(wave[int(0.98 * rate_hz) : int(1.02 * rate_hz)]).max()


def test_bytes_depend_on_settings_alone(demo_set, tmp_path):
    again = render_demo_set(tmp_path / "a", clips=CLIPS, seed=5, processes=1).parent
    assert bytes_of(again) == bytes_of(demo_set)
    assert plan_demo_set(DemoSettings(9, 5, 16000, 2.048)) != plan_demo_set(DemoSettings(9, 6, 16000, 2.048))


def test_an_interrupted_render_is_continued(demo_set, tmp_path):
    folder = shutil.copytree(demo_set, tmp_path / "set")
    settings = json.loads((folder / "demo.json").read_text())
    del settings["manifest_sha256"]
    (folder / "demo.json").unlink()
    (folder / "manifest.jsonl").unlink()
    (folder / "demo.rendering.json").write_text(json.dumps(settings))
    (folder / "audio" / "000110.flac").unlink()
    (folder / "audio" / "000111.flac.99.tmp").write_bytes(b"half")
    render_demo_set(folder, clips=CLIPS, seed=5)
    assert bytes_of(folder) == bytes_of(demo_set)


def test_a_finished_set_is_returned_and_others_are_refused(demo_set, tmp_path):
    before = (demo_set / "audio" / "000000.flac").stat().st_mtime_ns
    assert render_demo_set(demo_set, clips=CLIPS, seed=5) == demo_set / "manifest.jsonl"
    assert (demo_set / "audio" / "000000.flac").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="seed 5 instead of 6"):
        render_demo_set(demo_set, clips=CLIPS, seed=6)
    (tmp_path / "mine.txt").write_text("my own")
    with pytest.raises(UserError, match="not a demo set"):
        render_demo_set(tmp_path, clips=100)
    with pytest.raises(UserError, match="is a file"):
        render_demo_set(tmp_path / "mine.txt", clips=100)
    with pytest.raises(UserError, match="--clips"):
        render_demo_set(tmp_path / "new", clips=0)
    assert not (tmp_path / "new").exists()
    broken = shutil.copytree(demo_set, tmp_path / "broken")
    (broken / "audio" / "000007.flac").unlink()
    with pytest.raises(UserError, match="changed after"):
        render_demo_set(broken, clips=CLIPS, seed=5)


def test_kinds_splits_and_held_out_pairs():
    rows = plan_demo_set(DemoSettings(4000, 0, 16000, 2.048))
    kinds = Counter(row["kind"] for row in rows)
    assert all(
        abs(kinds[kind] / 4000 - share) < 0.03 for kind, share in {"note": 0.6, "drum": 0.1, "chord": 0.12}.items()
    )
    held = held_out_pairs()
    for row in rows:
        touches = any((e["instrument"], e.get("pitch")) in held for e in row["events"])
        assert touches == (row["split"] == "test")
    splits = Counter(row["split"] for row in rows)
    assert 0.06 < splits["test"] / 4000 < 0.16 and 0.03 < splits["valid"] / 4000 < 0.07
    # Every instrument, drum and chord is in training.
    trained = {e["instrument"] for row in rows if row["split"] == "train" for e in row["events"]}
    assert trained == {i.name for i in INSTRUMENTS} | set(DRUMS)
    assert {row["chord"] for row in rows if row["chord"]} == set(CHORDS)
    longer = plan_demo_set(DemoSettings(50, 0, 16000, 2.048))
    assert rows[:50] == longer


def test_held_out_pairs_spread_over_instruments():
    per_instrument = Counter(name for name, _ in held_out_pairs())
    for instrument in INSTRUMENTS:
        pitches = instrument.highest - instrument.lowest + 1
        assert abs(per_instrument[instrument.name] / pitches - 0.1) < 0.03
        assert 36 <= instrument.lowest < instrument.highest <= 84
    assert len({p % 12 for _, p in held_out_pairs()}) == 12


def test_vocabulary():
    words = demo_vocabulary()
    assert len(words.instruments) == 33 and len(words.families) == 12 and len(words.drums) == 12
    assert set(words.family_of.values()) == set(words.families)
    assert (pitch_name(60), pitch_name(69), pitch_name(61), pitch_name(36)) == ("C 4", "A 4", "C# 4", "C 2")


NOTE = {"kind": "note", "instrument": "trumpet", "pitch_name": "A 3", "loudness": "loud", "length": "short"}
DRUM = {"kind": "drum", "instrument": "snare drum", "loudness": "soft"}
CHORD = {"kind": "chord", "instrument": "piano", "pitch_name": "C 4", "chord": "major", "loudness": "medium"}


def test_captions_read_as_english():
    assert caption_of([NOTE, DRUM]) == "a loud short trumpet playing A 3 followed by a soft snare drum"
    assert caption_of({**NOTE, "instrument": "accordion"}, 2) == "a short A 3 played on an accordion"
    assert caption_of({**NOTE, "length": None}, 2) == "an A 3 played on a trumpet"
    assert caption_of({**NOTE, "instrument": "electric bass"}, 7) == "an electric bass playing A 3"
    assert caption_of(CHORD) == "C 4 major chord on a piano, medium loud"
    assert caption_of({**CHORD, "pitch_name": "F# 4"}, 2) == "a piano playing an F# 4 major chord"
    assert caption_of(DRUM) == "a soft snare drum"


def test_phrasings_are_many_and_distinct():
    assert len({caption_of(NOTE, i) for i in range(phrasings([NOTE]))}) >= 6
    for events in ([DRUM], [CHORD], [NOTE, DRUM]):
        captions = [caption_of(events, i) for i in range(phrasings(events))]
        assert len(set(captions)) >= 4
        assert not any("{" in c or "  " in c or " ," in c or c.endswith(",") for c in captions)
