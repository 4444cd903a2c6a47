from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from segue.audio.read import read_wave
from segue.data import encoding, shards
from segue.data.cache import LatentCache
from segue.data.encoding import build_cache
from segue.data.manifest import load_manifest
from segue.types import UserError

SECONDS = 0.4


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(encoding, "ROWS_PER_SHARD", 8)


@pytest.fixture
def build(fakes, small_set, tmp_path):
    def build(out="cache", codec=None, teacher=None, source=small_set, seconds=SECONDS, **kwargs):
        clips = load_manifest(source)
        codec = codec or fakes.FakeCodec()
        return build_cache(clips, codec, fakes.FakeText(), teacher, out=tmp_path / out, seconds=seconds, **kwargs)

    return build


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_hold_the_sound_captions_and_fields(build, fakes, small_set):
    cache = build(dtype="float32", batch_size=3)
    clips = {clip.id: clip for clip in load_manifest(small_set)}
    seen = {}
    for i in range(len(cache)):
        row = cache.row(i)
        clip = clips[row["id"]]
        wave = torch.from_numpy(read_wave(clip.path, 8000))
        start, samples = round(row["start_sec"] * 8000), round(row["length_sec"] * 8000)
        latents, mask = cache.latents([i])
        assert int(mask.sum()) == row["frames"] == -(-samples // 100)
        assert not latents[0][:, ~mask[0]].any()
        torch.testing.assert_close(fakes.FakeCodec().decode(latents, samples)[0, 0], wave[start : start + samples])
        assert row["split"] == clip.split and row["fields"] == {"number": clip.fields["number"]}
        assert tuple(row["captions"]) == clip.captions
        seen.setdefault(row["id"], []).append((row["start_sec"], row["length_sec"]))
    # 0.3 s fits; 0.5 s is cut in two; of 0.9 s the last 0.1 s makes a third.
    assert seen["tone00"] == [(0.0, 0.4), (0.4, 0.1)]
    assert seen["tone01"] == [(0.0, 0.3)]
    assert seen["tone02"] == [(0.0, 0.4), (0.4, 0.4), (0.8, 0.1)]
    assert cache.meta["counts"]["clips"] == 23 == len(seen)
    assert sorted(cache.rows("train") + cache.rows("valid") + cache.rows("test")) == list(range(len(cache)))


def test_a_short_rest_is_left_out(build, write_sine, tmp_path):
    write_sine("long/a.wav", seconds=0.83, caption="x")
    write_sine("long/b.wav", seconds=0.02, caption="y")
    cache = build(source=tmp_path / "long")
    assert [(cache.row(i)["start_sec"], cache.row(i)["length_sec"]) for i in range(3)] == [
        (0, 0.4),
        (0.4, 0.4),
        (0, 0.02),
    ]


def test_float16_is_close(build):
    a, b = build(), build("exact", dtype="float32")
    torch.testing.assert_close(a.latents([0, 5])[0], b.latents([0, 5])[0], atol=5e-4, rtol=1e-3)


def test_text_is_deduplicated_and_chosen(build, fakes):
    cache = build()
    row = next(i for i in range(len(cache)) if cache.row(i)["id"] == "tone03")
    other = next(i for i in range(len(cache)) if cache.row(i)["id"] == "tone04")
    assert cache.meta["counts"]["captions"] == 25 and cache.text_tokens == 5
    tokens, mask = cache.text([row, row, other, row], [1, 2, 0, 4])
    assert tokens.shape == (4, 5, 6) and mask.sum(1).tolist() == [2, 3, 5, 2]
    expected, _ = fakes.FakeText().encode(["two words"])
    torch.testing.assert_close(tokens[0, :2], expected[0], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(tokens[0], tokens[3])
    assert not tokens[~mask].any()
    torch.testing.assert_close(cache.text([row])[0], cache.text([row], [0])[0])


@pytest.mark.parametrize("mode", ["channel", "global"])
def test_statistics_are_those_of_valid_training_frames(build, fakes, mode):
    cache = build(codec=fakes.FakeCodec(statistics=mode), dtype="float32")
    latents, mask = cache.latents(cache.rows("train"))
    values = latents.transpose(1, 2)[mask].double()
    mean, std = cache.statistics
    if mode == "channel":
        expected = values.mean(0), values.std(0, correction=0)
    else:
        expected = values.mean().expand(100), values.std(correction=0).expand(100)
    assert mean.shape == std.shape == (100, 1) and mean.dtype == torch.float32
    torch.testing.assert_close(mean[:, 0].double(), expected[0], atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(std[:, 0].double(), expected[1], atol=1e-7, rtol=1e-5)


def test_a_dead_channel_is_not_blown_up(build, fakes):
    class Codec(fakes.FakeCodec):
        def encode(self, wave):
            latents = super().encode(wave)
            latents[:, 0] = 0
            return latents

    std = build(codec=Codec()).statistics[1]
    assert std[0] == std.max()


def test_teacher_features(build, fakes, small_set):
    cache = build(teacher=fakes.FakeTeacher(), dtype="float32")
    features, mask = cache.teacher([0, 2])
    assert features.shape == (2, 20, 2) and mask.sum(1).tolist() == [20, 15]
    wave = read_wave(small_set / "tone01.wav", 4000)
    expected = fakes.FakeTeacher().encode(torch.from_numpy(wave)[None])
    torch.testing.assert_close(features[1, :15], expected[0], atol=1e-4, rtol=1e-3)
    assert build("none").teacher([0]) is None


def test_a_shard_cut_under_an_open_cache_is_one_line(build):
    """A mapped file would take the process with it."""
    cache = build()
    last = len(cache) - 1
    cache.latents([last])
    shard = cache.path / "shards" / cache.row(last)["shard"]
    with shard.open("r+b") as file:
        file.truncate(200)
    assert f"{shard}: ends too early; hint" in refusal(cache.latents, [last])


def test_more_shards_than_are_kept_open(build, monkeypatch):
    cache = build()
    everything = cache.latents(range(len(cache)))[0]
    monkeypatch.setattr(shards, "OPEN_SHARDS", 1)
    again = LatentCache.open(cache.path)
    for i in reversed(range(len(again))):
        assert torch.equal(again.latents([i])[0][0], everything[i])
    assert len(again._files) == 1 < len(cache._files)


def test_a_finished_cache_is_opened_at_once_and_equal(build, fakes, tmp_path, monkeypatch):
    build()
    before = bytes_of(tmp_path / "cache")
    monkeypatch.setattr(fakes.FakeCodec, "encode", lambda *_: pytest.fail("encoded again"))
    build()
    assert bytes_of(tmp_path / "cache") == before
    assert {p.parts[-1].split("-")[0] for p in (tmp_path / "cache" / "shards").iterdir()} == {"latents", "text"}


def test_identical_bytes_after_kill_in_the_middle(build, fakes, small_set, tmp_path):
    script = f"""
import importlib.util, pathlib, time
from segue.data import encoding
from segue.data.manifest import load_manifest
encoding.ROWS_PER_SHARD = 8
spec = importlib.util.spec_from_file_location("fakes", {str(Path(fakes.__file__))!r})
fakes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fakes)
class Slow(fakes.FakeCodec):
    def encode(self, wave):
        time.sleep(0.3)
        return super().encode(wave)
out = pathlib.Path({str(tmp_path / "killed")!r})
encoding.build_cache(load_manifest({str(small_set)!r}), Slow(), fakes.FakeText(), out=out, seconds={SECONDS}, batch_size=4)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    shards = tmp_path / "killed" / "shards"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(shards.glob("*.safetensors"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {p.name: p.stat().st_mtime_ns for p in shards.glob("*.safetensors")}
    assert 2 <= len(kept) < 7
    assert "unfinished" in refusal(LatentCache.open, tmp_path / "killed")
    (shards / "latents-00.safetensors.12.tmp").write_bytes(b"half a shard")
    build("killed", batch_size=4)
    build("whole", batch_size=4)
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")
    assert all((shards / name).stat().st_mtime_ns == then for name, then in kept.items())


def test_other_settings_are_refused_with_what_differs(build, fakes):
    build()
    assert "seconds 0.4 there, 0.5 here" in refusal(build, seconds=0.5)
    assert "codec.gain 1.0 there, 2.0 here" in refusal(build, codec=fakes.FakeCodec(gain=2.0))
    assert "teacher none there, fake-teacher here" in refusal(build, teacher=fakes.FakeTeacher())
    assert "dtype float16 there, float32 here" in refusal(build, dtype="float32")


def test_an_unfinished_cache_of_other_settings_is_refused(build, fakes, tmp_path):
    build()
    meta = json.loads((tmp_path / "cache" / "meta.json").read_text())
    (tmp_path / "cache" / "meta.json").rename(tmp_path / "cache" / "building.json")
    assert meta["seconds"] == SECONDS
    assert "seconds 0.4 there, 0.3 here" in refusal(build, seconds=0.3)
    build()


def test_a_cache_goes_on_when_files_or_captions_change(build, small_set, tmp_path, write_sine, capsys):
    """Bit for bit what encoding anew gives; shards without a changed row are kept.

    Float wavs would hold the time at which they were written, and shards are cut by hashes of the files.
    """
    build()
    shards = tmp_path / "cache" / "shards"
    manifest = small_set / "manifest.jsonl"
    rows = manifest.read_text().splitlines()
    extra = write_sine("set/extra.wav", hz=777, subtype="PCM_24")
    first = json.dumps({"path": extra.name, "caption": "one more", "split": "train"})
    shorter = [rows[0], *rows[2:]]
    renamed = [row.replace("number 4", "number IV") for row in shorter]
    steps = [
        ("1 changed (e.g. tone00)", lambda: write_sine("set/tone00.wav", hz=998, subtype="PCM_24")),
        ("1 gone (e.g. tone01)", lambda: manifest.write_text("\n".join(shorter))),
        ("captions, splits or fields differ", lambda: manifest.write_text("\n".join(renamed))),
        ("1 new (e.g. extra)", lambda: manifest.write_text("\n".join([first, *renamed]))),
    ]
    for number, (said, change) in enumerate(steps):
        before = {p.name: p.stat().st_mtime_ns for p in shards.iterdir()}
        change()
        capsys.readouterr()
        build()
        assert said in capsys.readouterr().err
        build(f"fresh{number}")
        assert bytes_of(tmp_path / "cache") == bytes_of(tmp_path / f"fresh{number}")
        kept = [name for name, then in before.items() if (shards / name).exists()]
        assert all((shards / name).stat().st_mtime_ns == before[name] for name in kept)
        latents = [name for name in before if name.startswith("latents")]
        assert len([name for name in kept if name.startswith("latents")]) >= len(latents) - 2 > 0


def test_a_cache_that_is_being_brought_up_to_date_stays_readable(build, small_set, fakes, tmp_path, write_sine):
    old = build()
    write_sine("set/tone00.wav", hz=999, subtype="PCM_24")

    class Dies(fakes.FakeCodec):
        def encode(self, wave):
            if wave.shape[0] > 3:  # beyond the round trip of three clips
                raise KeyboardInterrupt
            return super().encode(wave)

    with pytest.raises(KeyboardInterrupt):
        build(codec=Dies())
    assert LatentCache.open(tmp_path / "cache").contents == old.contents
    assert build().contents != old.contents
    build("fresh")
    assert bytes_of(tmp_path / "cache") == bytes_of(tmp_path / "fresh")


def test_another_set_does_not_replace_a_cache(build, tmp_path, write_sine):
    before = build().contents
    write_sine("other/a.wav", hz=555, caption="x")
    write_sine("other/b.wav", hz=666, caption="y")
    assert "made from other files: 2 new (e.g. a), 23 gone" in refusal(build, source=tmp_path / "other")
    assert LatentCache.open(tmp_path / "cache").contents == before


def test_contents_tell_caches_apart_whatever_their_shards(build, small_set, monkeypatch):
    first = build()
    monkeypatch.setattr(encoding, "ROWS_PER_SHARD", 4)
    other = build("other", seconds=SECONDS)
    assert first.contents == other.contents == first.meta["contents"]
    assert [s["file"] for s in first.meta["shards"]] != [s["file"] for s in other.meta["shards"]]
    del first.meta["contents"]  # caches of before there was any
    assert first.contents == other.contents
    manifest = small_set / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("number 4", "IV"))
    assert build("third").contents != other.contents


def test_files_changed_during_an_interruption_are_encoded_anew(build, tmp_path, write_sine):
    build()
    meta = tmp_path / "cache" / "meta.json"
    meta.rename(meta.with_name("building.json"))
    write_sine("set/tone00.wav", hz=999, subtype="FLOAT")
    build()
    build("fresh")
    assert bytes_of(tmp_path / "cache") == bytes_of(tmp_path / "fresh")


def test_bad_files_are_refused_or_left_out(build, small_set, capsys):
    (small_set / "tone05.wav").write_text("no sound")
    soundfile.write(small_set / "tone06.wav", np.array([0.1, np.nan] * 400), 8000, subtype="FLOAT")
    line = refusal(build)
    assert (
        "2 of 23 files" in line and "tone05.wav: unreadable: a text file" in line and "tone06.wav: non-finite" in line
    )
    assert "--skip-bad" in line
    cache = build(skip_bad=True)
    assert [entry["id"] for entry in cache.meta["skipped"]] == ["tone05", "tone06"]
    assert cache.meta["counts"]["clips"] == 21
    assert "left out tone05" in capsys.readouterr().err
    (small_set / "tone05.wav").unlink()
    rows = (small_set / "manifest.jsonl").read_text().splitlines(keepends=True)
    (small_set / "manifest.jsonl").write_text("".join(row for row in rows if "tone05" not in row))
    assert [entry["id"] for entry in build(skip_bad=True).meta["skipped"]] == ["tone06"]


def test_a_full_disk_leaves_nothing_half_written(build, tmp_path, monkeypatch):
    real, room = Path.write_bytes, [3]

    def write_until_full(path, data):
        if path.suffix == ".tmp" and "shards" in path.parts:
            room[0] -= 1
            if room[0] < 0:
                real(path, data[:10])
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    assert "the disk is full" in refusal(build)
    monkeypatch.undo()
    monkeypatch.setattr(encoding, "ROWS_PER_SHARD", 8)
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 3
    build()
    build("fresh")
    assert bytes_of(tmp_path / "cache") == bytes_of(tmp_path / "fresh")


def test_too_little_room_is_said_before_starting(build, tmp_path, monkeypatch):
    usage = encoding.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(encoding.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "MB are free" in refusal(build)


def test_values_that_the_dtype_cannot_hold(build, fakes):
    assert "--dtype float32" in refusal(build, codec=fakes.FakeCodec(gain=1e6))
    assert "gives back noise" in refusal(build, out="nan", codec=fakes.FakeCodec(gain=float("inf")))


def test_a_refused_codec_leaves_no_folder(build, fakes, tmp_path):
    refusal(build, out="refused", codec=fakes.FakeCodec(gain=float("inf")))
    assert not (tmp_path / "refused").exists()


def test_other_folders_are_left_alone(build, fakes, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert "not a latent cache" in refusal(build, out="mine")
    assert "is a file" in refusal(build, out="mine/thesis.txt")
    assert "--seconds" in refusal(build, seconds=0.0)
    assert "--dtype" in refusal(build, dtype="int8")


def test_open_refuses_what_does_not_fit(build, fakes, tmp_path):
    cache = build()
    path = cache.path
    LatentCache.open(path, fakes.FakeCodec().fingerprint(), fakes.FakeText().fingerprint())
    assert "another codec (codec.gain 1.0 there, 2.0 here)" in refusal(
        LatentCache.open, path, fakes.FakeCodec(gain=2.0).fingerprint()
    )
    assert "another text" in refusal(LatentCache.open, path, None, {"name": "else"})
    assert "no latent cache" in refusal(LatentCache.open, tmp_path / "nowhere")
    shard = next((path / "shards").glob("latents-*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "missing or damaged" in refusal(LatentCache.open, path)
    (path / "meta.json").write_text(
        (path / "meta.json").read_text().replace('"schema_version": 1', '"schema_version": 9')
    )
    assert "cache format 9" in refusal(LatentCache.open, path)
    (path / "meta.json").write_text("{")
    assert "cannot be read" in refusal(LatentCache.open, path)


def test_variants_are_the_recording_later_and_softer(build, fakes, small_set):
    """Each row of a variant is what its index entry says of it; held-out clips come once, as recorded."""
    plain, cache = build("plain", dtype="float32"), build("varied", dtype="float32", variants=3)
    clips = {clip.id: clip for clip in load_manifest(small_set)}
    recorded = [{k: v for k, v in cache.row(i).items() if k not in ("shard", "row")}
                for i in range(len(cache)) if "variant" not in cache.row(i)]  # fmt: skip
    known = [{k: v for k, v in plain.row(i).items() if k not in ("shard", "row")} for i in range(len(plain))]
    assert recorded == known and cache.meta["counts"]["hours"] == plain.meta["counts"]["hours"]
    assert cache.rows("valid") and len(cache.rows("valid")) == len(plain.rows("valid"))
    codec, samples, varied = fakes.FakeCodec(), round(SECONDS * 8000), 0
    for i in range(len(cache)):
        row = cache.row(i)
        if "variant" not in row:
            continue
        varied += 1
        variant = row["variant"]
        assert row["split"] == "train" and variant["number"] in (1, 2)
        assert -3 <= variant["gain_db"] <= 0 and 0 <= variant["delay_sec"] <= 0.05
        wave = read_wave(clips[row["id"]].path, 8000)[round(row["start_sec"] * 8000) :][
            : round(row["length_sec"] * 8000)
        ]
        played = np.pad(wave * 10 ** (variant["gain_db"] / 20), (round(variant["delay_sec"] * 8000), samples))[:samples]
        expected = codec.encode(torch.from_numpy(played.astype(np.float32))[None, None])[0, :, : row["frames"]]
        torch.testing.assert_close(cache.latents([i])[0][0][:, : row["frames"]], expected, atol=1e-5, rtol=1e-5)
    assert varied >= 2 * len({cache.row(i)["id"] for i in cache.rows("train")}) > 0
    starts = {
        (r["id"], r["variant"]["number"], r["start_sec"]) for r in map(cache.row, range(len(cache))) if "variant" in r
    }
    assert len(starts) == varied


def test_variants_are_the_same_each_time_and_another_number_is_refused(build):
    first, again = build("first", variants=2), build("again", variants=2)
    assert bytes_of(first.path) == bytes_of(again.path)
    assert "variants 2 there, 1 here" in refusal(build, "first")
    assert "variants 2 there, 3 here" in refusal(build, "first", variants=3)
    assert "variants 1 there, 2 here" in refusal(lambda: (build("plain"), build("plain", variants=2)))
    assert "--variants must lie between 1 and 100, not 0" in refusal(build, "none", variants=0)
