from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.data.cache import Batch, LatentCache
from segue.data.encoding import build_cache
from segue.data.loader import LatentLoader
from segue.data.manifest import load_manifest
from segue.types import UserError


class Rows(LatentCache):
    """A cache of `count` rows whose contents are their numbers; row i has 1 + i % 4 captions."""

    addressable = False

    def __init__(self, count):
        self.path, self.meta, self.count = "rows", {"teacher": None}, count

    def rows(self, split):
        return [10 * i for i in range(self.count)] if split == "train" else []

    def batch(self, indices, choice, with_teacher, pin):
        captions = [1 + i // 10 % 4 for i in indices]
        chosen = torch.tensor([n % count for n, count in zip(choice.tolist(), captions)])
        real = torch.ones(len(indices), 1, dtype=bool)
        return Batch(torch.tensor(indices)[:, None, None], None, chosen[:, None, None], real, None, indices.tolist())


def take(loader, batches):
    return [
        row for b in (loader.next_batch() for _ in range(batches)) for row in zip(b.indices, b.tokens[:, 0, 0].tolist())
    ]


counts, sizes, seeds = st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32)


@given(counts, sizes, seeds)
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_permutation_and_nothing_is_dropped(count, size, seed):
    loader = LatentLoader(Rows(count), "train", size, seed)
    rows = [row for row, _ in take(loader, -(-3 * count // size))]
    for epoch in range(3):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == [10 * i for i in range(count)]
    assert loader.epoch == loader.position // count


@given(counts, seeds, st.sampled_from([(1, 12), (2, 6), (3, 4), (4, 3), (12, 1)]), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_global_order_does_not_depend_on_the_number_of_ranks(count, seed, shape, batches):
    world, size = shape
    alone = take(LatentLoader(Rows(count), "train", 12, seed), batches)
    ranks = [LatentLoader(Rows(count), "train", size, seed, rank, world) for rank in range(world)]
    together = [row for _ in range(batches) for loader in ranks for row in take(loader, 1)]
    assert together == alone


@given(counts, seeds, st.integers(0, 9), st.integers(1, 6), st.sampled_from([(12, 1), (4, 3), (1, 12)]))
@settings(max_examples=60, deadline=None)
def test_a_restored_position_goes_on_exactly(count, seed, before, after, shape):
    size, world = shape
    straight = LatentLoader(Rows(count), "train", 12, seed)
    take(straight, before)
    state = json.loads(json.dumps(straight.state_dict()))
    ranks = [LatentLoader(Rows(count), "train", size, seed, rank, world) for rank in range(world)]
    for loader in ranks:
        loader.load_state_dict(state)
    resumed = [row for _ in range(after) for loader in ranks for row in take(loader, 1)]
    assert resumed == take(straight, after)
    assert ranks[0].state_dict() == straight.state_dict()


def test_every_caption_is_drawn_about_equally_often():
    drawn = take(LatentLoader(Rows(4), "train", 40, 3), 100)
    for row, captions in ((0, 1), (10, 2), (20, 3), (30, 4)):
        mine = [choice for r, choice in drawn if r == row]
        assert len(mine) == 1000
        assert all(abs(mine.count(c) - 1000 / captions) < 100 for c in range(captions))


def test_seeds_and_epochs_differ():
    a, b = take(LatentLoader(Rows(30), "train", 30, 0), 2), take(LatentLoader(Rows(30), "train", 30, 1), 2)
    assert a[:30] != a[30:] and a[:30] != b[:30]


def test_a_state_that_does_not_fit_is_refused():
    state = LatentLoader(Rows(20), "train", 4, 0).state_dict()
    for loader in (
        LatentLoader(Rows(21), "train", 4, 0),
        LatentLoader(Rows(20), "train", 4, 1),
        LatentLoader(Rows(20), "train", 4, 0, 0, 2),
    ):
        with pytest.raises(UserError, match="does not fit"):
            loader.load_state_dict(state)
    with pytest.raises(UserError, match="no row has split 'valid'"):
        LatentLoader(Rows(20), "valid", 4, 0)


def test_batches_of_a_real_cache(fakes, small_set, tmp_path):
    cache = build_cache(
        load_manifest(small_set),
        fakes.FakeCodec(),
        fakes.FakeText(),
        fakes.FakeTeacher(),
        out=tmp_path / "c",
        seconds=0.4,
    )
    loader = LatentLoader(cache, "train", 5, 0)
    assert loader.next_batch().teacher is None
    loader = LatentLoader(cache, "train", 5, 0)
    batch = loader.next_batch(with_teacher=True)
    latents, mask = cache.latents(batch.indices)
    assert batch.latents.shape == (5, 100, 32) and batch.latents.dtype == torch.float16
    assert torch.equal(batch.latents.float(), latents) and torch.equal(batch.mask, mask)
    longest = max(int(m.sum()) for m in batch.tokens_mask)
    assert batch.tokens.shape == (5, longest, 6) and batch.tokens_mask.dtype == torch.bool
    features, features_mask = batch.teacher
    assert features.shape == (5, 20, 2) and features_mask.shape == (5, 20)
    assert all(cache.row(i)["split"] == "train" for i in batch.indices)
