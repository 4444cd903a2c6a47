"""A cache that is made in parts opens as the one that is made at once; what is missing or does not fit is named."""

import numpy as np
import pytest
import soundfile
import torch

from segue.data import encoding
from segue.data.cache import LatentCache
from segue.data.cache_parts import Part
from segue.data.encoding import build_cache
from segue.data.manifest import load_manifest
from segue.data.open_cache import open_cache
from segue.types import UserError

PLACES = ("shard", "row")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Thirteen sounds with five captions, each in several parts."""
    folder = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    for index in range(13):
        soundfile.write(folder / f"{index:02d}.wav", 0.1 * generator.normal(size=900 + 500 * index), 8000)
        (folder / f"{index:02d}.txt").write_text("a tone number " + "very " * (index % 3) + f"{index % 5}")
    return load_manifest(folder)


@pytest.fixture
def encode(fakes, clips, tmp_path):
    def encode(part=None, out="cache", chosen=clips, **kwargs):
        settings = {"seconds": 0.2, "batch_size": 4, "variants": 2} | kwargs
        of = None if part is None else Part.of(part)
        parts = (fakes.FakeCodec(), fakes.FakeText(), fakes.FakeTeacher())
        return build_cache(chosen, *parts, out=tmp_path / out, part=of, **settings)

    return encode


def contents(cache: LatentCache):
    rows = [{k: v for k, v in cache.row(i).items() if k not in PLACES} for i in range(len(cache))]
    everything = list(range(len(cache)))
    return rows, [*cache.latents(everything), *cache.text(everything), *cache.teacher(everything)]


def test_parts_in_any_order_make_the_cache_that_is_made_at_once(encode, tmp_path):
    whole = encode(out="whole")
    for part in ("3/3", "1/3"):
        assert "parts" in str(encode(part).path)
    with pytest.raises(UserError, match=r"cache: part 2 of 3 is missing; hint: .*--part NUMBER/3"):
        open_cache(tmp_path / "cache")
    joined = encode("2/3")
    assert joined.path == tmp_path / "cache" == open_cache(tmp_path / "cache").path
    (rows, tensors), (others, same) = contents(whole), contents(joined)
    assert rows == others and all(torch.equal(a, b) for a, b in zip(tensors, same, strict=True))
    own = ("shards", "text_shards")
    assert {k: v for k, v in whole.meta.items() if k not in own} == {
        k: v for k, v in joined.meta.items() if k not in own
    }
    # It is a cache like any other: encoding without parts finds it finished, and a part is not made again.
    assert not (tmp_path / "cache" / "parts").exists()
    before = sorted(p.name for p in (tmp_path / "cache" / "shards").iterdir())
    assert len(encode()) == len(encode("1/3")) == len(whole)
    assert sorted(p.name for p in (tmp_path / "cache" / "shards").iterdir()) == before


def test_a_killed_part_goes_on_and_a_killed_join_is_made_again(encode, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "ROWS_PER_SHARD", 2)
    encode("1/2")
    folder = tmp_path / "cache" / "parts" / "002-of-002"
    real = encoding.encode_rows
    calls = []

    def dies(*arguments):
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(encoding, "encode_rows", dies)
    with pytest.raises(KeyboardInterrupt):
        encode("2/2")
    kept = {p.name: p.stat().st_mtime_ns for p in (folder / "shards").iterdir()}
    assert kept
    monkeypatch.setattr(encoding, "encode_rows", real)
    # The join ends at its last step; the parts are still there.
    from segue.data import cache_parts

    join = cache_parts.finish_cache
    monkeypatch.setattr(cache_parts, "finish_cache", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        encode("2/2")
    assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in (folder / "shards").iterdir()}.items()
    with pytest.raises(UserError, match="its parts are not joined"):
        open_cache(tmp_path / "cache")
    monkeypatch.setattr(cache_parts, "finish_cache", join)
    joined = encode("1/2")
    assert contents(joined)[0] == contents(encode(out="whole"))[0]


def test_parts_that_do_not_fit_each_other_are_refused(encode, clips, tmp_path):
    encode("1/2")
    with pytest.raises(UserError, match=r"parts of another cache are there \(seconds 0.2 there, 0.3 here"):
        encode("2/2", seconds=0.3)
    with pytest.raises(UserError, match=r"parts 2 there, 3 here"):
        encode("2/3")
    with pytest.raises(UserError, match=r"parts of another cache are there \(clips"):
        encode("2/2", chosen=clips[:-1])
    with pytest.raises(UserError, match=r"cache: part 2 of 2 is missing; hint: run segue encode with --part"):
        encode()
    with pytest.raises(UserError, match=r"--part 1/14: 13 files have no such part"):
        encode("1/14", out="many")


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/99999"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(UserError, match=rf"--part {text}: hint"):
        Part.of(text)
