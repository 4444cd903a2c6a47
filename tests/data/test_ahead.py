"""Batches that a thread reads ahead, and rows that live on a device: the same batches, and errors where they belong."""

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch

from segue.data import resident
from segue.data.encoding import build_cache
from segue.data.loader import LatentLoader
from segue.data.manifest import load_manifest
from segue.data.packing import pack_cache
from segue.data.prefetch import Prefetcher
from segue.data.resident import ResidentRows, resident_bytes, resident_rows
from segue.types import UserError


@pytest.fixture
def cache(small_set, fakes, tmp_path):
    parts = (load_manifest(small_set), fakes.FakeCodec(), fakes.FakeText(), fakes.FakeTeacher())
    return build_cache(*parts, out=tmp_path / "cache", seconds=0.4)


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("segue-batches")]


def tensors(batch):
    found = []
    batch.map(lambda x: found.append(x) or x)
    return found


def same(first, second):
    pairs = list(zip(tensors(first), tensors(second), strict=True))
    return first.indices == second.indices and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def test_what_is_asked_for_comes_in_order_and_the_next_is_begun():
    made = []
    ahead = Prefetcher(lambda n: made.append(n) or 10 * n)
    assert [ahead.take(n, [n + 1, n + 2]) for n in range(5)] == [0, 10, 20, 30, 40]
    # Another request than foreseen: what was begun is dropped, and the answer is right.
    assert ahead.take(90, [91]) == 900 and ahead.take(91, []) == 910
    ahead.close()
    assert made[:5] == [0, 1, 2, 3, 4] and threads() == []


def test_an_error_is_raised_at_the_step_that_needs_it():
    def make(n):
        if n == 2:
            raise UserError("shard.safetensors: cannot be read")
        return n

    ahead = Prefetcher(make)
    assert [ahead.take(n, [n + 1, n + 2]) for n in (0, 1)] == [0, 1]
    with pytest.raises(UserError, match=r"shard\.safetensors"):
        ahead.take(2, [3, 4])
    assert ahead.take(3, [4, 5]) == 3  # the thread lives on
    ahead.close()


def test_closing_waits_for_what_is_being_made_and_drops_the_rest():
    begun, go, made = threading.Event(), threading.Event(), []

    def make(n):
        if n:
            begun.set()
            go.wait(10)
        made.append(n)

    ahead = Prefetcher(make)
    ahead.take(0, [1, 2, 3])
    waiting = [future for _, future in ahead._waiting]
    assert begun.wait(10)
    threading.Timer(0.05, go.set).start()
    ahead.close()
    assert made == [0, 1] and threads() == []
    for future in waiting[1:]:
        with pytest.raises(CancelledError):
            future.result()


def test_an_interrupt_leaves_no_thread(cache):
    with pytest.raises(KeyboardInterrupt), LatentLoader(cache, "train", 5, 0) as loader:
        loader.next_batch()
        assert len(threads()) == 1
        raise KeyboardInterrupt
    assert threads() == []


def test_teacher_features_come_where_they_are_asked_for_whatever_was_foreseen(cache):
    asked = [False, True, True, False, True, False, False]
    with LatentLoader(cache, "train", 5, 0) as loader:
        found = [loader.next_batch(with_teacher) for with_teacher in asked]
    for number, (batch, with_teacher) in enumerate(zip(found, asked)):
        with LatentLoader(cache, "train", 5, 0) as fresh:
            fresh.position = 5 * number
            assert same(batch, fresh.next_batch(with_teacher))


def test_features_that_every_other_step_needs_are_foreseen(cache):
    read = []
    with LatentLoader(cache, "train", 5, 0) as loader:
        one_by_one, loader._ahead._make = loader._read, lambda part: read.append(part) or one_by_one(part)
        batches = [loader.next_batch(lambda later, n=n: (n + later) % 2 == 0) for n in range(6)]
    assert [batch.teacher is not None for batch in batches] == [True, False] * 3
    # Each batch once, and up to two that are never asked for; guesses by the step at hand would make most of them anew.
    assert len({part.first for part in read}) == len(read) <= 8


def test_the_state_is_that_of_batches_handed_out(cache):
    with LatentLoader(cache, "train", 5, 0) as loader:
        loader.next_batch()
        assert loader.state_dict()["position"] == 5


def test_a_shard_cut_short_while_it_is_read_ahead_is_named_in_the_loop(cache):
    with LatentLoader(cache, "train", 2, 0) as loader:
        loader.next_batch()
        for shard in (cache.path / "shards").iterdir():
            shard.write_bytes(shard.read_bytes()[:300])
        with pytest.raises(UserError, match=r"shards/(latents|text)-\w+\.safetensors: ends too early; hint"):
            for _ in range(4):
                loader.next_batch()


def test_rows_in_memory_are_those_of_the_files(cache):
    train = np.asarray(cache.rows("train"))
    kept = ResidentRows(cache, train, torch.device("cpu"))
    generator = np.random.default_rng(0)
    for with_teacher in (False, True):
        rows, choice = generator.choice(train, 9), generator.integers(1 << 31, size=9)
        assert same(kept.batch(rows, choice, with_teacher), cache.batch(rows, choice, with_teacher))
    stored = (kept._latents, kept._tokens, kept._teacher)
    assert kept.bytes == sum(x.nbytes for x in stored) == resident_bytes(cache, train)
    assert len(kept._latents) == len(train) < len(cache)


def test_a_loader_gives_the_same_batches_from_memory(cache):
    with LatentLoader(cache, "train", 7, 3) as read, LatentLoader(cache, "train", 7, 3, on_device="yes") as kept:
        assert all(same(read.next_batch(True), kept.next_batch(True)) for _ in range(6))
        assert "batches ahead" in read.describe() and "rows, on cpu" in kept.describe()
        assert threads()[1:] == []  # rows in memory need none


def test_where_rows_live(cache, tmp_path, monkeypatch):
    train = np.asarray(cache.rows("train"))
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert resident_rows(cache, train, cpu, "auto") is None and resident_rows(cache, train, cpu, "no") is None
    need = resident_bytes(cache, train)
    monkeypatch.setattr(resident, "ResidentRows", lambda *given: given[2])
    for free, expected in ((4 * need, cuda), (4 * need - 4, None)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 1 << 40))
        assert resident_rows(cache, train, cuda, "auto") == expected
        assert resident_rows(cache, train, cuda, "yes") == cuda
    with pytest.raises(UserError, match="--cache-on-device maybe: use one of auto, yes, no"):
        resident_rows(cache, train, cpu, "maybe")
    packed = pack_cache(cache, tmp_path / "packed", rows_per_shard=4)
    assert resident_rows(packed, train, cuda, "auto") is None
    with pytest.raises(UserError, match="a packed cache is streamed; hint: leave --cache-on-device away"):
        LatentLoader(packed, "train", 4, 0, on_device="yes")
