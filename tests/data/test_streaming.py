"""A cache packed into tars: the same rows, in an order that is fixed, and what somebody may have made of the shards."""

import json
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segue.data import packing
from segue.data.encoding import build_cache
from segue.data.loader import LatentLoader
from segue.data.manifest import load_manifest
from segue.data.open_cache import open_cache
from segue.data.packing import pack_cache
from segue.data.streaming import StreamedCache
from segue.types import UserError

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def cache(small_set, fakes, tmp_path):
    parts = (load_manifest(small_set), fakes.FakeCodec(), fakes.FakeText(), fakes.FakeTeacher())
    return build_cache(*parts, out=tmp_path / "cache", seconds=0.4)


@pytest.fixture
def packed(cache, tmp_path):
    return pack_cache(cache, tmp_path / "packed", rows_per_shard=4, window=2)


def batches(cache, count, batch_size=5, start=0, **ranks):
    loader = LatentLoader(cache, "train", batch_size, seed=3, **ranks)
    loader.position = start
    return [loader.next_batch(with_teacher=True) for _ in range(count)]


def masks(batch):
    return torch.ones(1) if batch.mask is None else batch.mask


def same(first, second):
    pairs = zip(
        (first.latents, masks(first), first.tokens, first.tokens_mask, *first.teacher),
        (second.latents, masks(second), second.tokens, second.tokens_mask, *second.teacher),
    )
    return first.indices == second.indices and all(torch.equal(a, b) for a, b in pairs)


def test_every_row_is_what_it_was(cache, packed):
    assert isinstance(open_cache(packed.path), StreamedCache) and len(packed) == len(cache)
    place = {(row["id"], row["start_sec"]): i for i, row in enumerate(map(cache.row, range(len(cache))))}
    for split in ("train", "valid", "test"):
        rows = packed.rows(split)
        there = [place[packed.row(i)["id"], packed.row(i)["start_sec"]] for i in rows]
        assert sorted(there) == cache.rows(split)
        assert (there == cache.rows(split)) == (split != "train")
        for ours, theirs in zip(
            (*packed.latents(rows), *packed.text(rows, [2] * len(rows)), *packed.teacher(rows)),
            (*cache.latents(there), *cache.text(there, [2] * len(rows)), *cache.teacher(there)),
        ):
            assert torch.equal(ours, theirs)
        assert all(
            packed.row(i) == {k: v for k, v in cache.row(j).items() if k not in ("shard", "row", "caption_rows")}
            for i, j in zip(rows, there)
        )
    assert all(torch.equal(a, b) for a, b in zip(packed.statistics, cache.statistics))


def test_webdataset_reads_the_shards(packed):
    webdataset = pytest.importorskip("webdataset")
    urls = [str(p) for p in sorted(packed.path.glob("train-*.tar"))]
    keys = []
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        keys.append(sample["__key__"])
        assert json.loads(sample["json"])["split"] == "train"
        assert {"latents.safetensors", "teacher.safetensors"} < sample.keys()
    assert keys == [f"{i:09d}" for i in packed.rows("train")]


