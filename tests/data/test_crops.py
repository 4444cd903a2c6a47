"""Crops of sounds of any length: the right frames of them, from every place, in batches of about one length."""

import json

import numpy as np
import pytest
import soundfile
import torch

from segue.codecs import load_codec
from segue.data.cache import LatentCache
from segue.data.crops import Crops
from segue.data.encoding import build_cache
from segue.data.loader import LatentLoader, padding_of
from segue.data.manifest import load_manifest
from segue.data.order import BucketedOrder, Order, buckets_of
from segue.data.packing import pack_cache
from segue.types import UserError

RATE_HZ, HOP = 8000, 100
SECONDS = (2.5, 0.3, 0.9, 0.5, 4.03, 0.1, 1.0, *(0.1,) * 6)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    rows = []
    for n, seconds in enumerate(SECONDS):
        noise = np.random.default_rng(n).uniform(-0.5, 0.5, round(seconds * RATE_HZ))
        soundfile.write(folder / f"{n}.wav", noise, RATE_HZ, subtype="PCM_16")
        rows.append({"path": f"{n}.wav", "caption": f"noise {n}", "split": "valid" if n == 3 else "train"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def cache(sounds, fakes, tmp_path_factory):
    """Rows of half a second; latents are the waves themselves."""
    made = (load_manifest(sounds), fakes.FakeCodec(HOP), fakes.FakeText(), fakes.FakeTeacher())
    out = tmp_path_factory.mktemp("crops") / "cache"
    return build_cache(*made, out=out, seconds=0.5, dtype="float32", timed=True)


def wave_of(cache, sounds, row):
    wave = soundfile.read(sounds / f"{cache.row(row)['id']}.wav", dtype="float32")[0]
    return np.pad(wave, (0, -len(wave) % HOP)).reshape(-1, HOP).T


def test_rows_know_where_they_are(cache):
    of_first = [cache.row(i)["conditions"] for i in range(len(cache)) if cache.row(i)["id"] == "0"]
    assert of_first == [{"seconds_start": n / 2, "seconds_total": 2.5} for n in range(5)]
    # The rest of 0.03 s is left out, as ever.
    numbers = {field["name"]: field for field in cache.meta["conditions"]["numbers"]}
    assert numbers["seconds_total"] == {"name": "seconds_total", "low": 0.1, "high": 4.0}
    lengths = cache.meta["conditions"]["lengths"]
    assert lengths["captions"] == {f"noise {n}": round(s, 1) for n, s in enumerate(SECONDS) if n != 3}
    assert lengths["quantiles"][0] == 0.1 and lengths["quantiles"][-1] == 4.0


@pytest.mark.parametrize("frames", [7, 40, 41, 95, 400])
def test_a_crop_is_that_part_of_its_sound(cache, sounds, frames):
    crops = Crops(cache)
    assert crops.needed
    rows = np.repeat(np.arange(len(cache)), 5)
    at = crops.at(rows, np.random.default_rng(0).random(len(rows)), frames)
    batch = crops.batch(at, np.zeros(len(rows), int), with_teacher=True)
    assert batch.latents.shape == (len(rows), HOP, frames) and batch.indices == rows.tolist()
    for n, row in enumerate(rows):
        wave = wave_of(cache, sounds, row)
        start = round(batch.conditions[n]["seconds_start"] * RATE_HZ / HOP)
        real = min(frames, round(cache.row(row)["conditions"]["seconds_total"] * RATE_HZ / HOP) - start)
        assert real == at.real[n] and 0 <= start == at.start_frames[n]
        np.testing.assert_array_equal(batch.latents[n, :, :real].numpy(), wave[:, start : start + real])
    if batch.mask is not None:
        assert torch.equal(batch.mask.sum(1), torch.from_numpy(at.real))


def test_teacher_features_follow_the_crop(cache, sounds, fakes):
    crops = Crops(cache)
    rows = np.array([row for row in range(len(cache)) if cache.row(row)["id"] == "0"])
    at = crops.at(rows, np.full(len(rows), 0.6), 80)
    (features, real), teacher = crops.batch(at, np.zeros(len(rows), int), True).teacher, fakes.FakeTeacher()
    assert features.shape == (len(rows), 50, 2) and bool(real.all())
    whole = soundfile.read(sounds / "0.wav", dtype="float32")[0]
    for n, start in enumerate(at.start_frames):
        # Noise of one level: what is compared is where each frame comes from, within the row that it is nearest to.
        alone = teacher.encode(torch.from_numpy(whole[start * HOP : (start + 80) * HOP : 2].copy())[None])[0]
        assert float((features[n].mean(0) - alone.mean(0)).abs().max()) < 0.1


def test_every_start_is_as_likely_and_every_sound_as_often_as_its_rows(cache):
    crops = Crops(cache)
    rows = np.array([row for row in range(len(cache)) if cache.row(row)["id"] == "0"])
    draws = np.random.default_rng(0).random((2000, len(rows)))
    starts = np.concatenate([crops.at(rows, place, 41).start_frames for place in draws])
    assert starts.min() == 0 and starts.max() == 200 - 41
    counts = np.histogram(starts, bins=8, range=(0, 160))[0]
    assert counts.min() > 0.9 * counts.mean() and counts.max() < 1.1 * counts.mean()


def test_rows_of_a_long_file_have_no_seams(sounds, fakes, tmp_path):
    """The spectral codec looks at neighbouring samples: rows must follow each other as in one encoding."""
    codec = load_codec("spectral", RATE_HZ)
    clips = load_manifest(sounds)
    cache = build_cache(clips, codec, fakes.FakeText(), out=tmp_path / "c", seconds=0.512, dtype="float32", timed=True)
    crops = Crops(cache)
    row = next(row for row in range(len(cache)) if cache.row(row)["id"] == "0")
    frames = int(crops.frames_of(np.array([row]))[0])
    found = crops.batch(crops.at(np.array([row]), np.zeros(1), frames), np.zeros(1, int)).latents[0]
    wave = torch.from_numpy(soundfile.read(sounds / "0.wav", dtype="float32")[0])[None, None]
    whole = codec.encode(wave)[0, :, :frames]
    # Not at the file's own ends, where a codec makes up what lies beyond.
    torch.testing.assert_close(found[:, 4:-4], whole[:, 4:-4], atol=1e-4, rtol=1e-4)


def test_crops_of_one_file_are_in_one_split(cache):
    splits = {}
    for row in range(len(cache)):
        splits.setdefault(cache.row(row)["id"], set()).add(cache.row(row)["split"])
    assert all(len(found) == 1 for found in splits.values())
    loader = LatentLoader(cache, "train", 4, 0, crops=Crops(cache), crop_frames=40)
    with loader:
        seen = {cache.row(i)["id"] for _ in range(20) for i in loader.next_batch().indices}
    assert seen == {str(n) for n in range(len(SECONDS))} - {"3"}


def loaders(cache, world, **options):
    return [LatentLoader(cache, "train", 6 // world, 3, rank, world, **options) for rank in range(world)]


@pytest.mark.parametrize("bucket_patch", [0, 4])
def test_crops_do_not_depend_on_ranks_or_restarts(cache, bucket_patch):
    options = {"crops": Crops(cache), "crop_frames": 60, "bucket_patch": bucket_patch}

    def taken(some, batches):
        rounds = [[loader.next_batch() for loader in some] for _ in range(batches)]
        return [torch.cat([batch.latents for batch in one]) for one in rounds]

    (one,) = loaders(cache, 1, **options)
    straight = taken([one], 40)
    assert all(torch.equal(a, b) for a, b in zip(straight, taken(loaders(cache, 3, **options), 40)))
    (before,) = loaders(cache, 1, **options)
    taken([before], 17)
    state = json.loads(json.dumps(before.state_dict()))
    after = loaders(cache, 2, **options)
    for loader in after:
        loader.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(straight[17:], taken(after, 23)))
    assert len({x.shape[-1] for x in straight}) == (1 if bucket_patch == 0 else 2)
    with pytest.raises(UserError, match="does not fit"):
        LatentLoader(cache, "train", 6, 3, crops=Crops(cache), crop_frames=61).load_state_dict(state)
    kept = LatentLoader(cache, "train", 6, 3, on_device="yes", **options)
    assert all(torch.equal(a, b) for a, b in zip(straight, taken([kept], 9)))


class Numbers(LatentCache):
    """A cache of nothing but row numbers."""

    def __init__(self):
        self.path = "numbers"


def test_buckets_waste_at_most_a_tenth_and_leave_nothing_out():
    rows = np.arange(5000) * 2
    frames = np.random.default_rng(0).geometric(0.01, 5000).clip(1, 400)
    buckets = buckets_of(rows, frames, 4, 32)
    assert sorted(np.concatenate([b.rows for b in buckets]).tolist()) == rows.tolist()
    for bucket in buckets:
        own = frames[bucket.rows // 2]
        assert len(bucket.rows) >= 32 and bucket.frames % 4 == 0 and own.max() <= bucket.frames < own.max() + 4
        if len(bucket.rows) > 32 and bucket is not buckets[-1]:  # else it took in shorter ones to fill a batch
            assert 1 - (-(-own // 4)).sum() / (len(own) * bucket.frames / 4) <= 0.1
    sound = type("Sound", (), {"frames_of": lambda self, some: frames[some // 2]})()
    assert padding_of(buckets, sound, 4) <= 0.1
    # A set that is smaller than a batch is one bucket.
    assert len(buckets_of(np.arange(5), np.array([1, 2, 3, 40, 50]), 1, 8)) == 1


def test_batches_of_buckets_hold_each_row_once_an_epoch():
    frames = np.array([10] * 30 + [100] * 90)
    buckets = buckets_of(np.arange(120), frames, 1, 10)
    assert [b.frames for b in buckets] == [100, 10]
    order = BucketedOrder(Numbers(), buckets, 7, 10)
    assert len(order) == 120
    taken = {100: [], 10: []}
    rows_of = {b.frames: set(b.rows.tolist()) for b in buckets}
    assert {frames: len(rows) for frames, rows in rows_of.items()} == {100: 101, 10: 19}
    for batch in range(600):
        found = order.at(batch * 10, 10)
        assert set(found.rows.tolist()) <= rows_of[order.frames_at(batch * 10 + 9)]
        taken[order.frames_at(batch * 10)].extend(found.rows.tolist())
    for bucket in buckets:
        mine = taken[bucket.frames]
        assert all(
            sorted(mine[n : n + len(bucket.rows)]) == bucket.rows.tolist()
            for n in range(0, len(mine) - len(bucket.rows) + 1, len(bucket.rows))
        )
    assert 0.12 < len(taken[10]) / 6000 < 0.22
    # The same from anywhere, in any pieces, and another with another seed.
    whole = np.concatenate([order.at(batch * 10, 10).rows for batch in range(60)])
    assert (BucketedOrder(Numbers(), buckets, 7, 10).at(0, 600).rows == whole).all()
    assert (order.at(137, 41).rows == whole[137:178]).all()
    assert (BucketedOrder(Numbers(), buckets, 8, 10).at(0, 600).rows != whole).any()


def test_the_order_of_plain_rows_is_what_it_was():
    """Recorded before there were crops: what is drawn beside the order leaves it as it is."""
    found = Order(Numbers(), np.arange(6), 5).at(0, 12)
    order = np.concatenate([np.random.default_rng([5, e]).permutation(6) for e in (0, 1)])
    assert found.rows.tolist() == order.tolist() and len(set(found.place.tolist())) == 12


def test_what_has_no_crops_says_so(sounds, fakes, cache, tmp_path):
    made = (load_manifest(sounds), fakes.FakeCodec(HOP), fakes.FakeText())
    plain = build_cache(*made, out=tmp_path / "plain", seconds=0.5)
    with pytest.raises(UserError, match="do not know where in their sound they start; hint: segue encode again"):
        Crops(plain)
    packed = pack_cache(cache, tmp_path / "packed", rows_per_shard=8)
    assert packed.batch(packed.rows("valid")).conditions == [{"seconds_start": 0.0, "seconds_total": 0.5}]
    with pytest.raises(UserError, match="packed cache has whole rows alone"):
        Crops(packed)