def test_an_epoch_holds_what_the_cache_holds_and_windows_keep_together(cache, packed):
    count = len(cache.rows("train"))
    epochs = [[batch.indices[0] for batch in batches(packed, count, 1, start=e * count)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == packed.rows("train")
        shards = [i // 4 for i in epoch]
        for start in range(0, count, 8):  # two shards of four rows, and no third
            assert len(set(shards[start : start + 8])) <= 2 + (count % 4 > 0)
    assert epochs[0] != epochs[1] != epochs[2]
    # As sets, an epoch's batches are those of the cache: latents and all.
    whole = {b.latents.numpy().tobytes() for b in batches(cache, count, 1)}
    assert {b.latents.numpy().tobytes() for b in batches(packed, count, 1)} == whole


def test_going_on_is_going_through(packed):
    whole = batches(packed, 12)
    loader = LatentLoader(StreamedCache.open(packed.path), "train", 5, seed=3)
    loader.load_state_dict(
        json.loads(json.dumps(LatentLoader(packed, "train", 5, seed=3).state_dict() | {"position": 35}))
    )
    assert all(same(whole[7 + n], loader.next_batch(with_teacher=True)) for n in range(5))


def test_two_ranks_read_what_one_reads(packed):
    one = batches(packed, 6, 6)
    two = [batches(StreamedCache.open(packed.path), 6, 3, rank=rank, world=2) for rank in (0, 1)]
    for whole, first, second in zip(one, *two):
        assert whole.indices == first.indices + second.indices
        assert torch.equal(whole.latents, torch.cat([first.latents, second.latents]))


def test_a_position_of_another_packing_is_refused(cache, packed, tmp_path):
    state = LatentLoader(packed, "train", 5, seed=3).state_dict()
    other = pack_cache(cache, tmp_path / "other", rows_per_shard=8, window=2)
    for elsewhere in (other, cache):
        with pytest.raises(UserError, match="windows 2 shards of 4 rows there"):
            LatentLoader(elsewhere, "train", 5, seed=3).load_state_dict(state)


def test_little_is_held(packed, monkeypatch):
    from segue.data import streaming

    monkeypatch.setattr(streaming, "HELD_BYTES", 0)
    loader = LatentLoader(packed, "train", 3, seed=0)
    for _ in range(20):
        batch = loader.next_batch()
        assert len(packed._held) <= 2 * len(batch.indices)


def test_an_address_is_streamed_as_a_folder_is(packed):
    fsspec = pytest.importorskip("fsspec")
    for file in packed.path.iterdir():
        fsspec.filesystem("memory").pipe(f"/packed/{file.name}", file.read_bytes())
    far = open_cache("memory://packed")
    assert isinstance(far, StreamedCache) and str(far.path) == "memory://packed"
    assert all(same(a, b) for a, b in zip(batches(packed, 4), batches(far, 4)))
    with pytest.raises(UserError, match="memory://nowhere"):
        open_cache("memory://nowhere")


def test_a_killed_packing_goes_on(cache, tmp_path, monkeypatch):
    whole = pack_cache(cache, tmp_path / "whole", rows_per_shard=4)
    real, written = packing._write, []

    def until_third(path, *rest):
        if len(written) == 2:
            path.with_name("half.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path)
        real(path, *rest)

    monkeypatch.setattr(packing, "_write", until_third)
    with pytest.raises(KeyboardInterrupt):
        pack_cache(cache, tmp_path / "killed", rows_per_shard=4)
    with pytest.raises(UserError, match="unfinished"):
        open_cache(tmp_path / "killed")
    with pytest.raises(UserError, match="with other settings"):
        pack_cache(cache, tmp_path / "killed", rows_per_shard=5)
    kept = [path.stat().st_mtime_ns for path in written]
    written[1].write_bytes(written[1].read_bytes()[:-2000])  # cut by a bad disk: made again
    monkeypatch.undo()
    pack_cache(cache, tmp_path / "killed", rows_per_shard=4)
    assert written[0].stat().st_mtime_ns == kept[0]
    for path in whole.path.iterdir():
        assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(UserError, match="holds packed shards already"):
        pack_cache(cache, tmp_path / "killed", rows_per_shard=4)
    with pytest.raises(UserError, match="packed already"):
        pack_cache(whole, tmp_path / "again")
    with pytest.raises(UserError, match="are no shards"):
        pack_cache(cache, cache.path)


@pytest.fixture
def rewritten(write_tar):
    """rewritten(path, change): a tar again, each (name, bytes) as `change` gives it; None leaves it out."""

    def rewrite(path, change):
        with tarfile.open(path) as tar:
            members = [(m.name, tar.extractfile(m).read()) for m in tar]
        write_tar(path, [made for m in members if (made := change(*m)) is not None])

    return rewrite


def lie(packed, change):
    index = json.loads((packed.path / "shards.json").read_text())
    change(index)
    for shard in index["shards"]:
        if (packed.path / shard["file"]).exists():
            shard["bytes"] = (packed.path / shard["file"]).stat().st_size
    (packed.path / "shards.json").write_text(json.dumps(index))


def read_all(path):
    opened = open_cache(path)
    rows = list(range(len(opened)))
    return opened.latents(rows), opened.text(rows), opened.teacher(rows)


def test_a_truncated_shard_is_refused(packed):
    shard = packed.path / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-3000])
    with pytest.raises(UserError, match=r"train-000001\.tar: missing, cut short or replaced"):
        open_cache(packed.path)
    rows = packed.rows("train")  # opened before it was cut
    with pytest.raises(UserError, match=r"train-000001\.tar: ends before byte"):
        packed.teacher(rows)
    shard.unlink()
    with pytest.raises(UserError, match="missing"):
        open_cache(packed.path)


@pytest.mark.parametrize("name", ["000000001.json", "000000001.latents.safetensors", "000000001.teacher.safetensors"])
def test_a_missing_member_is_named(packed, rewritten, name):
    rewritten(packed.path / "train-000000.tar", lambda n, data: None if n == name else (n, data))
    lie(packed, lambda index: None)
    with pytest.raises(UserError, match=r"train-000000\.tar: (row \d is not at byte|ends before byte)"):
        read_all(packed.path)


@pytest.mark.parametrize(
    "change",
    [
        lambda n, data: ("../../" + n, data) if "000000000.json" in n else (n, data),
        lambda n, data: (n, b"{}  " + b" " * (len(data) - 4)) if n == "000000000.json" else (n, data),
        lambda n, data: (n, data.replace(b'"frames": ', b'"frames":9')) if n == "000000000.json" else (n, data),
        lambda n, data: (n, b"\xff" * len(data)) if "000000000.lat" in n else (n, data),
        lambda n, data: (n, data.replace(b"latents", b"latentz")) if "000000000.lat" in n else (n, data),
    ],
)
def test_a_changed_member_is_named(packed, rewritten, change):
    rewritten(packed.path / "train-000000.tar", change)
    lie(packed, lambda index: None)
    with pytest.raises(UserError, match=r"train-000000\.tar: row 0 is not at byte 0 as shards\.json says") as refused:
        read_all(packed.path)
    assert "\n" not in str(refused.value)


def _paths(value, at=()):
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _paths(inner, (*at, key))


@QUICK
@given(data=st.data())
def test_an_index_that_lies_is_refused_or_harmless(packed, data):
    original = (packed.path / "shards.json").read_text()
    try:
        index = json.loads(original)
        *way, last = data.draw(st.sampled_from([p for p in _paths(index) if p]))
        inner = index
        for key in way:
            inner = inner[key]
        evil = (None, -1, 3, 10**12, "../../etc/passwd", "train-000009.tar", [], {}, float("nan"), True)
        inner[last] = data.draw(st.sampled_from(evil))
        (packed.path / "shards.json").write_text(json.dumps(index))
        try:
            read_all(packed.path)
        except UserError as error:
            assert "\n" not in str(error)
    finally:
        (packed.path / "shards.json").write_text(original)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda i: i.update(schema_version=2), "shards of format 2"),
        (lambda i: i["shards"][0].update(file="../cache/x.tar"), "is not as segue data pack writes it"),
        (lambda i: i["shards"][0].update(offsets=[0, 0, 1 << 40, 1 << 40]), "is not as segue data pack writes it"),
        (lambda i: i["shards"][0]["offsets"].__setitem__(2, i["shards"][0]["offsets"][2] + 512), "row 0|row 1"),
        (lambda i: i["shards"].reverse(), r"row \d+ is not at byte"),
        (lambda i: i["meta"].pop("channels"), "is not as segue data pack writes it"),
    ],
)
def test_what_an_index_cannot_say(packed, change, says):
    lie(packed, change)
    with pytest.raises(UserError, match=says):
        read_all(packed.path)


def test_settings_out_of_range_are_refused(cache, tmp_path):
    for name, value in (("rows_per_shard", 0), ("window", -1)):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} must be at least 1"):
            pack_cache(cache, tmp_path / "x", **{name: value})
    assert not (tmp_path / "x").exists()
    assert np.array_equal(
        cache.shuffled(np.arange(5), np.random.default_rng(1)), np.random.default_rng(1).permutation(5)
    )
